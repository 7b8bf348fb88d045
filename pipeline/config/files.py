"""Settings from YAML files and dotted overrides, and back.

A setting whose name has changed is an error that gives the new name, except in the settings.yaml that a run saved:
there the old name is read as the new one, so that old runs can be compared, evaluated and exported.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from pipeline.base.border import BorderError, one_line, parse_yaml, quoted, read_yaml, shown
from pipeline.base.provenance import PROJECT
from pipeline.config.group import Group
from pipeline.config.groups import Stage1Settings, Stage2Settings

_DASHED = re.compile(r"--?[a-z_0-9]+(\.[a-z_0-9]+)+=")
MOST_LISTED = 5  # wrong settings in one message
logger = logging.getLogger(__name__)

# Old name -> new name, "group.name" both; the value keeps its meaning.
RENAMED: dict[str, str] = {
    "data.levels": "data.patch_budgets",
    "data.one_level_per_batch": "data.one_budget_per_batch",
    "tracking.parent_run": "tracking.continues",
}

# Settings that are gone, and what to do instead. A settings.yaml that holds one is read without it.
REMOVED: dict[str, str] = {
    "data.prefetch_shards": "how far to fetch ahead is data.prefetch_gigabytes now",
}


class SettingsError(ValueError):
    """A setting is unknown, mistyped or out of its range; one line that names value, rule and remedy."""


S = TypeVar("S", bound=Group)


def load_settings(
    kind: type[S], yaml_files: str | Path | Sequence[str | Path] | None, overrides: Sequence[str] | None = None
) -> S:
    """Settings from YAML files, later ones over earlier ones, then ``group.name=value`` overrides (values are YAML).

    Raises:
        SettingsError: an unknown name (with the nearest right one), a wrong type, a value out of range.
    """
    values: dict[str, Any] = {}
    files = [yaml_files] if isinstance(yaml_files, str | Path) else yaml_files or []
    for file in files:
        _merge(values, _read_yaml(Path(file)))
    for override in overrides or []:
        name, equals, raw = override.partition("=")
        if not equals:
            raise SettingsError(f"override {quoted(override)} has no '='; write group.name=value")
        target = values
        *parents, last = name.strip().lstrip("-").split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise SettingsError(f"override {quoted(override)}: {parent} is a value, not a group of settings")
        try:
            target[last] = _yaml_value(raw)
        except BorderError as error:
            raise SettingsError(f"override {quoted(override)}: {error}; quote what is meant as text") from error
    _refuse_renamed(values)
    return _validated(kind, values)


def as_overrides(words: Sequence[str]) -> list[str]:
    """Words of a command line with ``--group.name=value`` as ``group.name=value``: both mean the setting."""
    return [word.lstrip("-") if _DASHED.match(word) else word for word in words]


def read_saved_values(path: str | Path) -> dict[str, Any]:
    """The settings.yaml of a run as nested mappings; a name that has changed since then is read as the new one.

    Raises:
        SettingsError: no such file, or it is not a mapping in YAML.
    """
    return with_new_names(_read_yaml(Path(path)))


def with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version saved, under the names of this one."""
    values = {name: dict(group) if isinstance(group, dict) else group for name, group in values.items()}
    for old in REMOVED:
        group, _, name = old.rpartition(".")
        (_group_of(values, group) or {}).pop(name, None)
    for old, new in RENAMED.items():
        group, _, name = old.rpartition(".")
        holder = _group_of(values, group)
        if holder is not None and name in holder:
            value = holder.pop(name)
            new_group, _, new_name = new.rpartition(".")
            values.setdefault(new_group, {}).setdefault(new_name, value)
    return values


def load_stage(stage: str, files: Sequence[Path], overrides: Sequence[str]) -> Stage1Settings:
    """The settings that a stage's script would have: those of ``stages/STAGE.yaml``, of ``files`` and of ``overrides``.

    Args:
        stage: "stage1" or "stage2".

    Raises:
        SettingsError: as :func:`load_settings`.
    """
    kind = Stage2Settings if stage == "stage2" else Stage1Settings
    return load_settings(kind, [PROJECT / "stages" / f"{stage}.yaml", *files], overrides)


def read_saved_settings(path: str | Path) -> Stage1Settings:
    """The settings.yaml that a run saved, of the stage that it was.

    Raises:
        SettingsError: as :func:`load_settings`.
    """
    values = read_saved_values(path)
    kind = Stage2Settings if "region_loss" in values else Stage1Settings
    return _validated(kind, _known(kind, values))


def _known(kind: type[Group], values: dict[str, Any]) -> dict[str, Any]:
    """Without the settings that this version no longer has; what it never had cannot have been saved."""
    known: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kind.model_fields:
            logger.warning("setting %s of an earlier run is not known any more and left out", name)
            continue
        inner = kind.model_fields[name].annotation
        if isinstance(inner, type) and issubclass(inner, Group) and isinstance(value, dict):
            value = _known(inner, value)
        known[name] = value
    return known


def dump_settings(settings: Group) -> str:
    """The settings as YAML, every value resolved."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(settings: Group) -> dict[str, Any]:
    """``{"group.name": value}``, lists and mappings of a leaf kept whole."""

    def walk(group: Group, prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for name in type(group).model_fields:
            value = getattr(group, name)
            flat.update(walk(value, f"{prefix}{name}.") if isinstance(value, Group) else {f"{prefix}{name}": value})
        return flat

    return walk(settings, "")


def _validated(kind: type[S], values: dict[str, Any]) -> S:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(kind, error)) from error


def _refuse_renamed(values: dict[str, Any]) -> None:
    for old, remedy in REMOVED.items():
        group, _, name = old.rpartition(".")
        if name in (_group_of(values, group) or {}):
            raise SettingsError(f"setting {old} is gone; {remedy}")
    for old, new in RENAMED.items():
        group, _, name = old.rpartition(".")
        if name in (_group_of(values, group) or {}):
            raise SettingsError(f"setting {old} is called {new} now; write {new} instead")


def _group_of(values: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    group = values.get(name)
    return group if isinstance(group, dict) else None


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SettingsError(f"settings file {path} does not exist; give an existing YAML file")
    try:
        loaded = read_yaml(path)
    except (BorderError, OSError) as error:
        raise SettingsError(f"settings file {one_line(error)}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise SettingsError(f"settings file {path} holds a {type(loaded).__name__}; it must hold groups of settings")
    return loaded or {}


def _merge(values: dict[str, Any], over: dict[str, Any]) -> None:
    for name, value in over.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            _merge(values[name], value)
        else:
            values[name] = value


def _yaml_value(raw: str) -> Any:
    value = parse_yaml(raw)
    if isinstance(value, str):  # YAML 1.1 reads 1e-4, without a dot, as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(kind: type[Group], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        path = ".".join(shown(part, 60) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            names = _all_names(kind)
            near = difflib.get_close_matches(path, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "see --print-config for all of them"
            lines.append(f"unknown setting {path}; {hint}")
        elif problem["type"] == "value_error":
            lines.append(f"setting {path}: {shown(problem['msg'])}" if path else shown(problem["msg"]))
        else:
            lines.append(f"setting {path} is {quoted(problem['input'])}; {shown(problem['msg'])}")
    more = len(lines) - MOST_LISTED
    return "; ".join(lines[:MOST_LISTED] + ([f"and {more} more"] if more > 0 else []))


def _all_names(kind: type[Group], prefix: str = "") -> list[str]:
    names = []
    for name, info in kind.model_fields.items():
        names.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, Group):
            names += _all_names(info.annotation, f"{prefix}{name}.")
    return names
