"""The manifest of a folder of shards, and the row index of one shard, as arrays.

Kept apart from the indexing so that planning, which simulations run on hundreds of thousands of shards, imports
neither torch nor an image library.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.base.constants import LANGUAGES
from pipeline.data.resolution import budget_numbers

MANIFEST_NAME = "manifest.json"
FORMAT = 1


class IndexProblem(ValueError):
    """Shards or their index are missing or do not fit; one line with the remedy."""


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
        manifest = manifest_from_json(name, json.loads(read_file(name, MANIFEST_NAME)))
    except FileNotFoundError as error:
        if "://" not in name and not Path(name).is_dir():
            raise IndexProblem(f"shard folder {name} does not exist; give an existing folder in data.shards") from error
        if "://" not in name and not any(Path(name).glob("*.tar")):
            raise IndexProblem(f"shard folder {name} holds no .tar file; build shards into it") from error
        raise IndexProblem(
            f"{name} has no {MANIFEST_NAME}; make it with `python -m data_tools index {name}`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise IndexProblem(
            f"{name}/{MANIFEST_NAME} is damaged ({error}); make it again with `python -m data_tools index {name}`"
        ) from error
    if patch_budgets is not None and tuple(patch_budgets) != manifest.patch_budgets:
        manifest = _count_again(manifest, tuple(patch_budgets))
    return manifest


def manifest_from_json(folder: str, document: dict) -> Manifest:
    """Raises ``KeyError``, ``TypeError`` or ``ValueError`` where the document is not a manifest of this format."""
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r}, this version reads {FORMAT}")
    patch_budgets, shards = tuple(document["levels"]), document["shards"]
    counts = np.zeros((len(shards), len(LANGUAGES), len(patch_budgets)), dtype=np.int32)
    for group, numbers in document["counts"].items():
        language, _, patch_budget = group.partition("/")
        counts[:, LANGUAGES.index(language), patch_budgets.index(int(patch_budget))] = numbers
    arrays = {name: np.array(document[name], dtype=np.int64) for name in ("bytes", "samples", "regions", "negatives")}
    if any(len(array) != len(shards) for array in arrays.values()):
        raise ValueError("its columns have different lengths")
    return Manifest(
        folder=folder,
        patch_budgets=patch_budgets,
        shards=shards,
        sizes=arrays["bytes"],
        sha256=document["sha256"],
        index_sha256=document["index_sha256"],
        samples=arrays["samples"],
        regions=arrays["regions"],
        negatives=arrays["negatives"],
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


def parse_index(data: bytes, shard: str) -> ShardIndex:
    """The row index of ``shard`` from the bytes of its parquet file.

    Raises:
        IndexProblem: the bytes are not such a file.
    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    try:
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        numbers = {
            name: table[name].to_numpy()
            for name in ShardIndex.__dataclass_fields__
            if name not in ("shard", "keys", "language")
        }
        language = np.array([LANGUAGES.index(name) for name in table["language"].to_pylist()], dtype=np.int64)
        return ShardIndex(shard=shard, keys=table["key"].to_pylist(), language=language, **numbers)
    except (ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise IndexProblem(
            f"the index of {shard} is damaged ({' '.join(str(error).split())[:120]}); "
            "make it again with `python -m data_tools index --force`"
        ) from error


def read_index(folder: str | Path, shard: str) -> ShardIndex:
    """The row index beside ``folder/shard``, uncached."""
    return parse_index(read_file(str(folder), index_name(shard)), shard)


def index_name(shard: str) -> str:
    return shard.removesuffix(".tar") + ".index.parquet"


def read_file(folder: str, name: str) -> bytes:
    """A small file of a local folder or fsspec URL. Raises ``FileNotFoundError``."""
    if "://" not in folder:
        return (Path(folder) / name).read_bytes()
    import fsspec

    with fsspec.open(f"{folder.rstrip('/')}/{name}", "rb") as file:
        return file.read()


def _count_again(manifest: Manifest, patch_budgets: tuple[int, ...]) -> Manifest:
    counts = [read_index(manifest.folder, shard).counts(patch_budgets) for shard in manifest.shards]
    return Manifest(**(vars(manifest) | {"patch_budgets": patch_budgets, "counts": np.stack(counts)}))
