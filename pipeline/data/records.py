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
    for found, sample in walk_records(path, clips=True): ...      # clips, too: found.frame_members()

``walk_folder`` gives the tars of a folder by name. No index is needed; ``reader.ShardReader`` reads by the index.
This module imports neither torch nor an image library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pipeline.base.border import shown
from pipeline.data.schema import IMAGE_EXTENSIONS, MAX_RECORD_BYTES, Sample, SampleError, parse_sample
from pipeline.data.tar import Member, group_members

_FRAME = re.compile(rf"([0-9]{{3,9}})\.(?:{'|'.join(IMAGE_EXTENSIONS)})")  # what follows the key of a clip's member


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

    def frame_members(self) -> list[Member]:
        """The frames of a clip in their order; none for an image.

        Raises:
            SampleError: ``missing_frame``: their numbers are not 0, 1, 2 …
        """
        return [self.members[name] for name in frame_names(self.members, key=self.key, shard=self.shard.name)]

    def clip_members(self, sample: Sample) -> list[Member]:
        """The frames of a clip with the record ``sample``, in their order.

        Raises:
            SampleError: ``no_frames``, ``missing_frame``: they are not as many as the record says.
        """
        frames = self.frame_members()
        if not frames:
            rule = f"its record has {sample.num_frames} frames and it has no member {self.key}.000.jpg"
            raise SampleError("no_frames", rule, key=self.key, shard=self.shard.name)
        if len(frames) != sample.num_frames:
            rule = f"it has {len(frames)} members that are frames, and its record {sample.num_frames} times"
            raise SampleError("missing_frame", rule, key=self.key, shard=self.shard.name)
        return frames

    @property
    def image(self) -> Member:
        """The place of the image. Raises ``KeyError`` where there is none; ``walk_records`` gives only samples with."""
        return self.members[self.image_extension or "image"]


OnFault = Callable[[Fault], None]


def is_frame(extension: str) -> bool:
    """Whether a member of that extension, ``000.jpg``, is a frame of a clip."""
    return _FRAME.fullmatch(extension) is not None


def frame_names(extensions: Iterable[str], *, key: str = "?", shard: str = "?") -> list[str]:
    """The extensions of a clip's frames in their order, of all its members'.

    Raises:
        SampleError: ``missing_frame``: their numbers are not 0, 1, 2 …
    """
    numbered = sorted((int(found[1]), name) for name in extensions if (found := _FRAME.fullmatch(name)))
    for expected, (number, name) in enumerate(numbered):
        if number != expected:
            rule = f"frames are numbered from 000 on without gaps, each number once; {expected:03d} should be here"
            raise SampleError("missing_frame", f"it has the frame {name}; {rule}", key=key, shard=shard)
    return [name for _, name in numbered]


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
    clips: bool = False,
) -> Iterator[tuple[TarSample, Sample]]:
    """Every sample that has an image and a record that keeps the rules of ``schema``. Raises as ``walk_tar``.

    Args:
        clips: give out clips as well, which have ``frame_members()`` for ``image``; else a clip is a fault, ``clip``.
    """
    path = Path(path)
    for found in walk_tar(path, on_fault, end_mark_required=end_mark_required):
        try:
            sample = read_record(found, captions_required=captions_required)
            if sample.frames is not None and not clips:
                message = f"it is a clip of {sample.num_frames} frames, and images are read here"
                raise SampleError("clip", message, key=found.key, shard=path.name)
        except SampleError as error:
            _report(on_fault, path.name, error.kind, found.key, str(error))
            continue
        yield found, sample


def read_record(found: TarSample, *, captions_required: bool = True) -> Sample:
    """The record of a sample that has what the record speaks of: an image, or as many frames.

    Raises:
        SampleError: ``missing_member``, ``no_frames``, ``missing_frame``, or as ``parse_sample``.
    """
    where = {"key": found.key, "shard": found.shard.name}
    has_image = found.image_extension is not None
    absent = f"only {sorted(found.members)!r:.80}"
    if "json" not in found.members:
        what = "json" if has_image or any(map(is_frame, found.members)) else "image"
        raise SampleError("missing_member", f"it has no {what}, {absent}", **where)
    sample = parse_sample(found.read("json"), captions_required=captions_required, **where)
    if sample.frames is not None:
        found.clip_members(sample)
    elif not has_image:
        raise SampleError("missing_member", f"it has no image, {absent}", **where)
    return sample


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
