"""Evaluation rows from this project's own shards: records are read, images stay where they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.records import Fault, walk_folder, walk_records
from pipeline.data.schema import Sample
from pipeline.data.tar import Member
from pipeline.evaluation.formats.items import ImageItem
from pipeline.evaluation.results import EvaluationError

# What is wrong with the tar and not with one of its samples: the rest of it cannot be read
DAMAGE = ("empty_shard", "damaged_header", "truncated_shard")


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
        return {one.image.key: one.image for one in self.samples}


def read_shards(folder: str | Path) -> ShardFolder:
    """The samples of every ``*.tar`` below ``folder`` itself.

    Raises:
        EvaluationError: no such folder, no tar in it, or a file that is no whole tar.
    """
    try:
        tars = walk_folder(folder)
    except FileNotFoundError as error:
        raise EvaluationError(f"{folder} holds no shard (*.tar); give a folder that data_tools wrote") from error
    result = ShardFolder([])

    def note(fault: Fault) -> None:
        stop_at_damage(fault, Path(folder))
        result.faults.append((fault.kind, str(fault)))

    for path in tars:
        for found, sample in walk_records(path, note):
            mask = found.members.get("mask.png")
            image = item_of(found.key, path, found.image)
            result.samples.append(ShardSample(image, sample, item_of(found.key, path, mask) if mask else None))
    return result


def item_of(key: str, path: Path, member: Member) -> ImageItem:
    """The place of a member of a tar."""
    return ImageItem(key.rpartition("/")[2], path, member.offset, member.size)


def stop_at_damage(fault: Fault, folder: Path) -> None:
    """Raises EvaluationError where the fault is the tar's own."""
    if fault.kind in DAMAGE:
        raise EvaluationError(
            f"{folder / fault.shard} is not a whole tar ({fault.message}); run data_tools verify on the folder, or "
            "download it again"
        )
