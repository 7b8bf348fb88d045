"""Curves cut down to what a page can show, without hiding what was cut.

All metrics of a run (or of a group of runs) share one row of intervals of steps. Up to ``points`` logged steps, every
step is an interval of its own. Beyond, an interval's middle value is the mean of its logged values, and its band runs
from the least to the greatest of them, so that a spike of one step stays in sight. For several runs the middle value
is the mean over the runs, and the band is one standard deviation of them on either side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]  # name -> (steps, values)
STEP = "optimizer steps"
# What a curve can be drawn over, and the metric that holds it; None: the step itself.
AXES: dict[str, str | None] = {
    STEP: None,
    "samples": "speed/samples_seen",
    "FLOPs": "speed/training_flops",
    "hours": "speed/training_hours",
}
POINTS = 200  # of a curve: half as many as a picture of it has pixels on a phone


@dataclass
class SampledCurves:
    """Curves of one run or group, all over the same intervals.

    ``axes[name]`` [N] float; ``middle``, ``low``, ``high`` [N] float32 by metric, NaN where nothing was logged.
    """

    axes: dict[str, np.ndarray]
    middle: dict[str, np.ndarray] = field(default_factory=dict)
    low: dict[str, np.ndarray] = field(default_factory=dict)
    high: dict[str, np.ndarray] = field(default_factory=dict)
    num_logged: int = 0  # distinct steps
    num_runs: int = 1
    not_finite: dict[str, int] = field(default_factory=dict)  # values that cannot be drawn, by metric

    @property
    def is_reduced(self) -> bool:
        """Whether an interval holds several steps."""
        return self.num_logged > len(self.axes[STEP])


def sample_curves(
    runs: Sequence[Curves], names: Sequence[str], *, points: int = POINTS, half_life: float = 0.0
) -> SampledCurves:
    """The curves ``names`` of runs that fall together.

    Args:
        half_life: of an exponential average over the logged values, in logged steps; 0: none.
    """
    wanted = [name for name in names if any(name in curves for curves in runs)]
    helpers = [metric for metric in AXES.values() if metric]
    logged = [np.asarray(curves[name][0]) for curves in runs for name in {*wanted, *helpers} if name in curves]
    steps = np.unique(np.concatenate(logged)) if logged else np.zeros(0, int)
    ends = np.array([part[-1] for part in np.array_split(steps, min(points, len(steps)) or 1) if len(part)], dtype=int)
    result = SampledCurves({}, num_logged=len(steps), num_runs=len(runs))
    for label, metric in AXES.items():
        if metric is None:
            result.axes[label] = ends.astype(float)
        else:
            columns = [_reduce(curves[metric], ends, 0.0)[0] for curves in runs if metric in curves]
            result.axes[label] = _mean_over_runs(columns, len(ends))
    for name in wanted:
        reduced = [_reduce(curves[name], ends, half_life) for curves in runs if name in curves]
        _put(result, name, reduced, len(ends))
    return result


def _put(
    result: SampledCurves, name: str, reduced: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, int]], count: int
) -> None:
    middle = _mean_over_runs([one[0] for one in reduced], count)
    if len(reduced) > 1:
        table = np.stack([one[0] for one in reduced])
        present = np.isfinite(table).sum(0)
        squares = np.nansum((table - middle) ** 2, axis=0) / np.maximum(present - 1, 1)
        spread = np.where(present > 1, np.sqrt(squares), 0.0)
        low, high = middle - spread, middle + spread
    else:
        _, low, high, _ = reduced[0]
    lost = sum(one[3] for one in reduced)
    if lost:
        result.not_finite[name] = lost
    result.middle[name], result.low[name], result.high[name] = (
        array.astype(np.float32) for array in (middle, low, high)
    )


def _reduce(
    curve: tuple[Sequence[int], Sequence[float]], ends: np.ndarray, half_life: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Mean, least, greatest of the values in each interval (NaN: none), and how many were not finite."""
    steps, values = np.asarray(curve[0]), np.asarray(curve[1], dtype=float)
    finite = np.isfinite(values)
    steps, values, lost = steps[finite], values[finite], int((~finite).sum())
    smooth = _smoothed(values, half_life)
    place = np.searchsorted(ends, steps)
    counts = np.bincount(place, minlength=len(ends)).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(place, smooth, minlength=len(ends)) / counts
    low, high = np.full(len(ends), np.inf), np.full(len(ends), -np.inf)
    np.minimum.at(low, place, values)
    np.maximum.at(high, place, values)
    empty = counts == 0
    low[empty] = high[empty] = np.nan
    return mean, low, high, lost


def _smoothed(values: np.ndarray, half_life: float) -> np.ndarray:
    """Exponential average in which the first values count fully, as TensorBoard's does."""
    if half_life <= 0:
        return values
    keep = 0.5 ** (1.0 / half_life)
    smooth, total, weight = np.empty_like(values), 0.0, 0.0
    for number, value in enumerate(values.tolist()):
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smooth[number] = total / weight
    return smooth


def _mean_over_runs(columns: Sequence[np.ndarray], count: int) -> np.ndarray:
    if not columns:
        return np.full(count, np.nan)
    table = np.stack(columns)
    present = np.isfinite(table).sum(0)
    return np.where(present > 0, np.nansum(table, axis=0) / np.maximum(present, 1), np.nan)
