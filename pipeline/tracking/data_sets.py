"""A data set as tracking names it: what it is called, its digest, its numbers, and what it served for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.manifest import IndexProblem, Manifest, load_manifest

TRAINING, EVALUATION = "training", "evaluation"
DIGEST_LENGTH = 16  # of hexadecimal digits; MLflow keeps 36 characters


@dataclass(frozen=True)
class DataSet:
    """One folder of shards, or any file that an evaluation read."""

    name: str
    digest: str  # equal exactly for equal content, as far as the manifest tells
    source: str  # a path or URL
    context: str  # TRAINING or EVALUATION
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def profile(self) -> str:
        """The counts as JSON."""
        return json.dumps(dict(self.counts), ensure_ascii=False)


def shard_set(folder: str, context: str = TRAINING) -> DataSet:
    """A folder of indexed shards.

    Raises:
        IndexProblem: it has no readable manifest.
    """
    manifest = load_manifest(folder)
    return DataSet(_name(folder), manifest.digest[:DIGEST_LENGTH], _source(folder), context, counts_of(manifest))


def any_set(path: str | Path, context: str = EVALUATION) -> DataSet:
    """A folder of shards, or another file or folder, whose digest is that of its names and sizes."""
    try:
        return shard_set(str(path), context)
    except (IndexProblem, NotADirectoryError):  # a list of rows is a file
        pass
    path = Path(path)
    files = sorted(p for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())
    listing = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
    digest = hashlib.sha256(listing.encode("utf-8")).hexdigest()[:DIGEST_LENGTH]
    return DataSet(_name(str(path)), digest, _source(str(path)), context, {"files": len(files)})


def training_sets(folders: Sequence[str]) -> list[DataSet]:
    """The data sets of a run's settings; a folder that cannot be read is left out, since training will say so."""
    found = []
    for folder in folders:
        try:
            found.append(shard_set(folder))
        except (IndexProblem, OSError):
            continue
    return found


def counts_of(manifest: Manifest) -> dict[str, int]:
    """Shards, samples, regions, negatives, and samples by language."""
    counts = {"shards": len(manifest.shards), "samples": int(manifest.samples.sum())}
    counts |= {"regions": int(manifest.regions.sum()), "negatives": int(manifest.negatives.sum())}
    by_language = manifest.counts.sum(axis=(0, 2))
    return counts | {f"samples_{name}": int(n) for name, n in zip(manifest.languages, by_language, strict=True) if n}


def _name(folder: str) -> str:
    """The last two parts of a path: ``scenes/train``."""
    parts = [part for part in folder.rstrip("/").split("/") if part not in ("", ".")]
    return "/".join(parts[-2:]) or folder


def _source(folder: str) -> str:
    return folder if "://" in folder else str(Path(folder).resolve())
