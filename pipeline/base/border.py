"""What comes from a file or a socket: read within bounds, parsed once, and named in one line where it is wrong.

JSON goes through pydantic's parser, which refuses what no text or number can be: lone surrogates, invalid UTF-8, more
than 200 levels of nesting, numbers of more than 4,300 digits. Typed records go through ``validated``.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json

T = TypeVar("T")

QUOTED = 80  # characters of a value in a message
SHOWN = 300  # characters of a text from outside in a message
MAX_SMALL_FILE_BYTES = 8 << 20  # of configurations and records of runs; assumption: ten times the largest known
MAX_LINE_BYTES = 16 << 20  # of JSON lines
CHUNK_BYTES = 1 << 20
MAX_YAML_BYTES = 128 << 10  # settings are written by hand; reading that much takes two seconds
MAX_YAML_VALUES = 20_000
LARGEST_SHOWN = 10**20  # longer whole numbers are told by their number of digits
BITS_PER_DIGIT = 3.3219
JOINERS = "\u200c\u200d"  # emoji and some scripts need them; they steer nothing


class BorderError(ValueError):
    """Input breaks a rule; the message is one line that says where, the value, the rule and the remedy."""


def shown(text: object, limit: int = SHOWN) -> str:
    """Text from outside for a message: one line, every character that could steer a terminal spelled out, cut."""
    text = str(text)
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() or c in JOINERS else repr(c)[1:-1] for c in " ".join(cut.split()))


class _Short(reprlib.Repr):
    """``repr`` that never writes out what is long, and never fails."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = QUOTED
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 6
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) < LARGEST_SHOWN:
            return repr(x)
        return f"a whole number of about {int(x.bit_length() / BITS_PER_DIGIT)} digits"


def quoted(value: object, limit: int = QUOTED) -> str:
    """A value from outside for a message: its ``repr``, cut, whatever it is."""
    text = _Short().repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_line(error: BaseException, limit: int = SHOWN) -> str:
    """An error's message for a line of ours."""
    return shown(error, limit) or type(error).__name__


def read_bounded(path: str | Path, max_bytes: int = MAX_SMALL_FILE_BYTES) -> bytes:
    """A whole file of at most ``max_bytes``.

    Raises:
        BorderError: it is longer, or no regular file (a pipe would never end). OSError: it cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    if not path.is_file():
        raise BorderError(f"{shown(path)} is no regular file; give one")
    if size > max_bytes:
        raise BorderError(
            f"{shown(path)} has {size} bytes; at most {max_bytes} are read: it is damaged or of another kind"
        )
    return path.read_bytes()


def parse_json(data: bytes | str) -> Any:
    """JSON of any form.

    Raises:
        BorderError: what does not parse and where; the caller adds the name of the file.
    """
    try:
        return from_json(data)
    except ValueError as error:
        reason = one_line(error)
        if "hex escape" in reason or "surrogate" in reason:
            reason = f"half of a character (a lone surrogate, as a cut emoji leaves it), {reason}"
        raise BorderError(f"not JSON: {reason}") from error


def read_json(path: str | Path, max_bytes: int = MAX_SMALL_FILE_BYTES) -> Any:
    """The JSON of a file.

    Raises:
        BorderError: too long or not JSON, with the path. OSError: it cannot be read.
    """
    data = read_bounded(path, max_bytes)
    try:
        return parse_json(data)
    except BorderError as error:
        raise BorderError(f"{shown(path)}: {error}") from error


def read_object(path: str | Path, max_bytes: int = MAX_SMALL_FILE_BYTES) -> dict[str, Any]:
    """The JSON object of a file. Raises as ``read_json``, also for JSON of another form."""
    content = read_json(path, max_bytes)
    if not isinstance(content, dict):
        raise BorderError(f"{shown(path)} holds {quoted(content)}; it must be a JSON object")
    return content


def read_typed(path: str | Path, adapter: TypeAdapter[T], remedy: str = "", max_bytes: int = MAX_SMALL_FILE_BYTES) -> T:
    """The JSON of a file as the type of ``adapter``.

    Raises:
        BorderError: too long, not JSON, or values that do not fit, with the path. OSError: it cannot be read.
    """
    return validated(adapter, read_bounded(path, max_bytes), shown(path), remedy)


def as_read_back(value: Any) -> Any:
    """``value`` as a file of JSON would give it back: tuples are lists, names are texts.

    Raises:
        BorderError: a text that is half of a character. ValueError, TypeError: what JSON cannot hold.
    """
    return parse_json(json.dumps(value))


def parse_yaml(text: str, max_values: int = MAX_YAML_VALUES) -> Any:
    """YAML of plain values, no tags that make objects.

    Raises:
        BorderError: it does not parse, is nested too deep, or its aliases stand for too many values.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _count_nodes(node, {}, max_values)
        return None if node is None else loader.construct_document(node)
    except RecursionError as error:
        raise BorderError("it is nested too deep or holds itself") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: dates and numbers that are none
        raise BorderError(f"not YAML: {one_line(error)}") from error


def _count_nodes(node: yaml.Node | None, known: dict[int, int], most: int) -> int:
    """Values below ``node`` with every alias written out; a few lines of aliases can stand for billions."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_count_nodes(part, known, most) for part in parts)
    if known[id(node)] > most:
        raise BorderError(f"it holds more than {most} values")
    return known[id(node)]


def read_yaml(path: str | Path, max_bytes: int = MAX_YAML_BYTES) -> Any:
    """The YAML of a UTF-8 file. Raises as ``read_json``."""
    data = read_bounded(path, max_bytes)
    try:
        return parse_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BorderError(f"{shown(path)} is not UTF-8 ({error})") from error
    except BorderError as error:
        raise BorderError(
            f"{shown(path)} is {error}" if str(error).startswith("not") else f"{shown(path)}: {error}"
        ) from error


def read_lines(path: str | Path, max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """The whole lines of a file, with their ends; one that is longer than ``max_bytes`` comes cut, and without one."""
    with open(path, "rb") as file:
        while line := file.readline(max_bytes):
            yield line
            while not line.endswith(b"\n") and (line := file.readline(CHUNK_BYTES)):
                pass  # the rest of a line that is too long


def validated(adapter: TypeAdapter[T], data: bytes | str | Any, what: str, remedy: str = "") -> T:
    """``data`` (JSON as bytes or text, else parsed values) as the type of ``adapter``.

    Raises:
        BorderError: ``what``, the first places that do not fit with value and rule, and the remedy.
    """
    try:
        return adapter.validate_json(data) if isinstance(data, bytes | str) else adapter.validate_python(data)
    except ValidationError as error:
        raise BorderError(f"{what}: {explain(error)}{f'; {remedy}' if remedy else ''}") from error


def explain(error: ValidationError, most: int = 3) -> str:
    """The first faults of a validation in one line."""
    found = error.errors(include_url=False, include_context=False)
    lines = [describe(one) for one in found[:most]]
    return "; ".join(lines + ([f"and {len(found) - most} more"] if len(found) > most else []))


def describe(fault: ErrorDetails) -> str:
    """``place is value; rule`` of one fault."""
    place = ""
    for part in fault["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{shown(part, 40)}" if place else shown(part, 40)
    rule = shown(fault["msg"])
    if fault["type"] == "missing":
        return f"{place} is missing"
    if fault["type"] == "json_invalid":
        return rule
    return f"{place or 'it'} is {quoted(fault['input'])}; {rule[:1].lower() + rule[1:]}"
