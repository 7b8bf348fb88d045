"""Floating-point operations of a step, counted from shapes: 6 for each weight and token, 12 for attention.

The usual count for transformers (Kaplan et al., arXiv 2001.08361, section 2.1, and PaLM's appendix B, arXiv
2204.02311): forward 2 and backward 4 for each weight of a matrix and token; attention adds 12 · layers · width · tokens
for each token. What gradient checkpointing computes again is not counted, nor are embeddings, heads and losses.
"""

from __future__ import annotations

from pipeline.data.batch import Batch
from pipeline.model import FGCLIP2Config


def step_flops(config: FGCLIP2Config, batch: Batch, with_regions: bool) -> float:
    """Of one micro-batch on this rank, forward and backward."""
    images, patches, _ = batch.pixel_values.shape
    total = _tower(config.vision_config, images, patches)
    for ids in (batch.short_ids, batch.long_ids, *([batch.region_ids] if with_regions else [])):
        total += _tower(config.text_config, ids.shape[0], ids.shape[1])
    return total


def _tower(tower: object, sequences: int, tokens: int) -> float:
    width, layers = int(tower.hidden_size), int(tower.num_hidden_layers)  # type: ignore[attr-defined]
    weights = layers * (4 * width * width + 2 * width * int(tower.intermediate_size))  # type: ignore[attr-defined]
    return float(sequences * tokens) * (6 * weights + 12 * layers * width * tokens)
