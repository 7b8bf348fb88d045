"""A shard's journal: answers that cost something, kept while the shard is unfinished.

One JSON line an answer, forced to disk before the next is worked on. A line cut by a kill or a full disk is dropped
at the next opening, and its answer asked for again; it was never used.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """``get(key)`` and ``put(key, value)`` of JSON values for one shard.

    ``fingerprint`` names step, version and settings: answers noted under another one are thrown away.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self._answers: dict[str, Any] = {}
        self._stream = None
        header = json.dumps({"fingerprint": fingerprint}, ensure_ascii=False).encode() + b"\n"
        data = path.read_bytes() if path.exists() else b""
        if data.startswith(header):
            whole = data[: data.rfind(b"\n") + 1]
            for line in whole[len(header) :].splitlines():
                entry = json.loads(line)
                self._answers[entry["key"]] = entry["value"]
            if len(whole) < len(data):
                os.truncate(path, len(whole))
        else:
            path.unlink(missing_ok=True)
        self._header = header

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Any:
        """The value noted for ``key``, or None."""
        return self._answers.get(key)

    def put(self, key: str, value: Any) -> None:
        """Note ``value``; it is on the disk when this returns."""
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists() or self.path.stat().st_size == 0
            self._stream = open(self.path, "ab", buffering=0)  # a buffer would fail once more at closing
            if new:
                self._write(self._header)
        line = json.dumps({"key": key, "value": value}, ensure_ascii=False, separators=(",", ":"))
        self._write(line.encode() + b"\n")
        os.fsync(self._stream.fileno())
        self._answers[key] = value

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:  # an unbuffered write may take only a part
            view = view[self._stream.write(view) :]

    def close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.close()

    def remove(self) -> None:
        """The shard is finished: its answers are in it."""
        self.close()
        self.path.unlink(missing_ok=True)
