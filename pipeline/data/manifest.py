"""The manifest of a folder of shards, as arrays over shards and pieces.

``manifest.json`` is small: totals, and which file holds the columns, one Arrow file that is mapped into memory, so that
opening a million shards costs what opening a thousand does. A *piece* is a run of neighbouring samples of a shard,
about 32 MB long: what is fetched from a remote store at once. ``NAME.sizes`` holds two bytes a sample, so that samples
can be counted by other patch budgets without reading row indexes. Format 1, one JSON file, is still read.

Kept apart from the indexing so that planning, which simulations run on hundreds of thousands of shards, imports
neither torch nor an image library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import AfterValidator, FailFast, Field, TypeAdapter
from typing_extensions import TypedDict

from pipeline.base.border import BorderError, one_line, parse_json, shown, validated
from pipeline.base.files import write_bytes
from pipeline.base.languages import FIRST_LANGUAGES, Language, canonical, in_order
from pipeline.config import DataSettings
from pipeline.data.columns import Columns, PieceTable, read_columns, size_type, whole_shards
from pipeline.data.levels import ANY_CLIP, Levels
from pipeline.data.shard_index import IndexProblem, ShardIndex, index_name, parse_index, read_file, read_index

__all__ = ["IndexProblem", "Manifest", "ShardIndex", "index_name", "load_manifest", "parse_index", "read_index"]

MANIFEST_NAME = "manifest.json"
FORMAT = 2
MAX_MANIFEST_BYTES = 1 << 30  # of format 1: about three million shards
MAX_COLUMNS_BYTES = 16 << 30  # about fifty million pieces
MAX_PATCH_BUDGET = 1 << 20  # patches of a side of 16,384 pixels


def _shard_name(name: str) -> str:
    """Names become paths in the shards' folder and in the cache, so they must stay there."""
    if not name.endswith(".tar") or name.startswith(".") or not name.isprintable() or "/" in name or "\\" in name:
        raise ValueError("it must be the name of a .tar file, without a folder")
    return name


def _ascending(budgets: list[int]) -> list[int]:
    if not budgets or sorted(set(budgets)) != budgets:
        raise ValueError("it must be ascending and not empty")
    return budgets


def _ordered(languages: list[str]) -> list[str]:
    if tuple(languages) != in_order(languages):
        raise ValueError("it must begin with en and zh, and name the others after them in order, each once")
    return languages


Count = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Budget = Annotated[int, Field(strict=True, ge=1, le=MAX_PATCH_BUDGET)]
Budgets = Annotated[list[Budget], FailFast(), AfterValidator(_ascending)]
Counts = Annotated[list[Count], FailFast()]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", max_length=200)]


class ManifestOfJson(TypedDict):
    """What manifest.json held in format 1: columns over the shards."""

    format: Literal[1]
    levels: Budgets
    shards: Annotated[list[Annotated[str, AfterValidator(_shard_name)]], FailFast()]
    bytes: Annotated[list[Annotated[int, Field(strict=True, ge=0, le=2**62)]], FailFast()]
    sha256: Annotated[list[Digest], FailFast()]
    index_sha256: Annotated[list[Digest], FailFast()]
    samples: Counts
    regions: Counts
    negatives: Counts
    counts: dict[str, Counts]
    faults: dict[str, Count]


class ManifestDocument(TypedDict):
    """What manifest.json holds: totals, and the file with the columns."""

    format: Literal[2]
    patch_budgets: Budgets
    languages: NotRequired[Annotated[list[Language], FailFast(), AfterValidator(_ordered)]]  # absent: English, Chinese
    columns: FileName
    columns_sha256: Digest
    sizes: FileName
    digest: Digest
    shards: Count
    bytes: Annotated[int, Field(strict=True, ge=0)]
    samples: Annotated[int, Field(strict=True, ge=0)]
    clips: NotRequired[Annotated[int, Field(strict=True, ge=0)]]  # of the samples; absent: none
    regions: Annotated[int, Field(strict=True, ge=0)]
    negatives: Annotated[int, Field(strict=True, ge=0)]
    counts: dict[str, Annotated[int, Field(strict=True, ge=0)]]
    faults: dict[str, Count]


_OF_JSON: TypeAdapter[ManifestOfJson] = TypeAdapter(ManifestOfJson)
_DOCUMENT: TypeAdapter[ManifestDocument] = TypeAdapter(ManifestDocument)


@dataclass(frozen=True)
class Manifest:
    """One folder of shards. Arrays run over its S shards, in the order of their names."""

    folder: str  # a path or fsspec URL
    patch_budgets: tuple[int, ...]
    shards: Sequence[str]  # S file names
    sizes: np.ndarray  # [S] bytes
    sha256: Sequence[str]  # S, of the tars
    index_sha256: Sequence[str]  # S, of the row indexes
    samples: np.ndarray  # [S]
    regions: np.ndarray  # [S]
    negatives: np.ndarray  # [S]
    counts: np.ndarray  # [S, languages, levels] int32, samples
    faults: dict[str, int]  # samples left out when the index was made, by kind
    pieces: PieceTable
    sizes_file: str | None = None  # the samples' sizes, for counting by other patch budgets
    digest: str = ""  # of all shards' checksums: copies of one data set have the same
    languages: tuple[str, ...] = FIRST_LANGUAGES
    clips: int = 0  # of the samples
    clip_frames: tuple[
        int, ...
    ] = ()  # by which clips are counted; as stored, they are in one column whatever they have

    @property
    def levels(self) -> Levels:
        """The last axis of ``counts``."""
        return Levels(self.patch_budgets, self.clip_frames)

    def by_budget(self) -> np.ndarray:
        """[patch_budgets] samples, clips among them."""
        return self.counts.sum((0, 1), dtype=np.int64).reshape(-1, len(self.patch_budgets)).sum(0)

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", hashlib.sha256("".join(self.sha256).encode("ascii")).hexdigest())


def load_manifests(folders: Sequence[str], settings: DataSettings) -> list[Manifest]:
    """Those of folders as training counts them, at its patch budgets and numbers of frames. Raises as the next."""
    return [load_manifest(folder, settings.patch_budgets, clip_frames=settings.clip_frames) for folder in folders]


def load_manifest(
    folder: str | Path,
    patch_budgets: Sequence[int] | None = None,
    cache_folder: str | Path | None = None,
    clip_frames: Sequence[int] | None = None,
) -> Manifest:
    """The manifest of a local folder or an fsspec URL.

    Args:
        patch_budgets: other ones than samples were counted by are counted now, from two bytes a sample; where the
            manifest is of format 1, from all row indexes.
        cache_folder: where the columns of a remote folder are kept, so that the processes of a machine fetch and hold
            them once. None: in memory.
        clip_frames: the numbers of frames at which clips are trained; None: nobody asks, clips are in one column.

    Raises:
        IndexProblem: no such folder, no manifest (with the command that makes one), an unreadable one, or clips where
            ``clip_frames`` is empty.
    """
    name = str(folder)
    try:
        manifest = _read(name, cache_folder)
    except FileNotFoundError as error:
        if "://" not in name and not Path(name).is_dir():
            raise IndexProblem(f"shard folder {name} does not exist; give an existing folder in data.shards") from error
        if "://" not in name and not any(Path(name).glob("*.tar")):
            raise IndexProblem(f"shard folder {name} holds no .tar file; build shards into it") from error
        missing = Path(str(error.filename or MANIFEST_NAME)).name
        raise IndexProblem(f"{name} has no {missing}; make it with `python -m data_tools index {name}`") from error
    except BorderError as error:
        raise IndexProblem(
            f"{name}/{MANIFEST_NAME} is damaged ({error}); make it again with `python -m data_tools index {name}`"
        ) from error
    if manifest.clips and clip_frames is not None and not clip_frames:
        raise IndexProblem(
            f"{name} holds {manifest.clips} clips, and data.clip_frames is empty; name the numbers of frames at which "
            "clips are trained (data.clip_frames=[8]), or leave this folder out of data.shards"
        )
    levels = Levels(
        tuple(patch_budgets) if patch_budgets is not None else manifest.patch_budgets,
        tuple(clip_frames) if clip_frames is not None else manifest.clip_frames,
    )
    return manifest if levels == manifest.levels else _count_again(manifest, levels)


def _read(folder: str, cache_folder: str | Path | None) -> Manifest:
    data = parse_json(read_file(folder, MANIFEST_NAME, MAX_MANIFEST_BYTES))
    if isinstance(data, dict) and data.get("format") == 1:
        return manifest_from_json(folder, data)
    document = validated(_DOCUMENT, data, "it does not fit")
    source = _columns_file(folder, document["columns"], document["columns_sha256"], cache_folder)
    languages = document.get("languages", FIRST_LANGUAGES)
    levels = Levels(tuple(document["patch_budgets"]), ANY_CLIP if document.get("clips") else ())
    columns = read_columns(source, document["shards"], len(languages), len(levels))
    return manifest_from_columns(folder, document, columns)


def manifest_from_columns(folder: str, document: ManifestDocument, columns: Columns) -> Manifest:
    """A manifest of format 2 from its parts."""
    return Manifest(
        folder=folder,
        patch_budgets=tuple(document["patch_budgets"]),
        shards=columns.names,
        sizes=columns.numbers["bytes"],
        sha256=columns.sha256,
        index_sha256=columns.index_sha256,
        samples=columns.numbers["samples"],
        regions=columns.numbers["regions"],
        negatives=columns.numbers["negatives"],
        counts=columns.counts,
        faults=document["faults"],
        pieces=columns.pieces,
        sizes_file=document["sizes"],
        digest=document["digest"],
        languages=tuple(document.get("languages", FIRST_LANGUAGES)),
        clips=document.get("clips", 0),
        clip_frames=ANY_CLIP if document.get("clips") else (),
    )


def _columns_file(folder: str, name: str, sha256: str, cache_folder: str | Path | None) -> Path | bytes:
    """The columns' file where it can be mapped into memory, else its bytes. Raises BorderError for other bytes."""
    remote = "://" in folder
    if remote and cache_folder is None:
        data = read_file(folder, name, MAX_COLUMNS_BYTES)
        _compare(name, hashlib.sha256(data).hexdigest(), sha256)
        return data
    path = Path(cache_folder or "", f"{sha256[:32]}.columns") if remote else Path(folder, name)
    if remote and (not path.is_file() or _digest_of(path) != sha256):
        data = read_file(folder, name, MAX_COLUMNS_BYTES)
        _compare(name, hashlib.sha256(data).hexdigest(), sha256)
        write_bytes(path, data)
    elif not remote:
        _compare(str(path), _digest_of(path), sha256)
    return path


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise BorderError(f"{shown(name)} has sha256 {found[:12]}…, not {expected[:12]}…")


def manifest_from_json(folder: str, data: bytes | dict[str, Any]) -> Manifest:
    """A manifest of format 1. Raises ``BorderError`` where the JSON is not one, or contradicts itself."""
    document = validated(_OF_JSON, data, "it does not fit")
    patch_budgets, shards = tuple(document["levels"]), document["shards"]
    columns = {name: document[name] for name in ("bytes", "sha256", "index_sha256", "samples", "regions", "negatives")}
    columns |= {f"counts {group}": numbers for group, numbers in document["counts"].items()}
    for name, column in columns.items():
        if len(column) != len(shards):
            raise BorderError(f"{shown(name)} has {len(column)} entries for {len(shards)} shards")
    if len(set(shards)) != len(shards):
        raise BorderError("it names a shard twice")
    groups = {group: _group(group, patch_budgets) for group in document["counts"]}
    languages = in_order(language for language, _ in groups.values())
    counts = np.zeros((len(shards), len(languages), len(patch_budgets)), dtype=np.int32)
    for group, (language, number) in groups.items():
        counts[:, languages.index(language), number] = document["counts"][group]
    samples = np.array(document["samples"], dtype=np.int64)
    if wrong := np.flatnonzero(counts.sum((1, 2), dtype=np.int64) != samples).tolist():
        name, sum_of = shards[wrong[0]], int(counts[wrong[0]].sum())
        raise BorderError(f"the counts of {name} add up to {sum_of}, it has {samples[wrong[0]]} samples")
    return Manifest(
        folder=folder,
        patch_budgets=patch_budgets,
        shards=shards,
        sizes=np.array(document["bytes"], dtype=np.int64),
        sha256=document["sha256"],
        index_sha256=document["index_sha256"],
        samples=samples,
        regions=np.array(document["regions"], dtype=np.int64),
        negatives=np.array(document["negatives"], dtype=np.int64),
        counts=counts,
        faults=document["faults"],
        pieces=whole_shards(np.array(document["bytes"], dtype=np.int64), counts),
        languages=languages,
    )


def _group(group: str, patch_budgets: Sequence[int]) -> tuple[str, int]:
    """The language, and the number of the patch budget, of a name in ``counts``."""
    tag, _, budget = group.partition("/")
    try:
        return canonical(tag), [str(known) for known in patch_budgets].index(budget)
    except ValueError as error:
        raise BorderError(
            f"counts of {shown(group)!r}; a group is LANGUAGE/LEVEL of a BCP-47 tag and one of {list(patch_budgets)}"
        ) from error


def _count_again(manifest: Manifest, levels: Levels) -> Manifest:
    """The same manifest, its samples counted by other patch budgets and numbers of frames."""
    manifest = replace(manifest, patch_budgets=levels.patch_budgets, clip_frames=levels.clip_frames)
    if manifest.sizes_file is None:
        indexes = zip(manifest.shards, manifest.index_sha256, strict=True)
        rows = (read_index(manifest.folder, shard, sha) for shard, sha in indexes)
        counts = np.stack([index.counts(levels, manifest.languages) for index in rows])
        return replace(manifest, counts=counts, pieces=replace(manifest.pieces, counts=counts))
    where = f"{manifest.folder}/{manifest.sizes_file}"
    total, code = int(manifest.samples.sum()), size_type(len(manifest.languages), manifest.clips > 0)
    try:
        data = read_file(manifest.folder, manifest.sizes_file, total * code.itemsize)
    except (FileNotFoundError, BorderError) as error:
        data = b""
        problem = one_line(error)
    else:
        problem = f"it holds {len(data)} bytes, not {code.itemsize} for each of {total} samples"
    if len(data) != total * code.itemsize:
        raise IndexProblem(
            f"{where} cannot be read ({problem}); make it again with `python -m data_tools index {manifest.folder}`"
        )
    codes = np.frombuffer(data, dtype=code)
    pieces = manifest.pieces.counted(codes, manifest.samples, levels, len(manifest.languages))
    counts = np.add.reduceat(pieces.counts, pieces.first[:-1], axis=0, dtype=np.int32)
    return replace(manifest, counts=counts, pieces=pieces)


def aligned_counts(manifests: Sequence[Manifest]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """The languages of all manifests in one order, and each manifest's counts [S, languages, levels] by it."""
    languages = in_order(name for manifest in manifests for name in manifest.languages)
    aligned = []
    for manifest in manifests:
        counts = manifest.counts
        if manifest.languages != languages:
            counts = np.zeros((len(manifest.shards), len(languages), len(manifest.levels)), dtype=np.int32)
            counts[:, [languages.index(name) for name in manifest.languages]] = manifest.counts
        aligned.append(counts)
    return languages, aligned
