"""Options records as arguments of a command: one flag a field, with the field's description as its help."""

from __future__ import annotations

import argparse
import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined


def add_arguments(parser: Any, kind: type[BaseModel], leave_out: frozenset[str] = frozenset()) -> None:
    """A flag for each field of ``kind``. What is not given is absent from the namespace, so that defaults stay its own.

    Args:
        parser: a parser or a group of one. leave_out: fields that another group has.
    """
    for name, field in kind.model_fields.items():
        if name not in leave_out:
            parser.add_argument(flag_of(name, field), dest=name, default=argparse.SUPPRESS, **_settings(name, field))


def flag_of(name: str, field: FieldInfo) -> str:
    """``--max-images`` of ``max_images``, unless the field names another flag."""
    return str(_extra(field).get("flag", "--" + name.replace("_", "-")))


def flags_of(kind: type[BaseModel]) -> list[str]:
    """The flags of all its fields."""
    return [flag_of(name, field) for name, field in kind.model_fields.items()]


def given(namespace: argparse.Namespace, kind: type[BaseModel]) -> dict[str, Any]:
    """What of ``kind`` was on the command line."""
    return {name: value for name, value in vars(namespace).items() if name in kind.model_fields}


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _settings(name: str, field: FieldInfo) -> dict[str, Any]:
    kind, many = _plain(field.annotation)
    extra = _extra(field)
    text = (field.description or "").replace("%", "%%")
    if "default" not in text and field.default not in (None, PydanticUndefined, False):
        text += f" (default {field.default})"
    settings: dict[str, Any] = {"help": text}
    if kind is bool:
        return settings | {"action": "store_true"}
    if get_origin(kind) is Literal:
        settings["choices"] = get_args(kind)
    elif "metavar" in extra:
        settings["metavar"] = extra["metavar"]
    elif kind in (int, float):
        settings["metavar"] = "N" if kind is int else "X"
    if "nargs" in extra:
        return settings | {"nargs": extra["nargs"]}
    return settings | {"action": "append"} if many else settings


def _plain(annotation: Any) -> tuple[Any, bool]:
    """``(int, False)`` of ``int | None``; ``(Path, True)`` of ``tuple[Path, ...]``."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0], True
    return annotation, False
