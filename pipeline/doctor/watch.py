"""The doctor beside a run that trains: it looks at the first steps and each health check, and says a thing once."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import Stage1Settings
from pipeline.doctor.checks import diagnose
from pipeline.doctor.evidence import Curves, Evidence
from pipeline.tracking.metric_names import grouped_metrics

FIRST_STEPS = 10  # each logged one of them is looked at
MOST_POINTS = 2000  # of a curve in memory, beside its first


class Watch:
    """Of the main rank: metrics are reduced over the ranks, so one of them sees what all would."""

    def __init__(self, settings: Stage1Settings, total_steps: int, width: int, earlier: Curves) -> None:
        """``earlier``: the curves of the run up to here, where it goes on."""
        self.settings, self.total_steps, self.width = settings, total_steps, width
        self._curves = {name: (list(steps), list(values)) for name, (steps, values) in earlier.items()}
        self._told: set[str] = set()

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take up what was logged at a step."""
        for name, value in grouped_metrics(metrics).items():
            steps, values = self._curves.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
            if len(steps) > 2 * MOST_POINTS:
                del steps[1:-MOST_POINTS], values[1:-MOST_POINTS]

    def warnings(self) -> list[str]:
        """A line for each finding that was not there the last time."""
        found = diagnose(Evidence(self.settings, self._curves, self.total_steps, self.width))
        new = [name for name in found if name not in self._told]
        self._told = set(found)
        return [
            f"{name}: {finding.seen}; likely cause: {finding.cause}; change {finding.setting}: {finding.change}"
            for name, finding in found.items()
            if name in new
        ]
