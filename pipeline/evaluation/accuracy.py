"""Top-1 and top-5 of classes."""

from __future__ import annotations

import torch
from torch import Tensor

PART = 4096  # rows whose similarities exist at one time


def top_hits(rows: Tensor, classes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """[R, D], [C, D], [R] -> bool [R] twice: the label is first, the label is among the first five."""
    best = torch.cat([(part @ classes.T).topk(min(5, len(classes)), dim=1).indices for part in rows.split(PART)])
    is_label = best == labels[:, None]
    return is_label[:, 0], is_label.any(1)


def mean_over_classes(hits: Tensor, labels: Tensor) -> float:
    """The mean over the classes that have rows of each one's share of hits."""
    return torch.stack([hits[labels == label].double().mean() for label in labels.unique()]).mean().item()
