"""Rows of published protocols: what each set is measured with, where its files are, and which row a command means.

``fgclip2:lvis-boxes`` names a row; ``fgclip2`` alone means the paper's row for the task and the set at hand.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pipeline.evaluation.formats.anomaly import recognise_anomaly
from pipeline.evaluation.formats.captions import recognise
from pipeline.evaluation.formats.language import language_of
from pipeline.evaluation.formats.paths import expecting, read_json
from pipeline.evaluation.results import EvaluationError

FOLDER = Path(__file__).parent
# What a row cannot fix, because it names files or prompts of the user's own
FILES = ("data", "images", "class_names", "image_ids", "detector", "proposals", "out", "predictions", "protocol",
         "videos", "prompts", "normal", "abnormal")  # fmt: skip


@dataclass(frozen=True)
class ProtocolRow:
    """One set of one paper's tables."""

    protocol: str
    name: str
    task: str
    title: str
    source: str
    options: dict[str, Any]
    form: str | None = None  # how the set is told from others of the task
    like: tuple[str, ...] = ()  # names of its files, as shell patterns
    files: dict[str, Any] = field(default_factory=dict)  # option -> path below the root of all sets
    where: str = ""  # where the files are published
    needs: dict[str, str] = field(default_factory=dict)  # option -> what to give, where only the user can
    differs: str = ""  # what of the published way is not followed
    published: dict[str, dict[str, float]] = field(default_factory=dict)  # model -> score -> fraction

    @property
    def reference(self) -> str:
        return f"{self.protocol}:{self.name}"


def protocol_names() -> list[str]:
    """The papers whose protocols are known."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@lru_cache(maxsize=8)
def rows_of(protocol: str) -> tuple[ProtocolRow, ...]:
    """All rows of a paper.

    Raises:
        EvaluationError: no such protocol.
    """
    if protocol not in protocol_names():
        raise EvaluationError(f"protocol is {protocol!r}; it must be one of {', '.join(protocol_names())}")
    content = yaml.safe_load((FOLDER / f"{protocol}.yaml").read_text(encoding="utf-8"))
    rows = []
    for name, values in content["rows"].items():
        values = {"source": content["source"], "options": {}} | values
        values["like"] = tuple(values.get("like", ()))
        rows.append(ProtocolRow(protocol=protocol, name=name, **values))
    return tuple(rows)


def find_row(reference: str, task: str, data: tuple[Path, ...]) -> ProtocolRow:
    """The row that ``reference`` means for ``task`` on ``data``.

    Raises:
        EvaluationError: no such protocol or row, a row of another task, or several that fit.
    """
    protocol, _, name = reference.partition(":")
    rows = rows_of(protocol)
    if name:
        row = next((row for row in rows if row.name == name), None)
        if row is None:
            raise EvaluationError(f"{protocol} has no row {name!r}; it has {', '.join(row.name for row in rows)}")
        if row.task != task:
            raise EvaluationError(f"{reference} is measured by {row.task}, not by {task}; write {row.task} MODEL")
        return row
    fitting = [row for row in rows if row.task == task]
    if not fitting:
        tasks = sorted({row.task for row in rows})
        raise EvaluationError(f"{protocol} has no row for {task}; it has some for {', '.join(tasks)}")
    if len(fitting) > 1:
        fitting = _narrowed(fitting, task, data)
    if len(fitting) != 1 and any(row.options != fitting[0].options for row in fitting):
        names = ", ".join(f"{protocol}:{row.name}" for row in fitting)
        raise EvaluationError(f"{protocol} has several rows that fit {data[0] if data else task}: say which of {names}")
    return fitting[0]


def _narrowed(rows: list[ProtocolRow], task: str, data: tuple[Path, ...]) -> list[ProtocolRow]:
    """The rows whose form is the data's, and of these the ones whose file names are; all, where none is."""
    if data and data[0].exists():
        form = _form(task, data[0])
        rows = [row for row in rows if row.form == form] or rows
    names = {part.lower() for path in data for part in path.parts[-2:]}
    return [row for row in rows if any(fnmatch.filter(names, pattern) for pattern in row.like)] or rows


def _form(task: str, path: Path) -> str | None:
    if task == "retrieval":
        return recognise(path)
    if task == "classification" and path.is_dir():
        folders = [folder.name for folder in path.iterdir() if folder.is_dir()]
        return "numbered" if folders and all(folder.isdecimal() for folder in folders) else "named"
    if task == "anomaly":
        return recognise_anomaly(path)
    if task in ("boxes", "detection") and path.is_file():
        content = read_json(path)
        if not isinstance(content, dict) or not content.get("images") or not content.get("categories"):
            return None
        with expecting(path, "COCO or LVIS instances"):
            if "neg_category_ids" in content["images"][0]:
                return "lvis"
            chinese = language_of(str(category.get("name", "")) for category in content["categories"]) == "zh"
            return "coco-zh" if chinese else "coco"
    return None


def with_protocol(reference: str, task: str, values: dict[str, Any]) -> dict[str, Any]:
    """``values`` over those of the row that ``reference`` means; ``protocol`` becomes the row's full name.

    Raises:
        EvaluationError: as :func:`find_row`; or a file that the row needs was not given.
    """
    row = find_row(reference, task, tuple(Path(path) for path in values.get("data", ())))
    for option, what in row.needs.items():
        if option not in values:
            raise EvaluationError(f"protocol {row.reference} needs --{option.replace('_', '-')}: {what}")
    return {**row.options, **values, "protocol": row.reference}


def departures(row: ProtocolRow, options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The options that are neither the row's nor, where it says nothing, the default."""
    return {
        name: value
        for name, value in options.items()
        if name not in FILES and value != row.options.get(name, defaults.get(name))
    }
