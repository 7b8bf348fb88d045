"""What can go wrong between a question and a usable answer."""

from __future__ import annotations

from data_tools.execution.jobs import StopRun


class ServerFault(RuntimeError):
    """No answer after all attempts. ``kind``: connection, time_out, status_NNN, bad_body; or rejected (HTTP 4xx)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ServerDown(StopRun):
    """So many requests failed in a row, or in such a way, that going on is pointless. The job stops and can resume."""


class AnswerFault(ValueError):
    """An answer came but is no use. ``kind``: cut_off, empty, refused, bad_json; ``text`` is what came."""

    def __init__(self, kind: str, message: str, text: str = "") -> None:
        super().__init__(message)
        self.kind, self.text = kind, text


class TransportFault(Exception):
    """A request without a usable answer. ``kind``: connection, time_out, bad_body, rejected or status_NNN.

    ``retry``: another try may go well, after ``wait_seconds`` where the server says so. ``hopeless``: every other
    request would end in the same way.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        retry: bool = False,
        hopeless: bool = False,
        wait_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind, self.retry, self.hopeless, self.wait_seconds = kind, retry, hopeless, wait_seconds
