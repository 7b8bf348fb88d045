"""A shard's journal: answers that cost something, kept while the shard is unfinished.

One JSON line an answer, forced to disk before the next is worked on. A line that is cut by a kill or a full disk, or
damaged in another way, is dropped at the next opening, and its answer asked for again; it was never used.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.base.files import write_bytes


@dataclass(frozen=True)
class _Entry:
    key: str
    value: Any


_ENTRY = TypeAdapter(_Entry)


class Journal:
    """``get(key)`` and ``put(key, value)`` of JSON values for one shard.

    ``fingerprint`` names step, version and settings: answers noted under another one are thrown away.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self._answers: dict[str, Any] = {}
        self._stream: io.FileIO | None = None
        self._header = json.dumps({"fingerprint": fingerprint}, ensure_ascii=False).encode() + b"\n"
        data = path.read_bytes() if path.exists() else b""
        if not data.startswith(self._header):
            path.unlink(missing_ok=True)
            return
        lines = data[len(self._header) :].split(b"\n")
        kept = [line for line in lines if self._note(line)]
        whole = self._header + b"".join(line + b"\n" for line in kept)
        if whole != data:  # so that what is appended stands on a line of its own
            write_bytes(path, whole, durable=True)

    def _note(self, line: bytes) -> bool:
        """Take an answer from its line; False where a kill, a full disk or other damage left no whole one."""
        try:
            entry = _ENTRY.validate_json(line)
        except ValidationError:
            return False
        self._answers[entry.key] = entry.value
        return True

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Any:
        """The value noted for ``key``, or None."""
        return self._answers.get(key)

    def put(self, key: str, value: Any) -> None:
        """Note ``value``; it is on the disk when this returns."""
        stream = self._stream
        if stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists() or self.path.stat().st_size == 0
            stream = self._stream = open(self.path, "ab", buffering=0)  # a buffer would fail once more at closing
            if new:
                _write(stream, self._header)
        line = json.dumps({"key": key, "value": value}, ensure_ascii=False, separators=(",", ":"))
        _write(stream, line.encode() + b"\n")
        os.fsync(stream.fileno())
        self._answers[key] = value

    def close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.close()

    def remove(self) -> None:
        """The shard is finished: its answers are in it."""
        self.close()
        self.path.unlink(missing_ok=True)


def _write(stream: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:  # an unbuffered write may take only a part
        view = view[stream.write(view) or 0 :]
