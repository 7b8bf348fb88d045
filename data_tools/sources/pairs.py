"""Images with at most one caption each, on their way into shards: what the sources folder, img2dataset and
webdataset have in common."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from data_tools.execution.command import print_summary
from data_tools.execution.options import ExecutionOptions, options_from
from data_tools.execution.shards import Drop, ShardSource
from data_tools.execution.steps import Record, Shard, Step, run_shards
from data_tools.sources.images import ImageProblem, check_image
from data_tools.text.detection import AUTO, check_language, detect
from pipeline.base.border import BorderError, validated
from pipeline.base.languages import UNDETERMINED
from pipeline.data.images import ImageFault, image_size
from pipeline.data.schema import MAX_TEXT_LENGTH, Sample

Pairs = TypeVar("Pairs", bound="PairOptions")
CAPTION_FIELDS = ("short_caption", "long_caption")


@dataclass(frozen=True)
class PairOptions:
    """What the captions are. ``language`` may be ``auto``: told for each caption ``among`` those tags."""

    language: str
    caption_field: str = "short_caption"
    among: tuple[str, ...] = ()


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `PairOptions`."""
    add_language_arguments(parser)
    parser.add_argument(
        "--caption-field", choices=CAPTION_FIELDS, default="short_caption", help="what the captions are"
    )


def add_language_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--language and --among."""
    parser.add_argument(
        "--language",
        required=required,
        metavar="TAG",
        help="of the captions, as BCP-47 has it (en, zh, de, pt-BR), or auto: told for each one of --among",
    )
    parser.add_argument("--among", nargs="+", default=[], metavar="TAG", help="the languages that auto tells apart")


def pair_options(arguments: argparse.Namespace, kind: type[Pairs], **values: Any) -> Pairs:
    """The parsed options as a record of type ``kind``, its languages checked.

    Raises:
        ValueError: a language is no tag, or cannot be told.
    """
    among = tuple(arguments.among)
    language = check_language(arguments.language, among)
    return options_from(arguments, kind, language=language, among=among, **values)


def make_record(
    key: str, image: bytes, name: str, caption: str | None, *, options: PairOptions, source: dict[str, Any]
) -> Record | Drop:
    """One sample, upright size taken from the image; a caption that is blank or too long is left out.

    ``name`` is the file's, for messages. Where languages are told, a caption of none is a `Drop`, and a sample without
    caption has the language ``und``: undetermined.
    """
    try:
        checked = check_image(image, name, convert=True)
        width, height = image_size(checked.data)
    except (ImageProblem, ImageFault) as problem:
        return Drop(key, problem.kind, str(problem))
    caption = " ".join(caption.split()) if caption else ""
    if len(caption) > MAX_TEXT_LENGTH:
        source, caption = {**source, "caption_left_out": "too_long"}, ""
    language = options.language
    if language == AUTO:
        told = detect(caption, options.among) if caption else UNDETERMINED
        if told is None:
            return Drop(key, "language_unclear", f"{name}: {caption[:80]!r} is in none of {' '.join(options.among)}")
        language = told
    short, long = (caption or None if options.caption_field == name else None for name in CAPTION_FIELDS)
    return Record(key, checked.data, checked.extension, Sample(language, width, height, short, long, source=source))


def decode_text(data: bytes) -> str | None:
    """Text of a .txt file, or None if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def sample_key(name: str) -> str:
    """A key for the file ``name`` (without its extension): WebDataset cuts names at dots, and folders are not kept."""
    return name.strip("/").replace("/", "_").replace(".", "_").replace(" ", "_")


class UniqueKeys:
    """Gives the second and later files of one key another one, made of the whole name."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def key(self, stem: str, whole: str) -> str:
        key = sample_key(stem)
        if key in self._taken:
            key = f"{key}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
        self._taken.add(key)
        return key


class CountCaptions(Step):
    """Changes nothing; counts samples with a caption for the reports, and carries the settings."""

    version = "1"

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name, self._settings = name, settings

    def settings(self) -> dict[str, Any]:
        return self._settings

    def apply(self, records: list[Record], shard: Shard) -> list[Record | Drop]:
        for record in records:
            sample = record.sample
            shard.count("with_caption" if sample.short_caption or sample.long_caption else "without_caption")
        return list(records)


def build_pairs(
    name: str, shards: Sequence[ShardSource], options: PairOptions, out: Path, execution: ExecutionOptions
) -> int:
    """Write ``shards`` to ``out``; index them if every sample has a caption, else say what comes next."""
    if not shards:
        raise ValueError(f"nothing to read for build {name}; check the folder that you gave")
    settings: dict[str, Any] = {"language": options.language, "caption_field": options.caption_field}
    if options.among:
        settings["among"] = list(options.among)
    summary = run_shards(
        shards,
        CountCaptions(name, settings),
        out,
        executor=execution.make_executor(),
        retry_failed=execution.retry_failed,
        overwrite=execution.overwrite,
        index=False,
        title=name,
    )
    status = print_summary(summary)
    if status == 0 and not summary.samples_out:
        raise ValueError("no image could be used; the reports in --out say why")
    if status == 0 and not summary.counts["without_caption"]:
        from pipeline.data.index import index_folder  # loads torch and arrow

        index_folder(out)
    elif status == 0:
        print(
            f"{summary.counts['without_caption']} samples have no caption yet; next: "
            f"python -m data_tools captions {out} --out … (or build with --then captions)"
        )
    return status


_METADATA: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])  # whatever a download brought along


def digest(lines: Iterable[str]) -> str:
    """A short fingerprint of a list of files."""
    state = hashlib.sha256()
    for line in lines:
        state.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return state.hexdigest()[:16]


def caption_of(members: dict[str, bytes], keys: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """``(caption, metadata)`` of a sample's ``txt`` and ``json`` members: the text, else the first of ``keys``."""
    metadata: dict[str, Any] = {}
    if "json" in members:
        try:
            metadata = validated(_METADATA, members["json"], "metadata")
        except BorderError:
            metadata = {}
    text = decode_text(members["txt"]) if "txt" in members else None
    if text is None:
        text = next((metadata[key] for key in keys if isinstance(metadata.get(key), str)), None)
    return text, metadata
