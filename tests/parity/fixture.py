"""The reference model's weights, inputs and outputs, with every size read from the files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.model import FGCLIP2, FGCLIP2Config
from tests.shared_data import shared


@dataclass(frozen=True)
class Fixture:
    folder: Path
    meta: dict
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def model(self) -> FGCLIP2:
        model = FGCLIP2(FGCLIP2Config(**self.meta["config"]))
        model.load_state_dict(self.weights, strict=True)
        return model.eval()

    def rows(self, kind: str) -> Tensor:
        """[B, most] bool: which rows of ``boxes`` ("box") or ``hard_boxes`` ("hard") exist."""
        counts = self.inputs["num_boxes" if kind == "box" else "num_hard"]
        most = self.inputs["boxes" if kind == "box" else "hard_boxes"].shape[1]
        return torch.arange(most) < counts[:, None]


def load_fixture() -> Fixture:
    folder = shared("fixtures/fgclip2", "FGCLIP_FIXTURES")
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return Fixture(folder, meta, *(load_file(folder / f"{n}.safetensors") for n in ("weights", "inputs", "outputs")))


def whole_batch(fixture: Fixture) -> Batch:
    """The fixture's batch as the training loop would see it: all boxes, then all hard boxes; every text once."""
    inputs = fixture.inputs
    images = inputs["pixel_values"].shape[0]
    box_rows, hard_rows = fixture.rows("box"), fixture.rows("hard")
    number = torch.arange(images)[:, None]
    region_ids = torch.cat([inputs["box_ids"][box_rows], inputs["hard_ids"].flatten(0, 1)])
    num_boxes, (num_hard, num_texts) = int(box_rows.sum()), inputs["hard_ids"].shape[:2]
    hard_index = num_boxes + torch.arange(num_hard * num_texts).view(num_hard, num_texts)
    return Batch(
        keys=[str(k) for k in range(images)],
        language="en",
        pixel_values=inputs["pixel_values"],
        pixel_attention_mask=inputs["pixel_attention_mask"],
        spatial_shapes=inputs["spatial_shapes"],
        short_ids=inputs["short_ids"],
        short_valid=torch.ones(images, dtype=torch.bool),
        long_ids=inputs["long_ids"],
        long_valid=torch.ones(images, dtype=torch.bool),
        boxes=torch.cat([inputs["boxes"][box_rows], inputs["hard_boxes"][hard_rows]]),
        region_image=torch.cat([number.expand_as(box_rows)[box_rows], number.expand_as(hard_rows)[hard_rows]]),
        region_ids=region_ids,
        region_text_hash=torch.arange(len(region_ids)),
        phrase_index=torch.cat([torch.arange(num_boxes), hard_index[:, 0]]),
        hard_region=num_boxes + torch.arange(num_hard),
        hard_index=hard_index,
        hard_mask=torch.ones(num_hard, num_texts, dtype=torch.bool),
    )
