"""Micro-batches as one batch, for the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pipeline.data.batch import Batch
from pipeline.data.facts import joined_facts

# What the losses read of a batch, by what its rows are numbered in.
_OF_LOSSES = ("short_valid", "long_valid", "region_text_hash", "hard_mask")
_OFFSETS = {
    "region_image": "spatial_shapes",
    "phrase_index": "region_text_hash",
    "hard_region": "phrase_index",
    "hard_index": "region_text_hash",
}


def join_for_losses(batches: Sequence[Batch], device: torch.device | str) -> Batch:
    """Micro-batches as one batch, as far as the losses read it: what the model reads is left empty.

    Row numbers (``region_image``, ``phrase_index`` …) are those of the rows of all micro-batches, in order. A text that
    is in two micro-batches is there twice.
    """
    joined: dict[str, Any] = {name: torch.cat([getattr(b, name) for b in batches]) for name in _OF_LOSSES}
    for name, numbered in _OFFSETS.items():
        first, parts = 0, []
        for batch in batches:
            parts.append(getattr(batch, name) + first)
            first += len(getattr(batch, numbered))
        joined[name] = torch.cat(parts)
    inputs = {name: tensor[:0] for name, tensor in batches[0].tensors().items() if name not in joined}
    keys = [key for batch in batches for key in batch.keys]
    facts = joined_facts(batches)
    return replace(batches[0], keys=keys, replaced={}, facts=facts, **{**inputs, **joined}).to(device)
