"""What a comparison says, apart from how it is shown: scores, last values, what differs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.tracking.compare.groups import (
    NAMING,
    Difference,
    RunGroup,
    Statistic,
    difference,
    differing,
    differing_data,
    nearest,
    statistic,
)
from pipeline.tracking.compare.runs import RunView
from pipeline.tracking.metric_names import grouped_name, in_reading_order, is_first, unit_of

BREAKDOWN = re.compile(r"(^|/)(by_[^/]+|seen|unseen)/|_r(5|10)$")  # scores of a part of a set, and further ranks
LOWER_IS_BETTER = re.compile(r"(^|/)validation/|loss")


@dataclass(frozen=True)
class Row:
    """A score or the last value of a metric. ``values`` and ``differences`` have an entry a group."""

    name: str
    unit: str
    values: list[Statistic | None]
    differences: list[Difference | None]
    best: int | None  # the group with the best mean, where one is alone at the top

    @property
    def is_breakdown(self) -> bool:
        """Of a part of the set, or a further rank."""
        return BREAKDOWN.search(self.name) is not None


@dataclass
class Comparison:
    """Everything that is shown. Rows of texts are (name, a cell a group or None)."""

    groups: list[RunGroup]
    baseline: RunGroup | None
    scores: list[Row]
    metrics: list[Row]  # at the last logged step
    settings: list[tuple[str, list[str | None]]]
    data: list[tuple[str, list[str | None]]]
    versions: list[tuple[str, list[str | None]]]
    curve_names: list[str] = field(default_factory=list)
    sorted_by: str | None = None

    def main_scores(self) -> list[Row]:
        """Scores of whole sets; all of them where every score is of a part."""
        return [row for row in self.scores if not row.is_breakdown] or self.scores


def compare_groups(
    groups: Sequence[RunGroup],
    *,
    baseline: RunGroup | None = None,
    metrics: Sequence[str] | None = None,
    everything: bool = False,
    sort_by: str | None = None,
    ignored: Sequence[str] = (),
) -> Comparison:
    """Put groups beside each other: the baseline first, the others by a score, the best first.

    Args:
        metrics: last values and curves to show, a name or a group with its slash ("health/"); None: the first ones.
        everything: all metrics.
        sort_by: a score; None: the first score of a whole set that all groups have.

    Raises:
        ValueError: an unknown metric or score, with the nearest name.
    """
    known = sorted({name for group in groups for run in group.runs for name in run.known_metrics})
    score_names = sorted({name for group in groups for run in group.runs for name in run.scores})
    chosen = known if everything else _chosen_metrics(known, score_names, metrics)
    chosen = in_reading_order(chosen)
    sorted_by = _sorting_score(groups, score_names, sort_by)
    ordered = _in_order(groups, baseline, sorted_by)

    def row(name: str, value_of: Callable[[RunView], float | None], unit: str) -> Row:
        values = [statistic(group, value_of) for group in ordered]
        against = [
            difference(group, baseline, value_of) if baseline is not None and group is not baseline else None
            for group in ordered
        ]
        return Row(name, unit, values, against, _best(name, values))

    return Comparison(
        groups=ordered,
        baseline=baseline,
        scores=[row(n, _score_of(n), unit_of(grouped_name(f"score/{n}"))) for n in score_names],
        metrics=[row(n, _last_of(n), unit_of(n)) for n in chosen],
        settings=differing([_settings(group) for group in ordered], [*NAMING, *ignored]),
        data=differing_data(ordered),
        versions=differing([group.runs[0].versions for group in ordered]),
        curve_names=chosen,
        sorted_by=sorted_by,
    )


def _settings(group: RunGroup) -> dict[str, str]:
    """Settings of a group; a value in which its runs differ, because it is ignored, is told as such."""
    first = group.runs[0].settings
    return {
        name: value if all(run.settings.get(name) == value for run in group.runs) else "(differs within the group)"
        for name, value in first.items()
    }


def _chosen_metrics(known: Sequence[str], scores: Sequence[str], metrics: Sequence[str] | None) -> list[str]:
    if metrics is None:
        return [name for name in known if is_first(name)] or list(known)
    chosen: list[str] = []
    for name in metrics:
        full = name if name in known or name.endswith("/") else grouped_name(name)
        found = [one for one in known if one == full or (name.endswith("/") and one.startswith(name))]
        if not found:
            raise ValueError(f"--metric is {name}{nearest(name, [*known])}")
        chosen += [one for one in found if one not in chosen]
    return chosen


def _sorting_score(groups: Sequence[RunGroup], names: Sequence[str], asked: str | None) -> str | None:
    if asked is not None:
        if asked not in names:
            raise ValueError(f"--sort is {asked}{nearest(asked, names)}")
        return asked
    shared = [n for n in names if all(any(n in run.scores for run in group.runs) for group in groups)]
    return next((name for name in shared if not BREAKDOWN.search(name)), shared[0] if shared else None)


def _in_order(groups: Sequence[RunGroup], baseline: RunGroup | None, score: str | None) -> list[RunGroup]:
    def place(group: RunGroup) -> tuple[bool, float]:
        found = statistic(group, lambda run: run.scores.get(score)) if score else None
        sign = 1.0 if score and LOWER_IS_BETTER.search(score) else -1.0
        return group is not baseline, sign * found.mean if found else math.inf

    return sorted(groups, key=place)


def _best(name: str, values: Sequence[Statistic | None]) -> int | None:
    found = [(value.mean, number) for number, value in enumerate(values) if value is not None]
    if len(found) < 2:
        return None
    top = (min if LOWER_IS_BETTER.search(name) else max)(found)[0]
    at_top = [number for mean, number in found if mean == top]
    return at_top[0] if len(at_top) == 1 else None


def _score_of(name: str) -> Callable[[RunView], float | None]:
    return lambda run: run.scores.get(name)


def _last_of(name: str) -> Callable[[RunView], float | None]:
    """The newest value of a metric."""

    def last(run: RunView) -> float | None:
        curve = run.curves.get(name)
        return float(curve[1][-1]) if curve and len(curve[1]) else None

    return last
