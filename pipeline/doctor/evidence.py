"""What the doctor looks at, and what it finds; alike for a run on disk and for one that is training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from pipeline.config import Stage1Settings
from pipeline.tracking.metric_names import grouped_name

Curves: TypeAlias = Mapping[str, tuple[Sequence[int], Sequence[float]]]  # grouped name -> (steps, values)
GRADIENT_SEEN = "gradient_seen/"  # beginning of a metric; then the module of a projection


@dataclass(frozen=True)
class Evidence:
    """Settings, curves and what a checkpoint says of a run.

    Metrics are asked for by the names that the loop gives them, as ``cosine/fgv/spread``.
    """

    settings: Stage1Settings
    curves: Curves
    total_steps: int | None = None  # of the whole run; None: not known
    width: int | None = None  # of the embeddings; None: not known
    # Root mean square of each projection's past gradients, by Adam's second moment; a projection that no optimizer
    # group holds is missing. None: no checkpoint says, the metrics may.
    gradient_seen: Mapping[str, float] | None = None

    def points(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, ascending, without those that are not finite."""
        steps, values = self.curves.get(grouped_name(name), ((), ()))
        return [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]

    def values(self, name: str) -> list[float]:
        return [value for _, value in self.points(name)]

    def at_step(self, name: str, step: int) -> float | None:
        return dict(self.points(name)).get(step)

    def names(self, beginning: str) -> list[str]:
        """The metrics that begin so, by the loop's names, without the beginning."""
        grouped = grouped_name(beginning + "x").removesuffix("x")
        return [name.removeprefix(grouped) for name in self.curves if name.startswith(grouped)]

    @property
    def last_step(self) -> int:
        """The last logged step; 0 where there is none."""
        return max((steps[-1] for steps, _ in self.curves.values() if steps), default=0)

    def gradients_of_projections(self) -> Mapping[str, float] | None:
        """``gradient_seen``, else what was logged last; None where neither says."""
        if self.gradient_seen is not None:
            return self.gradient_seen
        logged = {name: self.values(GRADIENT_SEEN + name) for name in self.names(GRADIENT_SEEN)}
        return {name: values[-1] for name, values in logged.items() if values} or None


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    seen: str  # a sentence with the figure
    figure: float
    cause: str  # the likely one
    setting: str  # what to change: a setting's name, or the data
    change: str  # how

    def to_json(self) -> dict[str, Any]:
        """The figure as a string where JSON has no word for it."""
        return asdict(self) | {"figure": self.figure if math.isfinite(self.figure) else str(self.figure)}


Check: TypeAlias = Callable[[Evidence], Finding | None]


def median_of_end(values: Sequence[float], share: float = 0.5) -> float:
    """The median of the last ``share`` of ``values``, at least one."""
    return statistics.median(values[-max(1, round(len(values) * share)) :])
