"""The model that a run starts from, kept beside the one that trains, for L_teacher (pipeline/objectives/teacher.py).

It lies whole on every device in float32, whatever ZeRO and ``train.weights`` do with the other: 4 bytes a parameter.
Each micro-batch passes through it once, without a graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.config import Stage1Settings
from pipeline.data.batch import Batch
from pipeline.model import DualEncoder, Embeddings
from pipeline.training.cached import as_leaves, embed


class Teacher:
    """``teacher(batch)`` gives the embeddings that the start gave, on the device of the run."""

    def __init__(self, model: DualEncoder, settings: Stage1Settings, device: torch.device) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.device, self.with_regions = device, settings.trains_regions
        self.precision = settings.train.precision

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Embeddings:
        """No rows for a micro-batch without images, as of the model that trains."""

        def forward(images: Batch, number: int) -> Embeddings:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                return self.model(images.to(self.device), regions=self.with_regions)

        return embed(forward, batch, 0)


def joined(found: Sequence[Embeddings]) -> Embeddings | None:
    """Those of several micro-batches, in the order of their rows; None for none."""
    if not found:
        return None
    return found[0] if len(found) == 1 else as_leaves(found)
