"""Evaluation rows from this project's own shards: a tar is walked header by header, images stay where they are."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.schema import IMAGE_EXTENSIONS, Sample, SampleError, parse_sample
from pipeline.evaluation.formats.items import ImageItem
from pipeline.evaluation.results import EvaluationError


@dataclass(frozen=True)
class ShardSample:
    """A sample's record and the places of its image and of its class mask (None: it has none)."""

    image: ImageItem
    sample: Sample
    mask: ImageItem | None = None


@dataclass
class ShardFolder:
    """All samples of a folder of tars, in the order of the files. ``faults``: (reason, place) of those left out."""

    samples: list[ShardSample]
    faults: list[tuple[str, str]] = field(default_factory=list)

    def by_key(self) -> dict[str, ImageItem]:
        return {found.image.key: found.image for found in self.samples}


def read_shards(folder: str | Path) -> ShardFolder:
    """The samples of every ``*.tar`` below ``folder`` itself.

    Raises:
        EvaluationError: no such folder, no tar in it, or a file that is no tar.
    """
    folder = Path(folder)
    tars = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not tars:
        raise EvaluationError(f"{folder} holds no shard (*.tar); give a folder that data_tools wrote")
    found = ShardFolder([])
    for path in tars:
        try:
            with tarfile.open(path, "r:") as archive:
                _read_shard(path, archive, found)
        except tarfile.TarError as error:
            raise EvaluationError(
                f"{path} is not a whole tar ({error}); run data_tools verify on the folder"
            ) from error
    return found


def _read_shard(path: Path, archive: tarfile.TarFile, found: ShardFolder) -> None:
    parts: dict[str, dict[str, ImageItem]] = {}
    for member in archive:
        if member.isfile():
            key, _, extension = member.name.rpartition("/")[2].partition(".")
            place = ImageItem(key, path, member.offset_data, member.size)
            kind = "image" if extension.lower() in IMAGE_EXTENSIONS else extension.lower()
            parts.setdefault(key, {})[kind] = place
    for key, members in parts.items():
        if "image" not in members or "json" not in members:
            missing = "image" if "image" not in members else "json"
            found.faults.append((f"missing_{missing}", f"{path.name}: {key}"))
            continue
        try:
            sample = parse_sample(members["json"].read(), key=key, shard=path.name)
        except SampleError as error:
            found.faults.append((error.kind, str(error)))
            continue
        found.samples.append(ShardSample(members["image"], sample, members.get("mask.png")))
