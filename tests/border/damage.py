"""Damages as data: a list of steps that turn whole files into broken ones, made from a seed or read from the corpus.

A step is a JSON list. On documents (JSON, JSON lines, YAML, the header of safetensors): ``["set", path, value]``,
``["drop", path]``, ``["rename", path, name]``, ``["repeat", path, times]``. On bytes: ``["cut", place]``,
``["flip", place, mask]``, ``["splice", place, length, text]``, ``["whole", value]``, ``["bytes", text]``; places are
fractions of the length. On tars: ``["header", member, first, field]`` with the checksum made right again. A value is
JSON, or ``{"$": kind, …}`` for what JSON cannot hold, or should not spell out: see ``spell``.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.border.values import WHOLE, some_value, spell

EDITS = ("set", "drop", "rename", "repeat")


@dataclass(frozen=True)
class Damage:
    """``steps`` on ``file``, a path below the case's folder."""

    file: str
    steps: list[list[Any]]

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "steps": self.steps}

    def apply(self, folder: Path) -> None:
        """Damage the file below ``folder`` in place."""
        path = folder / self.file
        data = path.read_bytes()
        edits = [step for step in self.steps if step[0] in EDITS]
        if edits:  # together: what one of them wrote may be nothing that the next could parse
            read, write = CODECS[path.suffix]
            document, extra = read(data)
            for kind, *rest in edits:
                document = _edit(document, kind, *rest)
            data = write(document, extra)
        for step in self.steps:
            data = data if step in edits else _damaged(data, step)
        path.write_bytes(data)


def paths_of(document: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value of a document, the whole first."""
    yield above
    parts = dict(enumerate(document)) if isinstance(document, list) else document
    for name, part in parts.items() if isinstance(parts, dict) else ():
        yield from paths_of(part, (*above, name))


def _damaged(data: bytes, step: list[Any]) -> bytes:
    kind, *rest = step
    if kind == "cut":
        return data[: int(rest[0] * len(data))]
    if kind == "flip":
        place = min(int(rest[0] * len(data)), len(data) - 1)
        return data if place < 0 else data[:place] + bytes([data[place] ^ rest[1]]) + data[place + 1 :]
    if kind == "splice":
        place = int(rest[0] * len(data))
        return data[:place] + rest[2].encode("latin-1") + data[place + rest[1] :]
    if kind == "whole":
        return spell(rest[0])
    if kind == "bytes":
        return rest[0].encode("latin-1")
    if kind == "header":
        return _edit_header(data, *rest)
    raise ValueError(f"step {kind!r} of a damage is unknown")


def _edit(document: Any, kind: str, path: list[Any], *rest: Any) -> Any:
    if not path:
        return rest[0] if kind == "set" else None
    *above, last = path
    target = document
    for name in above:
        target = target[name]
    if kind == "set":
        target[last] = rest[0]
    elif kind == "drop":
        del target[last]
    elif kind == "rename" and isinstance(target, dict):
        target[rest[0]] = target.pop(last)
    elif kind == "repeat" and isinstance(target, list):
        target[last:last] = [target[last]] * rest[0]
    return document


def _edit_header(data: bytes, member: int, first: int, field: str) -> bytes:
    """Write ``field`` at byte ``first`` of a tar's header, with a right checksum: only the field is wrong."""
    headers, place = [], 0
    while place + 512 <= len(data) and any(data[place : place + 512]):
        headers.append(place)
        size = int(data[place + 124 : place + 135].split(b"\0")[0] or b"0", 8)
        place += 512 + -(-size // 512) * 512
    place = headers[member % len(headers)]
    header = bytearray(data[place : place + 512])
    raw = field.encode("latin-1")
    header[first : first + len(raw)] = raw
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:place] + bytes(header[:512]) + data[place + 512 :]


def _read_json(data: bytes) -> tuple[Any, bytes]:
    return json.loads(data), b""


def _write_json(document: Any, extra: bytes) -> bytes:
    return spell(document)


def _read_lines(data: bytes) -> tuple[Any, bytes]:
    return [json.loads(line) for line in data.decode().splitlines() if line], b""


def _write_lines(document: Any, extra: bytes) -> bytes:
    return b"".join(spell(line) + b"\n" for line in document) if isinstance(document, list) else spell(document)


def _read_safetensors(data: bytes) -> tuple[Any, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _write_safetensors(document: Any, extra: bytes) -> bytes:
    header = spell(document)
    return struct.pack("<Q", len(header)) + header + extra


CODECS: dict[str, tuple[Callable[[bytes], tuple[Any, bytes]], Callable[[Any, bytes], bytes]]] = {
    ".json": (_read_json, _write_json),
    ".jsonl": (_read_lines, _write_lines),
    ".yaml": (_read_json, _write_json),  # JSON is YAML; what only YAML has comes in as bytes
    ".safetensors": (_read_safetensors, _write_safetensors),
}


def damage_document(rng: random.Random, file: str, data: bytes) -> Damage:
    """One to three edits of a document; one in six also, or only, damages its bytes."""
    if rng.random() < 1 / 6:
        return damage_bytes(rng, file)
    document, _ = CODECS[Path(file).suffix][0](data)
    steps: list[list[Any]] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = list(rng.choice(list(paths_of(document))[1:]))
        # a later step must find what it edits, so only the first may take something away
        kind = rng.choice(("set", "set", "set", "set", "drop", "rename", "repeat")) if not steps else "set"
        if kind == "set":
            steps.append(["set", path, some_value(rng)])
            if len(steps) > 1 and any(_within(one[1], path) or _within(path, one[1]) for one in steps[:-1]):
                steps.pop()
        elif kind == "drop":
            return Damage(file, [["drop", path]])
        elif kind == "rename":
            return Damage(file, [["rename", path, rng.choice(("", "x", "__class__", "名"))]])
        else:
            return Damage(file, [["repeat", path, rng.choice((1, 10, 1000))]])
    return Damage(file, steps)


def _within(path: list[Any], other: list[Any]) -> bool:
    return path[: len(other)] == other


SPLICES = ("", "\0", "\xff\xfe", "\xef\xbb\xbf", "{", "[", "]", ",", "\n", '"', "9" * 5000, "-", "\xed\xa0\x80")
OTHER = ("", "\0" * 1024, "\xff" * 64, "text", "PK\x03\x04", "\x80\x04\x95", "\x1b[31m")


def damage_bytes(rng: random.Random, file: str, steps_at_most: int = 3) -> Damage:
    """Cut, flipped, spliced, emptied or replaced bytes."""
    steps: list[list[Any]] = []
    for _ in range(rng.randint(1, steps_at_most)):
        kind = rng.choice(("cut", "flip", "flip", "splice", "splice", "whole", "bytes"))
        if kind == "cut":
            steps.append(["cut", round(rng.random(), 4)])
        elif kind == "flip":
            steps.append(["flip", round(rng.random(), 5), rng.randint(1, 255)])
        elif kind == "splice":
            steps.append(["splice", round(rng.random(), 5), rng.choice((0, 1, 10)), rng.choice(SPLICES)])
        elif kind == "whole":
            return Damage(file, [["whole", rng.choice(WHOLE)]])
        else:
            return Damage(
                file, [["bytes", rng.choice(("", "\0" * 1024, "\xff" * 64, "text", "PK\x03\x04", "\x80\x04\x95"))]]
            )
    return Damage(file, steps)


# Offsets and lengths of the fields of a ustar header, and what is written there.
HEADER = {
    "name": (0, 100),
    "size": (124, 12),
    "mtime": (136, 12),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "prefix": (345, 155),
}
NUMBERS = (
    *(
        "-1",
        "-0000000001\0",
        "77777777777\0",
        "00000000000\0",
        "99999999999\0",
        "          \0",
        "0x10\0",
        "+1\0",
        "1_0\0",
    ),
    *("\xff" * 12, "\x80" + "\xff" * 11, "\x80" + "\0" * 10 + "\x10", "\xc0" + "\0" * 11, "\xef\xbc\x91\0"),
)
NAMES = (
    *("../../outside.jpg", "/tmp/outside.json", "a/../../b.jpg", "..", ".", "", "\0" * 100, "a" * 100, "\xff\xfe.json"),
    *("k\x1b[2J.jpg", "C:\\x.jpg", "k00000.jpg", "k00000.json", "con.json"),
)
TYPES = "0\0" + "1234567LKxgSVMD\xff"


def damage_tar(rng: random.Random, file: str) -> Damage:
    """A field of a header, with a right checksum; or bytes."""
    if rng.random() < 0.35:
        return damage_bytes(rng, file)
    steps: list[list[Any]] = []
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(("size", "size", "type", "type", "name", "name", "magic", "prefix", "link", "mtime"))
        first, length = HEADER[name]
        values = NUMBERS if name in ("size", "mtime") else TYPES if name == "type" else NAMES
        steps.append(["header", rng.randrange(6), first, rng.choice(values)[:length]])
        if name == "size":  # where the next header is can no longer be told
            break
    return Damage(file, steps)
