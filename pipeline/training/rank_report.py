"""What the ranks of a run tell each other in their heartbeats."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field


@dataclass
class RankReport:
    """What a rank reports of itself. ``still_seconds``: since its last :meth:`Heartbeat.beat`."""

    rank: int
    step: int = 0
    phase: str = "start"
    beats: int = 0  # in this step; ranks run the same phases, so the fewest beats are the furthest behind
    still_seconds: float = 0.0
    allowed_seconds: float = 0.0
    state: str = "running"  # or "done", "failed"
    text: str = ""
    host: str = field(default_factory=socket.gethostname)
    count: int = 0

    def location(self) -> str:
        return f"step {self.step}, phase {self.phase} (host {self.host})"


@dataclass
class Seen:
    """The last record of a peer, and when (monotonic seconds) it came."""

    record: RankReport
    at: float
