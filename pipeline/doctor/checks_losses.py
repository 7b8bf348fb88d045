"""Checks of the losses: their first values, their sizes against each other, and whether they swing."""

from __future__ import annotations

import math
import statistics

from pipeline.config import Stage2Settings
from pipeline.doctor.evidence import Evidence, Finding, median_of_end
from pipeline.doctor.first_losses import check_first_losses

# Assumptions; docs/diagnosis.md shows them beside healthy runs.
ORDERS_APART = 100.0
FEWEST_POINTS, MOST_POINTS, NUM_WINDOWS = 24, 32, 4
GROWTH, LEAST_SHARE = 8.0, 0.1  # of the swing from the first window to the last; of the loss
LEAST_TURNS = 0.4  # of the points of the last window; noise turns at two thirds of them, a smooth rise at none


def losses_are_orders_apart(evidence: Evidence) -> Finding | None:
    """Weighted global and region losses of which the one cannot be seen beside the other."""
    settings = evidence.settings
    if not isinstance(settings, Stage2Settings):
        return None
    weights = {
        name.rpartition(".")[2].removesuffix("_weight"): value for name, value in settings.loss_weights().items()
    }
    of_global = {f"global_{name}": weights[name] for name in ("short", "long") if weights[name]}
    of_regions = {name: value for name, value in weights.items() if name not in ("short", "long") and value}
    losses = {name: dict(evidence.points(name)) for name in (*of_global, *of_regions)}
    ratios = []
    for step, regions in evidence.points("count/regions/valid"):
        sums = [
            sum(weight * losses[name].get(step, 0.0) for name, weight in group.items())
            for group in (of_global, of_regions)
        ]
        if regions and min(sums) > 0:
            ratios.append(sums[1] / sums[0])
    if not ratios or 1 / ORDERS_APART <= (ratio := median_of_end(ratios)) <= ORDERS_APART:
        return None
    larger, smaller = ("region", "global") if ratio > 1 else ("global", "region")
    return Finding(
        f"the weighted {larger} losses are {max(ratio, 1 / ratio):.3g} times the {smaller} losses",
        ratio,
        f"weights of another scale of loss; the {smaller} losses hardly move the weights",
        "region_loss.*_weight",
        "start from the defaults (docs/objectives.md), and keep both sums within two orders of magnitude",
    )


def oscillation_grows(evidence: Evidence) -> Finding | None:
    """A loss whose swing about its own course grows from window to window."""
    values = evidence.values("loss")[-MOST_POINTS:]
    if len(values) < FEWEST_POINTS:
        return None
    # What a point has beside the line between its neighbours: neither a falling loss nor a rising one swings.
    swings = [values[n] - (values[n - 1] + values[n + 1]) / 2 for n in range(1, len(values) - 1)]
    size = len(swings) // NUM_WINDOWS
    windows = [swings[len(swings) - (NUM_WINDOWS - n) * size :][:size] for n in range(NUM_WINDOWS)]
    swing = [math.sqrt(statistics.fmean(value * value for value in window)) for window in windows]
    ascends = all(later > earlier for earlier, later in zip(swing, swing[1:], strict=False))
    turns = sum(one * next_one < 0 for one, next_one in zip(windows[-1], windows[-1][1:], strict=False))
    level = abs(statistics.median(values[-size:]))
    if not ascends or swing[-1] < GROWTH * swing[0] or swing[-1] < LEAST_SHARE * level or turns < LEAST_TURNS * size:
        return None
    return Finding(
        f"the loss swings by {swing[-1]:.3g} about its course, {swing[-1] / max(swing[0], 1e-12):.3g} times as much as "
        f"{3 * size} logged steps before",
        swing[-1],
        "each step overshoots: a learning rate that is too high for one of the groups",
        "optimizer.peak_learning_rate",
        "lower it, or the factor of the group whose gradient norm grows (optimizer.group_factors)",
    )


def first_losses_are_far_off(evidence: Evidence) -> Finding | None:
    """Losses of the first step beside what weights that know nothing give."""
    if evidence.width is None:
        return None
    first = {name: values[0] for name, (steps, values) in evidence.curves.items() if steps[:1] == [1]}
    # Of separate micro-batches the cosines are those of the last one alone: too few to expect anything from.
    if not first or first.get("health/loss_pools", 1.0) > 1:
        return None
    lines = check_first_losses(
        evidence.settings, first, evidence.width, from_random_weights=evidence.settings.model.start_from is None
    )
    if not lines:
        return None
    return Finding(
        "; ".join(line.seen for line in lines),
        lines[0].value,
        lines[0].cause,
        "model.start_from",
        "look at the weights that the run starts from, then at the order of images, boxes and texts in a batch",
    )
