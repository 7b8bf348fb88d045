"""The manifest of a folder of shards, and the row index of one shard, as arrays.

Kept apart from the indexing so that planning, which simulations run on hundreds of thousands of shards, imports
neither torch nor an image library.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from pydantic import AfterValidator, FailFast, Field, TypeAdapter
from typing_extensions import TypedDict

from pipeline.base.border import BorderError, one_line, shown, validated
from pipeline.base.constants import LANGUAGES
from pipeline.data.resolution import budget_numbers

MANIFEST_NAME = "manifest.json"
FORMAT = 1
MAX_MANIFEST_BYTES = 1 << 30  # about three million shards
MAX_INDEX_BYTES = 256 << 20  # of one shard's rows: some four million samples
CHUNK_BYTES = 1 << 20
MAX_PATCH_BUDGET = 1 << 20  # patches of a side of 16,384 pixels


class IndexProblem(ValueError):
    """Shards or their index are missing or do not fit; one line with the remedy."""


def _shard_name(name: str) -> str:
    """Names become paths in the shards' folder and in the cache, so they must stay there."""
    if not name.endswith(".tar") or name.startswith(".") or not name.isprintable() or "/" in name or "\\" in name:
        raise ValueError("it must be the name of a .tar file, without a folder")
    return name


def _ascending(budgets: list[int]) -> list[int]:
    if not budgets or sorted(set(budgets)) != budgets:
        raise ValueError("it must be ascending and not empty")
    return budgets


Count = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Budget = Annotated[int, Field(strict=True, ge=1, le=MAX_PATCH_BUDGET)]
Budgets = Annotated[list[Budget], FailFast(), AfterValidator(_ascending)]
Counts = Annotated[list[Count], FailFast()]


class ManifestDocument(TypedDict):
    """What manifest.json holds: columns over the shards."""

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


_DOCUMENT: TypeAdapter[ManifestDocument] = TypeAdapter(ManifestDocument)


@dataclass(frozen=True)
class Manifest:
    """One folder of shards. Arrays run over its S shards, in the order of their names."""

    folder: str  # a path or fsspec URL
    patch_budgets: tuple[int, ...]
    shards: list[str]  # S file names
    sizes: np.ndarray  # [S] bytes
    sha256: list[str]  # S, of the tars
    index_sha256: list[str]  # S, of the row indexes
    samples: np.ndarray  # [S]
    regions: np.ndarray  # [S]
    negatives: np.ndarray  # [S]
    counts: np.ndarray  # [S, languages, patch_budgets] int32, samples by LANGUAGES and patch budgets
    faults: dict[str, int]  # samples left out when the index was made, by kind


def load_manifest(folder: str | Path, patch_budgets: Sequence[int] | None = None) -> Manifest:
    """The manifest of a local folder or an fsspec URL.

    ``patch_budgets`` other than those it was counted with are counted again from all row indexes.

    Raises:
        IndexProblem: no such folder, no manifest (with the command that makes one), or an unreadable one.
    """
    name = str(folder)
    try:
        manifest = manifest_from_json(name, read_file(name, MANIFEST_NAME, MAX_MANIFEST_BYTES))
    except FileNotFoundError as error:
        if "://" not in name and not Path(name).is_dir():
            raise IndexProblem(f"shard folder {name} does not exist; give an existing folder in data.shards") from error
        if "://" not in name and not any(Path(name).glob("*.tar")):
            raise IndexProblem(f"shard folder {name} holds no .tar file; build shards into it") from error
        raise IndexProblem(
            f"{name} has no {MANIFEST_NAME}; make it with `python -m data_tools index {name}`"
        ) from error
    except BorderError as error:
        raise IndexProblem(
            f"{name}/{MANIFEST_NAME} is damaged ({error}); make it again with `python -m data_tools index {name}`"
        ) from error
    if patch_budgets is not None and tuple(patch_budgets) != manifest.patch_budgets:
        manifest = _count_again(manifest, tuple(patch_budgets))
    return manifest


def manifest_from_json(folder: str, data: bytes | dict[str, Any]) -> Manifest:
    """Raises ``BorderError`` where the JSON is not a manifest of this format, or contradicts itself."""
    document = validated(_DOCUMENT, data, "it does not fit")
    patch_budgets, shards = tuple(document["levels"]), document["shards"]
    columns = {name: document[name] for name in ("bytes", "sha256", "index_sha256", "samples", "regions", "negatives")}
    columns |= {f"counts {group}": numbers for group, numbers in document["counts"].items()}
    for name, column in columns.items():
        if len(column) != len(shards):
            raise BorderError(f"{shown(name)} has {len(column)} entries for {len(shards)} shards")
    if len(set(shards)) != len(shards):
        raise BorderError("it names a shard twice")
    groups = {f"{language}/{budget}": (at, number) for at, language in enumerate(LANGUAGES)
              for number, budget in enumerate(patch_budgets)}  # fmt: skip
    counts = np.zeros((len(shards), len(LANGUAGES), len(patch_budgets)), dtype=np.int32)
    for group, numbers in document["counts"].items():
        if group not in groups:
            raise BorderError(f"counts of {shown(group)!r}; a group is LANGUAGE/LEVEL of {list(groups)}")
        counts[:, *groups[group]] = numbers
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
    )


@dataclass(frozen=True)
class ShardIndex:
    """The rows of one shard: N samples in the order of the tar. All arrays are [N]."""

    shard: str
    keys: list[str]
    image_offset: np.ndarray
    image_length: np.ndarray
    image_crc32: np.ndarray
    json_offset: np.ndarray
    json_length: np.ndarray
    json_crc32: np.ndarray
    width: np.ndarray
    height: np.ndarray
    language: np.ndarray  # positions in LANGUAGES
    num_regions: np.ndarray
    num_negatives: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def counts(self, patch_budgets: Sequence[int]) -> np.ndarray:
        """[languages, patch_budgets] int32."""
        group = self.language * len(patch_budgets) + budget_numbers(self.width, self.height, patch_budgets)
        flat = np.bincount(group, minlength=len(LANGUAGES) * len(patch_budgets))
        return flat.reshape(len(LANGUAGES), len(patch_budgets)).astype(np.int32)

    def grouped_rows(self, patch_budgets: Sequence[int]) -> list[np.ndarray]:
        """For each language, its rows by patch budget, then by place in the tar: what a plan's numbers refer to."""
        patch_budget = budget_numbers(self.width, self.height, patch_budgets)
        order = np.argsort(patch_budget, kind="stable")
        return [order[self.language[order] == number] for number in range(len(LANGUAGES))]


def parse_index(data: bytes, shard: str, sha256: str | None = None) -> ShardIndex:
    """The row index of ``shard`` from the bytes of its parquet file.

    Args:
        sha256: what the manifest says of those bytes; None: no manifest speaks of them.

    Raises:
        IndexProblem: the bytes are not such a file, or not those that the manifest was made with.
    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    remedy = "make it again with `python -m data_tools index --force`"
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise IndexProblem(f"the index of {shown(shard)} is not the one that its manifest was made with; {remedy}")
    try:
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        return _rows(table, shard)
    except (ArrowException, OSError, KeyError, ValueError) as error:
        raise IndexProblem(f"the index of {shown(shard)} is damaged ({one_line(error)}); {remedy}") from error


def _rows(table: Any, shard: str) -> ShardIndex:
    """Raises KeyError or ValueError where a column is missing, of another type, or out of its range."""
    import pyarrow.types as types

    numbers = {}
    for name in ShardIndex.__dataclass_fields__:
        if name in ("shard", "keys", "language"):
            continue
        column = table[name]
        if not types.is_integer(column.type) or column.null_count:
            raise ValueError(
                f"{name} is of type {column.type} with {column.null_count} nulls; it must be whole numbers"
            )
        numbers[name] = column.to_numpy()
        least = 1 if name in ("width", "height") else 0
        if len(table) and int(numbers[name].min()) < least:
            raise ValueError(f"{name} is {int(numbers[name].min())}; it must be at least {least}")
    keys, languages = table["key"].to_pylist(), table["language"].to_pylist()
    if not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise ValueError("its keys must be strings, each once")
    if not set(languages) <= set(LANGUAGES):
        raise ValueError(f"its languages must be of {', '.join(LANGUAGES)}")
    language = np.array([LANGUAGES.index(name) for name in languages], dtype=np.int64)
    return ShardIndex(shard=shard, keys=keys, language=language, **numbers)


def read_index(folder: str | Path, shard: str, sha256: str | None = None) -> ShardIndex:
    """The row index beside ``folder/shard``, uncached. Raises as ``parse_index``, also where there is none."""
    try:
        return parse_index(read_file(str(folder), index_name(shard), MAX_INDEX_BYTES), shard, sha256)
    except (FileNotFoundError, BorderError) as error:
        raise IndexProblem(
            f"the index of {shown(shard)} cannot be read ({one_line(error)}); make it with `python -m data_tools index`"
        ) from error


def index_name(shard: str) -> str:
    return shard.removesuffix(".tar") + ".index.parquet"


def read_file(folder: str, name: str, max_bytes: int) -> bytes:
    """A small file of a local folder or fsspec URL. Raises ``FileNotFoundError``, or ``BorderError`` if too long."""
    if "://" not in folder:
        with (Path(folder) / name).open("rb") as file:
            return read_at_most(file, name, max_bytes)
    import fsspec

    with fsspec.open(f"{folder.rstrip('/')}/{name}", "rb") as file:
        return read_at_most(file, name, max_bytes)


def read_at_most(file: BinaryIO, name: str, max_bytes: int) -> bytes:
    """The rest of a file. Raises ``BorderError`` where that is more than ``max_bytes``, after about as many."""
    parts, left = [], max_bytes
    while part := file.read(CHUNK_BYTES):
        left -= len(part)
        if left < 0:
            raise BorderError(f"{shown(name)} has more than {max_bytes} bytes")
        parts.append(part)
    return b"".join(parts)


def _count_again(manifest: Manifest, patch_budgets: tuple[int, ...]) -> Manifest:
    counts = [
        read_index(manifest.folder, shard, digest).counts(patch_budgets)
        for shard, digest in zip(manifest.shards, manifest.index_sha256, strict=True)
    ]
    return Manifest(**(vars(manifest) | {"patch_budgets": patch_budgets, "counts": np.stack(counts)}))
