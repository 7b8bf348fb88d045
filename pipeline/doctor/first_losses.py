"""What each objective should give at the first step, when the weights know nothing, and what a far-off value means.

With weights that know nothing, matched pairs look like unmatched ones: their cosines are draws from one normal
distribution. Its mean m and its spread v within a row are measured at the first step (random towers give embeddings
that resemble each other); without a measurement they are those of random unit vectors, 0 and 1/√D. With z standard
normal, s and b where the recipe starts them, N regions, K negatives:

    global  E softplus(−(s (m + v z) + b)) + (B − 1) E softplus(s (m + v z) + b);  of a softmax as fgv, of B pairs
    fgv     E log Σ_N exp(s v z)                 → ln N for small s v
    fgt     E log Σ_(1+K) exp(s v z)             → ln (1 + K)
    tic     E log Σ exp over the 10 largest of N − 1 draws of m + v z, without those above 0.95
    cmr     E max(0, v (z − z'))  =  v/√π        (times s where S is the scaled logit; τ = 0)

Shape letters: B pairs, N regions, K negatives, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import RegionLossSettings, Stage1Settings, Stage2Settings
from pipeline.tracking.metric_names import LOSSES, grouped_name

# Where the recipe starts the scalars, exponentiated.
START_SCALES = {"global_scale": 10.0, "global_bias": -10.0, "finegrained": 100.0, "hardneg": 100.0}
GLOBAL_SCALARS = ("global_scale", "global_bias")
COUNTERS = ("global_short/pairs", "global_long/pairs", "fgv/regions", "tic/texts", "fgt/rows", "cmr/pairs")
MAX_DRAWS, NUM_ROWS = 4096, 256  # more candidates are allowed for by ln(N / 4096)
FAR_FACTOR, FAR_DIFFERENCE = 2.0, 0.5  # a loss is far off when it is beyond both (assumption: the model is rough)


def expected_first_losses(
    settings: Stage1Settings,
    counters: Mapping[str, float],
    width: int,
    health: Mapping[str, float] | None = None,
    scales: Mapping[str, float] = START_SCALES,
) -> dict[str, float]:
    """The losses of the first step by objective, for those with members.

    Args:
        counters: LossOutput.counters, summed over ranks.
        width: D.
        health: LossOutput.health with ``cosine/…``; None: random unit vectors.
        scales: as START_SCALES; give the model's own where it starts from trained weights.
    """
    cosines, expected = _Cosines(health or {}, width), {}
    for name in ("global_short", "global_long"):
        if pairs := int(counters.get(f"{name}/pairs", 0)):
            mean, spread = cosines.of(name)
            if settings.global_loss_kind == "softmax":
                expected[name] = _softmax_loss(scales["global_scale"] * spread, pairs)
                continue
            logits = scales["global_scale"] * (mean + spread * _normal(1, 100_000)[0]) + scales["global_bias"]
            expected[name] = float(F.softplus(-logits).mean() + (pairs - 1) * F.softplus(logits).mean())
    if not isinstance(settings, Stage2Settings):
        return expected
    region = settings.region_loss
    if regions := int(counters.get("fgv/regions", 0)):
        expected["fgv"] = _softmax_loss(scales["finegrained"] * cosines.of("fgv")[1], regions)
    if texts := int(counters.get("tic/texts", 0)):
        expected["tic"] = _nearest_loss(*cosines.of("tic"), texts - 1, region)
    if (rows := counters.get("fgt/rows", 0)) and (altered := counters.get("cmr/pairs") or 10 * rows):
        spread = cosines.of("fgt")[1]
        expected["fgt"] = _softmax_loss(scales["hardneg"] * spread, 1 + round(altered / rows))
        if counters.get("cmr/pairs"):
            factor = scales["hardneg"] if region.cmr_similarity == "scaled_logit" else 1.0
            expected["cmr"] = factor * spread / math.sqrt(math.pi)
    return expected


@dataclass(frozen=True)
class FarOff:
    """One thing about the first step that is not as expected."""

    seen: str
    value: float
    cause: str


def check_first_losses(
    settings: Stage1Settings, metrics: Mapping[str, float], width: int, from_random_weights: bool = True
) -> list[FarOff]:
    """What is far off, with its likely cause; empty where the first step looks as it should.

    The region scales have a check of their own (checks_regions.py); losses are expected for the scales that are there.

    Args:
        metrics: those of the first step by their grouped names: losses unweighted, counts summed over ranks, cosines
            and scales where they were logged.
        width: D.
        from_random_weights: False where trained weights were loaded: then only a loss above that of weights that
            know nothing is wrong, and the global scalars are whatever they were trained to.
    """
    actual = {name: metrics.get(grouped_name(f"scale/{name}"), start) for name, start in START_SCALES.items()}
    is_softmax = settings.global_loss_kind == "softmax"  # the scalars' starts are the sigmoid's
    scales = actual | {name: START_SCALES[name] for name in GLOBAL_SCALARS if from_random_weights and not is_softmax}
    counters = {name: metrics.get(grouped_name(f"count/{name}"), 0.0) for name in COUNTERS}
    health = {
        name: metrics[grouped_name(name)]
        for objective in LOSSES
        for name in (f"cosine/{objective}/mean", f"cosine/{objective}/spread")
        if grouped_name(name) in metrics
    }
    found = [] if is_softmax else _wrong_scalars(actual, from_random_weights)
    for name, wanted in expected_first_losses(settings, counters, width, health, scales).items():
        value = metrics.get(grouped_name(name))
        if value is None:
            continue
        above = value > max(wanted * FAR_FACTOR, wanted + FAR_DIFFERENCE)
        below = value < min(wanted / FAR_FACTOR, wanted - FAR_DIFFERENCE)
        if not math.isfinite(value) or above or (below and from_random_weights):
            seen = f"the first {name} is {value:.4g}; weights that know nothing give about {wanted:.4g}"
            found.append(FarOff(seen, value, _likely_cause("" if is_softmax else name, actual, below)))
    return found


def is_far_from_start(name: str, value: float) -> bool:
    """Whether a scale is beyond a factor of 1.5 of where the recipe starts it."""
    return not START_SCALES[name] / 1.5 < value < START_SCALES[name] * 1.5


def _wrong_scalars(actual: Mapping[str, float], from_random_weights: bool) -> list[FarOff]:
    """Of the global loss."""
    found, scale, bias = [], actual["global_scale"], actual["global_bias"]
    if from_random_weights and is_far_from_start("global_scale", scale):
        start = START_SCALES["global_scale"]
        seen = f"global_scale starts at {scale:.4g}; it should start near {start:g} (stored as {math.log(start):.4f})"
        found.append(FarOff(seen, scale, f"logits are too {'flat' if scale < start else 'steep'} to train well"))
    if bias > -1.0:
        found.append(
            FarOff(
                f"global_bias starts at {bias:.4g}; it should start at {START_SCALES['global_bias']:g}",
                bias,
                "a model made from a config starts at 0: each of the many unmatched pairs begins as a coin toss and "
                "drowns the matched",
            )
        )
    return found


def _likely_cause(name: str, actual: Mapping[str, float], below: bool) -> str:
    if name.startswith("global") and abs(actual["global_bias"] - START_SCALES["global_bias"]) > 2:
        return f"logit_bias is {actual['global_bias']:.4g} instead of {START_SCALES['global_bias']:g}"
    if name.startswith("global") and is_far_from_start("global_scale", actual["global_scale"]):
        return f"global_scale is {actual['global_scale']:.4g} instead of {START_SCALES['global_scale']:g}"
    if below:
        return "matched pairs are told apart before any training: loaded weights, or one input that holds the other"
    return "images, boxes and phrases do not belong together (order of the rows), or a norm is not 1"


class _Cosines:
    """Mean and spread of the unmatched cosines of an objective."""

    def __init__(self, health: Mapping[str, float], width: int) -> None:
        self.health, self.width = health, width

    def of(self, name: str) -> tuple[float, float]:
        random = {"mean": 0.0, "spread": 1 / math.sqrt(self.width)}
        mean, spread = (self.health.get(f"cosine/{name}/{what}", random[what]) for what in ("mean", "spread"))
        return mean, spread


def _normal(rows: int, draws: int) -> Tensor:
    return torch.randn(rows, draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _softmax_loss(spread: float, candidates: int) -> float:
    """E[log Σ exp(spread · z)] − E[spread · z] over that many candidates."""
    draws = min(candidates, MAX_DRAWS)
    return float((spread * _normal(NUM_ROWS, draws)).logsumexp(dim=1).mean()) + math.log(candidates / draws)


def _nearest_loss(mean: float, spread: float, others: int, settings: RegionLossSettings) -> float:
    if others < 1:
        return 0.0
    similarity = mean + spread * _normal(NUM_ROWS, min(others, MAX_DRAWS))
    left_out = -math.inf if settings.tic_exclusion == "leave_out" else 0.0
    similarity[similarity > settings.tic_exclude_above] = left_out
    nearest = similarity.topk(min(settings.tic_num_texts, similarity.shape[1]), dim=1).values
    values: Any = nearest.logsumexp(dim=1)
    values = values[values > -math.inf]
    return float(values.mean()) if len(values) else 0.0
