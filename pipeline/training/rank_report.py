"""What the ranks of a run tell each other in their heartbeats."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError


@dataclass
class RankReport:
    """What a rank reports of itself. ``still_seconds``: since its last :meth:`Heartbeat.beat`."""

    rank: int
    step: int = 0
    phase: str = "start"
    waiting: str = ""  # what it waits for beyond the cluster, for people
    beats: int = 0  # in this step; ranks run the same phases, so the fewest beats are the furthest behind
    still_seconds: float = 0.0
    allowed_seconds: float = 0.0
    state: str = "running"  # or "done", "failed"
    text: str = ""
    host: str = field(default_factory=socket.gethostname)
    count: int = 0

    def location(self) -> str:
        """Where the rank is, for people."""
        waiting = f" ({self.waiting})" if self.waiting else ""
        return f"step {self.step}, phase {self.phase}{waiting} (host {self.host})"


_REPORT: TypeAdapter[RankReport] = TypeAdapter(RankReport)


def parse_report(text: str, rank: int) -> RankReport | None:
    """The report of ``rank``; None where the text is none, or another rank's."""
    try:
        report = _REPORT.validate_json(text)
    except ValidationError:
        return None
    return report if report.rank == rank else None


@dataclass
class Seen:
    """The last record of a peer, and when (monotonic seconds) it came."""

    record: RankReport
    at: float
