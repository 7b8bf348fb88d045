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

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pipeline.base.border import BorderError, read_yaml, shown, validated
from pipeline.evaluation.options.base import TaskOptions, make_options
from pipeline.evaluation.protocols.rows import ProtocolRow, rows_of
from pipeline.evaluation.registry import find_task
from pipeline.evaluation.results import EvaluationError

FOLDER = Path(__file__).parent
MAX_ROWS = 10_000  # assumption: a hundred times the largest suite
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


Name = Annotated[str, Field(max_length=200)]
OneFile = Annotated[str, Field(pattern=r"^[^\x00]+$", max_length=4096)]
Files = OneFile | list[OneFile] | None


class _Row(BaseModel):
    """A row's own keys and files; its other options are checked by its task."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True)

    name: Name | None = None
    task: Name | None = None
    protocol: Name | None = None
    scores: list[Name] | None = None
    data: Files = None
    images: Files = None
    class_names: Files = None
    image_ids: Files = None
    detector: Files = None
    proposals: Files = None


class _File(BaseModel):
    """A suite's YAML."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    name: Name | None = None
    root: OneFile | None = None
    rows: list[_Row] = Field(min_length=1, max_length=MAX_ROWS)


_FILE: TypeAdapter[_File] = TypeAdapter(_File)


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
        content = validated(_FILE, read_yaml(path), shown(path), "a suite has name, root and rows")
    except BorderError as error:
        raise EvaluationError(str(error)) from error
    base = root or (Path(content.root) if content.root else path.parent if path.parent != FOLDER else Path())
    rows: list[SuiteRow] = []
    for number, entry in enumerate(content.rows):
        rows += _rows(entry.model_dump(exclude_none=True), base, f"{shown(path)}: rows[{number}]")
    names = [row.name for row in rows]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise EvaluationError(f"{path}: two rows are called {doubled[0]!r}; give one another name")
    return Suite(content.name or path.stem, tuple(rows))


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
