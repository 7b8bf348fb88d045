"""Shards from a table of images and captions: CSV, TSV, JSON lines, Parquet, or a data set of Hugging Face on disk.

examples:
  python -m data_tools build table --table pairs.csv --image file --short-caption text --language en --out shards
  python -m data_tools build table --table products.parquet --image photo --short-caption title \\
      --long-caption description --language-column lang --keep sku licence --held-out 0.05 --out shards
  python -m data_tools build table --table regions.jsonl --image image --short-caption caption --boxes boxes \\
      --phrases phrases --negatives negatives --language auto --among en de --out shards

An image is a path below --images (default: the table's folder), bytes, or the Image feature of datasets; TIFF, BMP and
GIF are stored as PNG. Columns that have the names of the record's own parts (image, short_caption, language, regions,
source, key …) need no option, so what `python -m data_tools export` wrote is read as it is. Every row that is left out
is in OUT/reports with its reason. With --held-out, OUT/train and OUT/held-out are written; rows of one image stay on
one side.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.execution.command import print_summary
from data_tools.execution.interface import FunctionStep
from data_tools.execution.options import ExecutionOptions, options_from
from data_tools.execution.shard_work import WORK
from data_tools.execution.shards import Drop
from data_tools.execution.steps import run_shards
from data_tools.shard_size import ShardSize, add_shard_size_arguments, mean_of, probes, shard_size
from data_tools.shards import Record
from data_tools.sources.pairs import add_language_arguments
from data_tools.sources.table_rows import Columns, RowReader
from data_tools.text.detection import check_language

PARTS: tuple[str, ...] = ("image", "short_caption", "long_caption", "regions", "boxes", "phrases")
PARTS += ("negatives", "categories", "key")
KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}
NUMBER_TYPES = ("int", "uint", "float", "double", "bool", "decimal")


@dataclass(frozen=True)
class TableOptions:
    """The table, which column is what, and how its rows become shards."""

    table: tuple[Path, ...]
    columns: tuple[tuple[str, str | None], ...]
    images: Path | None = None
    language: str | None = None
    language_column: str | None = None
    among: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    box_unit: str = "pixels"
    box_format: str = "xyxy"
    held_out: float = 0.0
    split: str = "train"
    streaming: bool = False
    size: ShardSize = ShardSize()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", nargs="+", required=True, type=Path, metavar="FILE", help="files, or one folder")
    parser.add_argument("--images", type=Path, help="folder that paths of images start from (default: the table's)")
    group = parser.add_argument_group("columns")
    for part in PARTS:
        group.add_argument("--" + part.replace("_", "-"), metavar="COLUMN")
    group.add_argument("--source-column", metavar="COLUMN", help="of provenance, objects or their JSON")
    group.add_argument("--language-column", metavar="COLUMN", help="of language tags, instead of --language")
    group.add_argument("--keep", nargs="+", default=[], metavar="COLUMN", help="to keep in the records' source")
    add_language_arguments(parser, required=False)
    parser.add_argument("--box-unit", choices=["pixels", "fractions"], default="pixels", help="(default: pixels)")
    parser.add_argument("--box-format", choices=["xyxy", "xywh"], default="xyxy", help="(default: xyxy)")
    parser.add_argument("--held-out", type=float, default=0.0, metavar="SHARE", help="of the images (default: 0)")
    parser.add_argument("--split", default="train", help="of a data set on disk (default: train)")
    parser.add_argument(
        "--streaming", action="store_true", help="read file by file without a copy on disk; a shard for each file"
    )
    add_shard_size_arguments(parser)


def read_options(arguments: argparse.Namespace) -> TableOptions:
    """The parsed options as a record.

    Raises:
        ValueError: a file is missing, a number out of its range, or a language no tag.
    """
    columns = (*((part, getattr(arguments, part)) for part in PARTS), ("source", arguments.source_column))
    among, language = tuple(arguments.among), arguments.language
    if language is not None:
        language = check_language(language, among)
    options = options_from(
        arguments, TableOptions, columns=columns, language=language, among=among, keep=tuple(arguments.keep),
        table=tuple(arguments.table), size=shard_size(arguments),
    )  # fmt: skip
    for path in (*options.table, *([options.images] if options.images else [])):
        if not path.exists():
            raise ValueError(f"{path} does not exist; give an existing file or folder")
    if not 0 <= options.held_out < 1:
        raise ValueError(f"--held-out is {options.held_out}; it must be a share from 0 to below 1")
    return options


@dataclass(frozen=True)
class TableData:
    """Where the rows are; picklable, so that each worker opens them for itself."""

    files: tuple[str, ...]
    kind: str
    split: str
    cache: str
    streaming: bool

    def open(self) -> Any:
        """The data set, its images not decoded."""
        import datasets  # half a second that --help does without

        datasets.disable_progress_bars()
        if self.kind == "saved":
            found = datasets.load_from_disk(self.files[0])
            found = found[self.split] if isinstance(found, datasets.DatasetDict) else found
        else:
            more: dict[str, Any] = {"sep": "\t"} if self.files[0].endswith(".tsv") else {}
            if self.kind == "csv":
                more["keep_default_na"] = False  # "NA" and "null" are captions as good as any
            found = datasets.load_dataset(
                self.kind,
                data_files=list(self.files),
                split="train",
                cache_dir=self.cache,
                streaming=self.streaming,
                **more,
            )
        for name, feature in (found.features or {}).items():
            if isinstance(feature, datasets.Image):
                found = found.cast_column(name, datasets.Image(decode=False))
        return found

    def rows_and_columns(self) -> tuple[Any, list[str]]:
        """The data set, and the names of its columns.

        Raises:
            ValueError: it cannot be read.
        """
        from datasets.exceptions import DatasetGenerationError  # as in `open`

        try:
            found = self.open()
        except (DatasetGenerationError, ValueError, OSError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise ValueError(f"{self.files[0]} cannot be read as {self.kind} ({reason})") from error
        return found, list(found.features or next(iter(found), {}))


@dataclass(frozen=True)
class TableShard:
    """Rows ``first`` to before ``last`` (None: to the end of a stream), those of one side of the split."""

    name: str
    data: TableData
    reader: RowReader
    first: int
    last: int | None
    held_out: float
    wants_held_out: bool

    def identity(self) -> dict[str, Any]:
        sizes = [[os.path.basename(path), _bytes(Path(path))] for path in self.data.files]
        return {"files": sizes, "first": self.first, "last": self.last}

    def changed_at(self) -> float:
        return max(os.stat(path).st_mtime for path in self.data.files)

    def records(self) -> Iterator[Record | Drop]:
        seen: set[str] = set()
        found = self.data.open()
        rows = found if self.last is None else found.select(range(self.first, self.last))
        for number, row in enumerate(rows, start=self.first):
            if self.held_out and (place_of(self.reader.image_name(row)) < self.held_out) != self.wants_held_out:
                continue
            record = self.reader.record(row, number)
            if isinstance(record, Record) and record.key in seen:
                record = Drop(record.key, "duplicate_key", f"row {number}: an earlier row has this key")
            seen.add(record.key)
            yield record


def build(options: TableOptions, out: Path, execution: ExecutionOptions) -> int:
    """Write the rows to ``out``, or to its folders train and held-out.

    Raises:
        ValueError: the table cannot be read, or a column is missing or of another type.
    """
    files, kind = table_files(options.table)
    cache = str(out / WORK / "table")
    data = TableData(files, kind, options.split, cache, options.streaming)
    columns, number_of_rows = _checked(data, options)
    images = options.images or (Path(files[0]) if kind == "saved" else Path(files[0]).parent)
    reader = RowReader(
        columns, options.table[0].stem, images, options.language, options.among, options.box_unit, options.box_format
    )
    parts = list(_parts(data, options.size, reader, number_of_rows))
    sides = [("train", False), ("held-out", True)] if options.held_out else [("", False)]
    settings = {"columns": {k: v for k, v in vars(columns).items() if v}, "language": options.language,
                "among": list(options.among), "boxes": f"{options.box_format} {options.box_unit}",
                "held_out": options.held_out}  # fmt: skip
    status = 0
    for side, wants_held_out in sides:
        shards = [
            TableShard(f"{side or 'table'}-{i:06d}", part, reader, first, last, options.held_out, wants_held_out)
            for i, (part, first, last) in enumerate(parts)
        ]
        summary = run_shards(
            shards, FunctionStep("table", "1", _as_it_is, settings), out / side, executor=execution.make_executor(),
            retry_failed=execution.retry_failed, overwrite=execution.overwrite, title=side or "table",
        )  # fmt: skip
        status = print_summary(summary) or status
        if not summary.unfinished and not summary.samples_out and not wants_held_out:
            raise ValueError(f"no row could be used; {out / side / 'reports'} name the reason of each")
    return status


def table_files(tables: tuple[Path, ...]) -> tuple[tuple[str, ...], str]:
    """The files of ``--table``, and of what kind they are.

    Raises:
        ValueError: they are of several kinds, or of none.
    """
    paths = list(tables)
    if len(paths) == 1 and paths[0].is_dir():
        if any((paths[0] / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
            return (str(paths[0]),), "saved"
        paths = sorted(path for path in paths[0].rglob("*") if path.suffix in KINDS and path.is_file())
    kinds = {KINDS.get(path.suffix.lower(), "") for path in paths}
    if len(kinds) != 1 or "" in kinds:
        named = ", ".join(sorted({path.suffix or path.name for path in paths})) or "nothing"
        raise ValueError(f"--table names {named}; give files of one kind of {', '.join(KINDS)}, or a data set's folder")
    return tuple(str(path) for path in paths), kinds.pop()


def _checked(data: TableData, options: TableOptions) -> tuple[Columns, int]:
    """The columns, and the number of rows; 0 where they are streamed."""
    found, names = data.rows_and_columns()
    features = found.features or {}
    asked = dict(options.columns)
    columns = Columns.chosen({**asked, "language": options.language_column}, options.keep, names)
    if options.language is not None and options.language_column is None:
        columns = Columns(**{**vars(columns), "language": None})
    for part in ("short_caption", "long_caption"):
        column = getattr(columns, part)
        kind = str(getattr(features.get(column), "dtype", ""))
        if column is not None and kind.startswith(NUMBER_TYPES):
            raise ValueError(f"column {column!r} for {part} holds numbers ({kind}); a caption is text, name another")
    if columns.language is None and options.language is None:
        raise ValueError("which language are the captions in? Give --language TAG, or --language-column COLUMN")
    return columns, 0 if data.streaming else len(found)


def _parts(
    data: TableData, size: ShardSize, reader: RowReader, rows: int
) -> Iterator[tuple[TableData, int, int | None]]:
    if data.streaming:
        for file in data.files:
            yield TableData((file,), data.kind, data.split, data.cache, True), 0, None
        return
    some = data.open().select(probes(rows))
    most = size.most_samples(rows, mean_of(reader.image_bytes(row) for row in some))
    for first in range(0, rows, most):
        yield data, first, min(first + most, rows)


def _as_it_is(record: Record) -> Record | Drop:
    return record


def place_of(name: bytes) -> float:
    """A number from 0 to 1 that depends on the image's name or bytes alone."""
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
