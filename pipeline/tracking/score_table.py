"""A few scores for people: on how many rows each was measured, and what guessing would give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

HEADING = "## Scores"
MOST_SHOWN = 8
DIFFICULTIES = ("hard", "medium", "easy", "trivial")  # what tells models apart stands first
LATER = ("seen", "unseen")  # groups of the same rows, beside those whose names begin with by_


def in_reading_order(names: Mapping[str, Any]) -> list[str]:
    """Scores of whole sets before those of parts, hard before easy; otherwise as they came."""

    def rank(name: str) -> tuple[int, int]:
        *groups, last = name.split("/")
        is_part = any(group.startswith("by_") or group in LATER for group in groups)
        return int(is_part), DIFFICULTIES.index(last) if last in DIFFICULTIES else -1

    return sorted(names, key=lambda name: (rank(name)[0], _set_of(name, names), rank(name)[1]))


def _set_of(name: str, names: Mapping[str, Any]) -> int:
    """Where a score came; of a difficulty, where the first of its group did, so that FG sets stay together."""
    order = list(names)
    group, _, last = name.rpartition("/")
    if last not in DIFFICULTIES:
        return order.index(name)
    graded = {f"{group}/{one}" if group else one for one in DIFFICULTIES}
    return next(number for number, other in enumerate(order) if other in graded)


def shown_score(value: float, facts: Mapping[str, Any]) -> str:
    """A share as per cent; a cosine or another number as it is."""
    return f"{value:.4f}" if facts.get("kind") == "number" else f"{100 * value:.1f} %"


def scores_section(scores: Mapping[str, Any] | None, facts: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
    """The lines of a model card's section on scores.

    Args:
        scores: flat names and numbers. facts: of each name ``n``, ``chance`` and ``kind``, where they are known.
    """
    numbers = {name: value for name, value in (scores or {}).items() if isinstance(value, int | float)}
    if not numbers:
        return [HEADING, "", "Not evaluated yet."]
    rows = list(_rows(numbers, facts or {}))
    left = len(numbers) - len(rows)
    more = ["", f"{left} more are in the run's scores.json."] if left else []
    return [HEADING, "", "| score | value | rows | by chance |", "|---|---|---|---|", *rows, *more]


def _rows(numbers: Mapping[str, float], facts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name in in_reading_order(numbers)[:MOST_SHOWN]:
        known = facts.get(name, {})
        chance = "" if known.get("chance") is None else shown_score(known["chance"], known)
        value = shown_score(numbers[name], known) if known else f"{numbers[name]:.6g}"
        yield f"| {name} | {value} | {known.get('n') or ''} | {chance} |"


def with_scores(card: str, section: list[str]) -> str:
    """A model card with another section on scores; as it is where it has none."""
    lines = card.splitlines()
    if HEADING not in lines:
        return card
    start = lines.index(HEADING)
    end = next((n for n in range(start + 1, len(lines)) if lines[n].startswith("## ")), len(lines))
    return "\n".join([*lines[:start], *section, "", *lines[end:]]) + "\n"
