"""Runs that differ in their seed alone fall together; statistics over them, and differences to a baseline.

Over the runs of a group: mean and sample standard deviation. Against the baseline: the mean of the differences of runs
with equal seeds and its standard error s/√n; where no seeds are shared, the difference of the means and Welch's
standard error √(s₁²/n₁ + s₂²/n₂). One run, or one pair, has no error.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.tracking.compare.runs import SEED, RunView

# Settings that name a run, and change nothing that it computes.
NAMING = (SEED, "train.run_folder", "tracking.", "train.resume", "train.accept_changes")
LONGEST_NAME = 48  # characters


@dataclass(frozen=True)
class Statistic:
    """Over the runs of a group that have the value. ``deviation``: None for a single run."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """A group less the baseline. ``error``: its standard error, None where there is one pair or one run."""

    mean: float
    error: float | None
    pairs: int  # runs of equal seeds; 0: the means were compared


@dataclass
class RunGroup:
    """Runs with the same settings but for what names them."""

    name: str
    runs: list[RunView]

    @property
    def label(self) -> str:
        """The name, with the number of runs where there are several."""
        return f"{self.name} (n={len(self.runs)})" if len(self.runs) > 1 else self.name


def group_runs(runs: Sequence[RunView], ignored: Sequence[str] = (), apart: bool = False) -> list[RunGroup]:
    """Groups in the order of their first runs.

    Args:
        ignored: further settings that set no runs apart; a name, or a group with its point ("data.").
        apart: each run is a group of its own.
    """
    names = tuple([*NAMING, *ignored])
    groups: dict[object, list[RunView]] = {}
    for number, run in enumerate(runs):
        relevant = tuple(sorted((n, v) for n, v in run.settings.items() if not _is_named(n, names)))
        key = (relevant, tuple(sorted(run.data.items())))
        groups.setdefault(number if apart else key, []).append(run)
    found = [RunGroup(_common_name(members), members) for members in groups.values()]
    counts: dict[str, int] = {}
    for group in found:
        counts[group.name] = counts.get(group.name, 0) + 1
        if counts[group.name] > 1:
            group.name = f"{group.name} ({counts[group.name]})"
    return found


def statistic(group: RunGroup, value_of: Callable[[RunView], float | None]) -> Statistic | None:
    """Mean and standard deviation over the runs that have a finite value; None where none has."""
    found = [value for run in group.runs if (value := value_of(run)) is not None and math.isfinite(value)]
    if not found:
        return None
    return Statistic(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))


def difference(group: RunGroup, baseline: RunGroup, value_of: Callable[[RunView], float | None]) -> Difference | None:
    """``group`` less ``baseline``, paired by seed where seeds are shared; None where either has no value."""
    ours, theirs = _by_seed(group, value_of), _by_seed(baseline, value_of)
    shared = sorted(set(ours) & set(theirs))
    if shared:
        pairs = [ours[seed] - theirs[seed] for seed in shared]
        error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
        return Difference(statistics.fmean(pairs), error, len(pairs))
    one, two = statistic(group, value_of), statistic(baseline, value_of)
    if one is None or two is None:
        return None
    error = None
    if one.deviation is not None and two.deviation is not None:
        error = math.sqrt(one.deviation**2 / one.count + two.deviation**2 / two.count)
    return Difference(one.mean - two.mean, error, 0)


def find_baseline(groups: Sequence[RunGroup], name: str) -> RunGroup:
    """The group of that name, or the one that holds the run of that name, folder or id.

    Raises:
        ValueError: there is none; with the nearest name.
    """
    for group in groups:
        folders = {os.path.realpath(run.place) for run in group.runs}
        if name in {group.name, group.label, *(run.name for run in group.runs), *(run.place for run in group.runs)}:
            return group
        if os.path.realpath(name) in folders:
            return group
    raise ValueError(f"--baseline is {name}{nearest(name, [group.name for group in groups])}")


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: which one is meant, or which there are."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # a part of a name is a usual shortening
        close = [one for one in known if name and name in one][:1]
    if close:
        return f", which is not there; do you mean {close[0]}?"
    listed = ", ".join(sorted(known)[:20])
    return (
        f", which is not there; there are {listed}{' …' if len(known) > 20 else ''}" if known else ", and none is there"
    )


def differing(columns: Sequence[Mapping[str, str]], ignored: Sequence[str] = ()) -> list[tuple[str, list[str | None]]]:
    """Rows (name, a value a column or None) of the names whose values are not all equal."""
    names = sorted({name for column in columns for name in column if not _is_named(name, tuple(ignored))})
    rows = [(name, [column.get(name) for column in columns]) for name in names]
    return [(name, cells) for name, cells in rows if len(set(cells)) > 1]


def differing_data(groups: Sequence[RunGroup]) -> list[tuple[str, list[str | None]]]:
    """Data rows in which two groups differ; a group that does not say is no difference."""
    rows = differing([group.runs[0].data for group in groups])
    return [(name, cells) for name, cells in rows if len({cell for cell in cells if cell is not None}) > 1]


def _by_seed(group: RunGroup, value_of: Callable[[RunView], float | None]) -> dict[str, float]:
    """Values by seed; a seed that occurs twice pairs with nothing."""
    found: dict[str, list[float]] = {}
    for run in group.runs:
        value = value_of(run)
        if run.seed is not None and value is not None and math.isfinite(value):
            found.setdefault(run.seed, []).append(value)
    return {seed: values[0] for seed, values in found.items() if len(values) == 1}


def _is_named(name: str, names: tuple[str, ...]) -> bool:
    return any(name == one or (one.endswith(".") and name.startswith(one)) for one in names)


def _common_name(runs: Sequence[RunView]) -> str:
    """What the names of a group's runs begin with; the run's own where there is one."""
    if len(runs) == 1:
        return runs[0].name
    prefix = os.path.commonprefix([run.name for run in runs])
    stem = re.sub(r"[\s._-]*(seed)?[\s._=-]*\d*$", "", prefix, flags=re.IGNORECASE).rstrip(" ._-(")
    return (stem or runs[0].name)[:LONGEST_NAME]
