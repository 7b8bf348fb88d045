"""A training step to measure: a model of a given size and a batch like one of photographs, made from random numbers.

Shape letters: B images, P patches, T tokens, R regions, U distinct region texts, H regions with negatives, K negatives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.config import OptimizerSettings, Stage1Settings, Stage2Settings
from pipeline.data.batch import Batch
from pipeline.data.facts import bucketed, facts_of, pad_rows
from pipeline.data.resolution import grid_of
from pipeline.model import FGCLIP2, FGCLIP2Config, preset_config
from pipeline.training.losses import StageLosses
from pipeline.training.optimizer import make_optimizer, parameter_groups
from pipeline.tuning.parts import choose_trained

# Width and height in pixels: the sizes that occur most among COCO's photographs.
PHOTOGRAPHS = ((640, 480), (640, 427), (480, 640), (640, 425), (427, 640), (500, 375), (640, 640), (612, 612))
SHORT_TOKENS, LONG_TOKENS = 64, 196


@dataclass(frozen=True)
class Case:
    """What is measured."""

    stage: int  # 1 or 2
    patches: int
    images: int
    preset: str  # of pipeline.model, or "small": width 384, 6 + 6 layers
    precision: str  # of the products: bf16 or fp32
    weights: str = "fp32"  # bf16: with a float32 master, as train.weights; fp32: bf16 products come from autocast
    boxes: int = 4  # an image, in stage 2
    groups: int = 2  # an image: boxes with ten negatives
    recomputed: bool = False

    @property
    def name(self) -> str:
        precision = self.precision + (" weights" if self.weights == "bf16" else "")
        precision += ", recomputing" if self.recomputed else ""
        return f"stage {self.stage}, {self.preset}, {self.images} images at {self.patches} patches, {precision}"


class Optimizer(Protocol):
    """What a step uses of an optimizer."""

    param_groups: list[dict[str, Any]]

    def step(self) -> object: ...

    def zero_grad(self) -> None: ...


class WithMaster:
    """AdamW over float32 copies of bf16 weights, as DeepSpeed's ZeRO does it on one rank."""

    def __init__(self, model: FGCLIP2, settings: OptimizerSettings) -> None:
        groups = parameter_groups(model.named_parameters(), settings)
        self.copied = [parameter for group in groups for parameter in group["params"]]
        copies = iter([parameter.detach().float().requires_grad_() for parameter in self.copied])
        model.bfloat16()
        groups = [{**group, "params": [next(copies) for _ in group["params"]]} for group in groups]
        self.adam = make_optimizer(groups, settings)
        self.param_groups = self.adam.param_groups
        self.master = [parameter for group in self.param_groups for parameter in group["params"]]

    def step(self) -> None:
        """Gradients to float32, the update, and the weights back to bf16."""
        with torch.no_grad():
            for master, parameter in zip(self.master, self.copied, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
            self.adam.step()
            torch._foreach_copy_(self.copied, self.master)

    def zero_grad(self) -> None:
        for parameter in (*self.copied, *self.master):
            parameter.grad = None


@dataclass
class Step:
    """One optimizer step of one process, without DeepSpeed."""

    case: Case
    device: torch.device
    model: FGCLIP2
    losses: StageLosses
    optimizer: Optimizer
    host_batch: Batch

    def run(self) -> Tensor:
        """Batch to the device, forward, losses, backward, update; the loss, not read."""
        loss = self.forward(self.host_batch.to(self.device))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.state.advance(1)
        return loss.detach()

    def forward(self, batch: Batch) -> Tensor:
        autocast = self.case.precision == "bf16" and self.case.weights == "fp32"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            embeddings = self.model(batch, regions=self.case.stage == 2)
        output = self.losses(embeddings, batch)
        return output.total


def model_config(preset: str, vocab_size: int) -> FGCLIP2Config:
    """A preset of the model, or ``small``: the size at which this project was compared with the public code."""
    if preset != "small":
        return preset_config(preset, vocab_size)
    text = {"vocab_size": vocab_size, "projection_size": 384, "max_position_embeddings": SHORT_TOKENS, "keep_len": 20,
            "longtext_len": LONG_TOKENS}  # fmt: skip
    size = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
    return FGCLIP2Config(text_config=text | size, vision_config=dict(size))


def make_batch(case: Case, vocab_size: int, seed: int = 0) -> Batch:
    """Photographs' grids, boxes and texts without content."""
    draw = torch.Generator().manual_seed(seed)
    count, text = case.images, model_config(case.preset, vocab_size).text_config
    short, long = text.max_position_embeddings, text.longtext_len
    grids = torch.tensor([grid_of(*PHOTOGRAPHS[n % len(PHOTOGRAPHS)], case.patches) for n in range(count)])
    regions, hard = (count * case.boxes, count * case.groups) if case.stage == 2 else (0, 0)
    texts = hard * 11 + max(regions - hard, 0)  # a group's first text is its box's own phrase
    rows = bucketed(texts)
    corners = torch.rand(regions, 2, generator=draw) * 0.5
    sizes = torch.rand(regions, 2, generator=draw) * 0.45 + 0.05
    images = torch.arange(count).repeat_interleave(case.boxes) if regions else torch.zeros(0, dtype=torch.int64)

    def ids(number: int, length: int) -> Tensor:
        return torch.randint(3, vocab_size, (number, length), generator=draw)

    grouped = torch.arange(hard * 11).view(hard, 11)
    first = torch.arange(regions).view(count, -1)[:, : case.groups].flatten() if regions else images
    phrase = torch.zeros(regions, dtype=torch.int64)
    phrase[first] = grouped[:, 0]
    others = torch.ones(regions, dtype=torch.bool)
    others[first] = False
    phrase[others] = hard * 11 + torch.arange(int(others.sum()))
    batch = Batch(
        keys=[str(n) for n in range(count)],
        language="en",
        pixel_values=torch.randint(0, 256, (count, case.patches, 768), generator=draw, dtype=torch.uint8),
        pixel_attention_mask=(torch.arange(case.patches) < grids.prod(1, keepdim=True)).int(),
        spatial_shapes=grids,
        short_ids=ids(count, short),
        short_valid=torch.ones(count, dtype=torch.bool),
        long_ids=ids(count, long),
        long_valid=torch.ones(count, dtype=torch.bool),
        boxes=torch.cat([corners, corners + sizes], dim=1),
        region_image=images,
        region_ids=pad_rows(ids(texts, short), rows),
        region_text_hash=torch.arange(rows),
        phrase_index=phrase,
        hard_region=first,
        hard_index=grouped,
        hard_mask=torch.ones(hard, 11, dtype=torch.bool),
    )
    return replace(batch, facts=facts_of(batch, texts))


def make_step(case: Case, device: torch.device, vocab_size: int = 32_000, *, with_weights: bool = True) -> Step:
    """Everything of a step, with weights of seed 0; without weights they have shapes alone."""
    torch.manual_seed(0)
    settings = Stage2Settings() if case.stage == 2 else Stage1Settings()
    config = model_config(case.preset, vocab_size)
    if with_weights:
        model = FGCLIP2.from_scratch(config).to(device)
    else:
        with torch.device("meta"):
            model = FGCLIP2(config)
    if case.stage == 1:
        choose_trained(model, settings.tune, with_regions=False)
    if case.recomputed:
        model.checkpoint_activations()
    model.train()
    losses = StageLosses(settings)
    losses.state.to(device)
    optimizer: Optimizer
    if case.weights == "bf16":
        optimizer = WithMaster(model, settings.optimizer)
    else:
        optimizer = make_optimizer(parameter_groups(model.named_parameters(), settings.optimizer), settings.optimizer)
    batch = make_batch(case, vocab_size)
    return Step(case, device, model, losses, optimizer, batch.pin_memory() if device.type == "cuda" else batch)
