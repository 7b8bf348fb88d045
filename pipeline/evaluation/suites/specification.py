"""A suite's YAML file: its rows, from published protocols or of one's own, and which of their files are there.

name: my table
root: /data                      # what relative paths are below; --root overrides it
rows:
  - protocol: fgclip2            # every row of a paper
  - protocol: fgclip2:coco       # one of them, its files elsewhere
    images: coco/2017/val
  - name: my boxes               # a row of one's own: a task and its options
    task: boxes
    data: mine/instances.json
    scores: [boxes_top1]         # what the table shows (default: the task's main ones)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.evaluation.options.base import TaskOptions, make_options
from pipeline.evaluation.protocols.rows import ProtocolRow, rows_of
from pipeline.evaluation.registry import find_task
from pipeline.evaluation.results import EvaluationError

FOLDER = Path(__file__).parent
PATHS = ("data", "images", "class_names", "image_ids", "detector", "proposals")
PACKAGES = ("open_clip", "name")  # what stands for a file without being one
MAIN_SCORES = {
    "retrieval": ("i2t_r1", "t2i_r1"),
    "boxes": ("boxes_top1",),
    "classification": ("top1",),
    "detection": ("fused/ap", "fused/ap_rare", "fused/ap_common", "fused/ap_frequent"),
    "segmentation": ("miou",),
    "scenes": ("hard", "medium", "easy", "trivial", "boxes_top1", "i2t_r1", "t2i_r1"),
}  # of other tasks: all


@dataclass(frozen=True)
class SuiteRow:
    """One set: the task with its options, or the file that is missing."""

    name: str
    task: str
    values: dict[str, Any]
    scores: tuple[str, ...]  # that the table shows; () all
    missing: tuple[str, ...] = ()  # files that are not there
    where: str = ""  # where they are published
    published: dict[str, dict[str, float]] = field(default_factory=dict)

    def options(self) -> TaskOptions:
        """The options, checked. Raises EvaluationError."""
        return make_options(find_task(self.task).options(), self.task, self.values)


@dataclass(frozen=True)
class Suite:
    name: str
    rows: tuple[SuiteRow, ...]


def suite_names() -> list[str]:
    """Those that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_suite(source: str, root: Path | None = None) -> Suite:
    """The suite of a YAML file, or the project's own of that name.

    Raises:
        EvaluationError: no such file, a key that is not known, a row without task or protocol, two rows of one name.
    """
    path = FOLDER / f"{source}.yaml" if source in suite_names() else Path(source)
    if not path.is_file():
        raise EvaluationError(f"suite {source} is no file; give one, or {', '.join(suite_names())}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} is not YAML in UTF-8: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("rows"), list) or not content["rows"]:
        raise EvaluationError(f"{path} holds no rows; write name, root and a list of rows")
    if unknown := sorted(set(content) - {"name", "root", "rows"}):
        raise EvaluationError(f"{path}: unknown key {unknown[0]!r}; a suite has name, root and rows")
    base = root or (Path(content["root"]) if content.get("root") else path.parent if path.parent != FOLDER else Path())
    rows: list[SuiteRow] = []
    for number, entry in enumerate(content["rows"]):
        if not isinstance(entry, Mapping):
            raise EvaluationError(f"{path}: rows[{number}] is a {type(entry).__name__}; it must be a mapping")
        rows += _rows(dict(entry), base, f"{path}: rows[{number}]")
    names = [row.name for row in rows]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise EvaluationError(f"{path}: two rows are called {doubled[0]!r}; give one another name")
    return Suite(str(content.get("name", path.stem)), tuple(rows))


def _rows(entry: dict[str, Any], base: Path, where: str) -> list[SuiteRow]:
    reference = entry.get("protocol")
    if reference is None:
        if "task" not in entry or "name" not in entry:
            raise EvaluationError(f"{where} has no protocol; a row of one's own needs name and task")
        return [_row(entry.pop("name"), entry.pop("task"), entry, base)]
    protocol, _, name = str(reference).partition(":")
    chosen = [row for row in rows_of(protocol) if name in ("", row.name)]
    if not chosen:
        raise EvaluationError(f"{where}: {protocol} has no row {name!r}; see the rows in protocols/{protocol}.yaml")
    if not name and set(entry) - {"protocol"}:
        raise EvaluationError(f"{where}: options are given to every row of {protocol}; name one, {protocol}:ROW")
    return [_published(row, entry, base) for row in chosen]


def _published(row: ProtocolRow, entry: dict[str, Any], base: Path) -> SuiteRow:
    values = {**row.files, **entry, "protocol": row.reference}
    name = values.pop("name", row.name)
    return _row(name, row.task, values, base, row)


def _row(name: str, task: str, values: dict[str, Any], base: Path, published: ProtocolRow | None = None) -> SuiteRow:
    find_task(task)
    scores = tuple(values.pop("scores", MAIN_SCORES.get(task, ())))
    missing = []
    for option in PATHS:
        if values.get(option) is None:
            continue
        given = values[option] if isinstance(values[option], list) else [values[option]]
        placed = [Path(one) if one in PACKAGES else base / str(one) for one in given]
        missing += [str(one) for one in placed if str(one) not in PACKAGES and not one.exists()]
        values[option] = placed if option == "data" else placed[0]
    values.setdefault("data", [])
    return SuiteRow(
        name,
        task,
        values,
        scores,
        tuple(missing),
        published.where if published else "",
        published.published if published else {},
    )
