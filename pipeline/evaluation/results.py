"""What a task hands back: scores, the settings that influence them, and an account of every annotation row.

``Accounting`` is the promise that nothing is skipped in silence: a row is evaluated or skipped for a named reason, and
the sums are checked before a result is written.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

MAX_EXAMPLES = 5  # places named per reason; enough to find the fault, few enough to read


class EvaluationError(ValueError):
    """The data or the model cannot be evaluated so; one line with value, rule and remedy."""


@dataclass
class Accounting:
    """Counts of annotation rows by what became of them. ``unit`` says what a row is."""

    unit: str
    rows: int = 0
    evaluated: int = 0
    skipped: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)  # rows that were evaluated, but not as they stood
    examples: dict[str, list[str]] = field(default_factory=dict)

    def take(self, count: int = 1) -> None:
        """``count`` rows are evaluated."""
        self.rows += count
        self.evaluated += count

    def skip(self, reason: str, where: str, count: int = 1) -> None:
        """``count`` rows at ``where`` cannot be evaluated."""
        if count:
            self.rows += count
            self.skipped[reason] += count
            self._example(reason, where)

    def retract(self, reason: str, where: str, count: int) -> None:
        """``count`` rows that were taken turned out not to be readable."""
        self.evaluated -= count
        self.rows -= count
        self.skip(reason, where, count)

    def leave_out(self, what: str, where: str, count: int) -> None:
        """``count`` rows that were taken are outside of the set that was asked for: they are no lost rows of it."""
        self.rows -= count
        self.evaluated -= count
        self.note(what, where, count)

    def note(self, what: str, where: str, count: int = 1) -> None:
        if count:
            self.notes[what] += count
            self._example(what, where)

    def _example(self, reason: str, where: str) -> None:
        places = self.examples.setdefault(reason, [])
        if len(places) < MAX_EXAMPLES:
            places.append(where)

    def check(self, max_skipped_share: float) -> None:
        """Stop where too little of the set is left to call the result a score.

        Raises:
            EvaluationError: more than ``max_skipped_share`` of the rows were skipped, or none is left.
        """
        lost = sum(self.skipped.values())
        if self.rows and lost > max_skipped_share * self.rows:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.skipped.most_common())
            first = next(iter(self.examples[self.skipped.most_common(1)[0][0]]))
            raise EvaluationError(
                f"{lost} of {self.rows} {self.unit} cannot be evaluated ({reasons}; first: {first}); at most a "
                f"share of {max_skipped_share} may be skipped, mend the data or raise --max-skipped-share"
            )
        if not self.evaluated:
            raise EvaluationError(f"there are no {self.unit} to evaluate (of {self.rows}); give a set that holds some")

    def to_json(self) -> dict[str, Any]:
        if self.evaluated + sum(self.skipped.values()) != self.rows:
            raise EvaluationError(
                f"{self.unit}: {self.evaluated} evaluated and {sum(self.skipped.values())} skipped are not "
                f"{self.rows}; every row must be accounted for, report this as a fault of the evaluation"
            )
        return {
            "unit": self.unit,
            "rows": self.rows,
            "evaluated": self.evaluated,
            "skipped": dict(self.skipped),
            "notes": dict(self.notes),
            "examples": self.examples,
        }


def flat_scores(scores: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """``{"by_language": {"en": {"hard": 0.5}}}`` becomes ``{"by_language/en/hard": 0.5}``; numbers only."""
    flat: dict[str, float] = {}
    for name, value in scores.items():
        if isinstance(value, dict):
            flat.update(flat_scores(value, f"{prefix}{name}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = float(value)
    return flat
