"""What happened to a run, from the notes of its starts, its metrics and the folders of its failures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.run_folder import MODEL_CONFIG, RunFolder
from pipeline.drawing.page_curves import Event
from pipeline.supervise.attempts import read_lines
from pipeline.tracking.local_log import Entry

RESUME, SKIPPED, FAULT = "#2f62c8", "#b8860b", "#b42318"
SKIPPED_STEPS = "health/skipped_steps"
REPLACED = "data/replaced_"
MOST_EVENTS = 60  # in the curves; the table has all


@dataclass(frozen=True)
class History:
    """``events`` by step; ``starts``: how often the run was started; ``status``: how it ended, in words."""

    events: list[Event]
    starts: int
    status: str
    replaced: dict[str, int]  # damaged samples by what was wrong with them
    skipped: int  # updates

    @property
    def shown(self) -> list[Event]:
        """The events for the curves."""
        return self.events[:MOST_EVENTS]


def read_history(run: RunFolder, entries: Sequence[Entry]) -> History:
    """Everything that is known of a run's course.

    Args:
        entries: its metrics, in the order of its file.
    """
    notes = read_lines(run.path)
    events = [*_resumes(notes, entries), *_skips(entries), *_failures(run.failures)]
    starts = sum("start" in note for note in notes)
    last = entries[-1].values if entries else {}
    replaced = {
        name.removeprefix(REPLACED): 0 for entry in entries for name in entry.values if name.startswith(REPLACED)
    }
    for name in replaced:
        replaced[name] = int(max(entry.values.get(REPLACED + name, 0.0) for entry in entries))
    return History(
        sorted(events, key=lambda event: event.step),
        max(starts, 1),
        _status(run, notes),
        {name: count for name, count in replaced.items() if count},
        int(last.get(SKIPPED_STEPS, 0)),
    )


def _resumes(notes: Sequence[Mapping[str, object]], entries: Sequence[Entry]) -> list[Event]:
    """Every start but the first stands where its first metrics were logged; a failure where it happened."""
    found: list[Event] = []
    starts = [float(str(note["start"])) for note in notes if "start" in note]
    for number, time in enumerate(starts[1:], start=2):
        first = next((entry.step for entry in entries if entry.time >= time), None)
        if first is not None:
            found.append(Event(first, f"start {number} went on from here", RESUME))
    reason = ""
    for note in notes:
        if "verdict" in note:
            reason = str(note["verdict"])
        elif "failed" in note:
            step = int(str(note.get("step", 0)))
            found.append(Event(max(step, 0), f"failed: {reason or 'it was killed'}", FAULT))
            reason = ""
    return found


def _skips(entries: Sequence[Entry]) -> list[Event]:
    found, before = [], 0.0
    for entry in entries:
        skipped = entry.values.get(SKIPPED_STEPS, before)
        if skipped > before:
            found.append(Event(entry.step, f"updates skipped up to here: {skipped - before:.0f}", SKIPPED))
        before = skipped
    return found


def _failures(folder: Path) -> list[Event]:
    steps = [re.fullmatch(r"step-(\d+)", path.name) for path in folder.glob("step-*")]
    return [Event(int(match[1]), "a loss or gradient was not finite", FAULT) for match in steps if match]


def _status(run: RunFolder, notes: Sequence[Mapping[str, object]]) -> str:
    if (run.final / MODEL_CONFIG).is_file():
        return "finished"
    ends = [note for note in notes if "end" in note or "failed" in note]
    if not ends or "start" in notes[-1]:
        return "running, or killed"
    return "failed" if "failed" in ends[-1] else f"stopped with status {json.dumps(ends[-1].get('status'))}"
