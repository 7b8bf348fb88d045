"""What stands beside a score: on how many rows it was measured, what guessing gives, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.tracking.score_table import in_reading_order, shown_score

Kind = Literal["share", "mean", "number"]  # of rows that hit; a mean of shares; a cosine or another plain number
NORMAL_95 = 1.959964  # the normal distribution's, of an interval of 95 per cent
Facts = dict[str, dict[str, Any]]  # by a score's flat name


def fact(n: int, chance: float | None = None, kind: Kind = "share") -> dict[str, Any]:
    """What is known of a score; ``chance``: what a model that knows nothing would have."""
    return {"n": n, "chance": chance, "kind": kind}


def share_fact(hits: Tensor, chances: Sequence[float] | float) -> dict[str, Any]:
    """Of the share of ``hits`` [R]; ``chances``: of each row, or of all of them."""
    mean = chances if isinstance(chances, float | int) else sum(chances) / max(1, len(chances))
    return fact(len(hits), float(mean))


def retrieval_chances(text_image: Tensor, num_images: int, depth: int) -> tuple[float, float]:
    """What a random order gives for recall at ``depth``: image to text, text to image.

    Args:
        text_image: [M], the image each text belongs to. num_images: N.
    """
    num_texts = len(text_image)
    counts = torch.bincount(text_image, minlength=num_images).tolist()
    own = [count for count in counts if count]
    missed = {count: _none_drawn(num_texts, count, depth) for count in set(own)}
    i2t = sum(1 - missed[count] for count in own) / max(1, len(own))
    return i2t, min(1.0, depth / max(1, num_images))


def _none_drawn(total: int, own: int, depth: int) -> float:
    """The chance that ``depth`` of ``total`` texts, drawn at random, hold none of ``own``."""
    if depth >= total - own + 1:
        return 0.0
    return math.prod((total - own - drawn) / (total - drawn) for drawn in range(depth))


def interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval of 95 per cent for a share of ``n`` independent rows (Wilson 1927).

    Rows of one image are not independent, so the true interval of such a set is somewhat wider.
    """
    if n < 1:
        return 0.0, 1.0
    square = NORMAL_95**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = NORMAL_95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def score_lines(scores: Mapping[str, float], facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table for the terminal: score, value, 95 % interval, chance, rows; whole sets first, hard before easy."""
    rows = [("", "value", "95 % interval", "by chance", "rows")]
    for name in in_reading_order(scores):
        known, value = facts.get(name, {}), scores[name]
        span = ""
        if known.get("kind") == "share":
            low, high = interval(value, known["n"])
            span = f"{100 * low:.1f} to {100 * high:.1f} %"
        chance = "" if known.get("chance") is None else shown_score(known["chance"], known)
        rows.append((name, shown_score(value, known), span, chance, f"{known['n']:,}" if known.get("n") else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
