"""Samples and records out of tars, one after the other: the one way for training data, evaluation and data tools.

Four steps, each on top of the one before; take the highest that fits.

``tar.scan_tar(file)``        members of an open tar: name, offset, size. Damage raises ``TarFault``.
``tar.group_members(file)``   ``(key, {extension: Member})`` of each sample.
``walk_tar(path)``            ``TarSample`` of each sample of *any* WebDataset tar; bytes are read when asked for
                              (``sample.read("cls")``), so a walk over records does not read images.
``walk_records(path)``        ``(TarSample, Sample)`` of each sample in this project's form, its record parsed.

Nothing is ever extracted, links and names that leave the tar are faults, and damage in mid-file is a fault too, where
Python's ``tarfile`` ends silently. What stands before the damage is given out first.

What to do with a fault is the caller's choice. Without ``on_fault`` the first one raises ``RecordFault``. With it the
fault is handed over and the walk goes on: a count, a line in a report, or an exception of the caller's own::

    for found, sample in walk_records(path):                      # stop at the first fault
        texts += sample_texts(sample)
    for found in walk_tar(path, faults.append):                   # note faults and go on
        if "cls" in found.members: labels[found.key] = found.read("cls").decode()
    place = found.members["jpg"].offset, found.members["jpg"].size   # to read the image later

``walk_folder`` gives the tars of a folder by name. No index is needed; ``reader.ShardReader`` reads by the index.
This module imports neither torch nor an image library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pipeline.base.border import shown
from pipeline.data.schema import IMAGE_EXTENSIONS, MAX_RECORD_BYTES, Sample, SampleError, parse_sample
from pipeline.data.tar import Member, group_members


@dataclass(frozen=True)
class Fault:
    """A sample or shard that cannot be used: what kind, where, and the sentence for people."""

    kind: str
    shard: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{shown(self.shard)}: {shown(self.key)}: {self.kind}: {self.message}"


class RecordFault(ValueError):
    """A walk met a fault and was given nobody to tell. ``fault`` is what and where."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


@dataclass(frozen=True)
class TarSample:
    """The members of one key. Valid while its walk is at it; offsets stay true of the file."""

    shard: Path
    key: str
    members: dict[str, Member]  # by extension, lower-cased: "jpg", "json", "mask.png"
    file: BinaryIO

    def read(self, extension: str) -> bytes:
        """The bytes of a member.

        Raises:
            KeyError: there is none. SampleError: a record that is too long to be one; it is not read.
        """
        member = self.members[extension]
        if extension == "json" and member.size > MAX_RECORD_BYTES:
            rule = f"the JSON member has {member.size} bytes; at most {MAX_RECORD_BYTES} are allowed"
            raise SampleError("long_record", rule, key=self.key, shard=self.shard.name)
        self.file.seek(member.offset)
        return self.file.read(member.size)

    @property
    def image_extension(self) -> str | None:
        """The extension of the sample's image; None where it has none."""
        return next((name for name in IMAGE_EXTENSIONS if name in self.members), None)

    @property
    def image(self) -> Member:
        """The place of the image. Raises ``KeyError`` where there is none; ``walk_records`` gives only samples with."""
        return self.members[self.image_extension or "image"]


OnFault = Callable[[Fault], None]


def walk_tar(
    path: str | Path, on_fault: OnFault | None = None, *, end_mark_required: bool = False
) -> Iterator[TarSample]:
    """Every sample of one tar, in the order of the file. A tar of any origin.

    Args:
        end_mark_required: a tar without its closing blocks of zeros is a fault. Most writers leave them, and without
            them a file that was cut between two members looks whole.

    Raises:
        RecordFault: at the first fault, where ``on_fault`` is None.
        OSError: the file cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        report = partial(_report, on_fault, path.name)
        for key, members in group_members(file, report, end_mark_required=end_mark_required):
            yield TarSample(path, key, members, file)


def walk_records(
    path: str | Path,
    on_fault: OnFault | None = None,
    *,
    captions_required: bool = True,
    end_mark_required: bool = False,
) -> Iterator[tuple[TarSample, Sample]]:
    """Every sample that has an image and a record that keeps the rules of ``schema``. Raises as ``walk_tar``."""
    path = Path(path)
    for found in walk_tar(path, on_fault, end_mark_required=end_mark_required):
        if found.image_extension is None or "json" not in found.members:
            absent = "image" if found.image_extension is None else "json"
            message = f"it has no {absent}, only {sorted(found.members)!r:.80}"
            _report(on_fault, path.name, "missing_member", found.key, message)
            continue
        try:
            sample = parse_sample(
                found.read("json"), key=found.key, shard=path.name, captions_required=captions_required
            )
        except SampleError as error:
            _report(on_fault, path.name, error.kind, found.key, str(error))
            continue
        yield found, sample


def walk_folder(folder: str | Path) -> list[Path]:
    """The tars of a folder by name, or the one file that was given.

    Raises:
        FileNotFoundError: no such folder, or none in it; says which.
    """
    path = Path(folder)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a .tar file or a folder that holds some")
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not shards:
        raise FileNotFoundError(f"{path} holds no .tar file; build shards into it")
    return shards


def _report(on_fault: OnFault | None, shard: str, kind: str, key: str, message: str) -> None:
    fault = Fault(kind, shard, key, message)
    if on_fault is None:
        raise RecordFault(fault)
    on_fault(fault)
