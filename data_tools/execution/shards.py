"""Where the records of one job come from: a tar of a folder of shards, read front to back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from data_tools.shards import Record
from pipeline.data.records import Fault, frame_names, walk_tar
from pipeline.data.schema import IMAGE_EXTENSIONS, Sample, SampleError, parse_sample


@dataclass(frozen=True)
class Drop:
    """A sample that goes no further. ``reason`` is a short name to count under, ``detail`` says more."""

    key: str
    reason: str
    detail: str = ""


class ShardSource(Protocol):
    """The records of one shard to be; picklable."""

    @property
    def name(self) -> str:
        """Of the output shard, without .tar."""

    def records(self) -> Iterator[Record | Drop]: ...

    def identity(self) -> dict[str, Any]:
        """What tells this input from another one of the same name."""

    def changed_at(self) -> float:
        """When the input changed last, in seconds since 1970."""


@dataclass(frozen=True)
class TarShard:
    """A shard as a source. Samples that break a rule of the record are dropped with their fault as reason."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".tar")

    def identity(self) -> dict[str, Any]:
        return {"bytes": self.path.stat().st_size}

    def changed_at(self) -> float:
        return self.path.stat().st_mtime

    def records(self) -> Iterator[Record | Drop]:
        """Raises: OSError with the shard's name if the tar is damaged; a shard is never used in part."""
        for item in read_members(self.path):
            yield item if isinstance(item, Drop) else _record(*item, self.path.name)


def read_members(path: Path) -> Iterator[tuple[str, dict[str, bytes]] | Drop]:
    """``(key, {extension: bytes})`` of each sample: neighbouring members whose names agree up to the first dot.

    A member that must not be used (a link, a path out of the tar, a second one of its name) is a `Drop`.

    Raises:
        OSError: the file is missing, cut or no tar; samples before the damage have been given by then.
    """
    unsafe: list[Drop] = []

    def on_fault(fault: Fault) -> None:
        if fault.kind not in ("unsafe_member", "duplicate_member"):
            raise OSError(f"shard {path} is damaged ({fault.message}); make or fetch it again, or pack it anew")
        unsafe.append(Drop(fault.key, fault.kind, f"{path.name}: {fault.message}"))

    for sample in walk_tar(path, on_fault, end_mark_required=True):
        yield from unsafe
        unsafe.clear()
        yield sample.key, {extension: sample.read(extension) for extension in sample.members}
    yield from unsafe


def _record(key: str, members: dict[str, bytes], shard: str) -> Record | Drop:
    try:
        frames = frame_names(members, key=key, shard=shard)
        extension = next((e for e in IMAGE_EXTENSIONS if e in members), None)
        if not (frames or extension) or "json" not in members:
            missing = "KEY.json" if frames or extension else "an image"
            return Drop(key, "incomplete_sample", f"{shard}: sample {key} lacks {missing}; it has {sorted(members)}")
        sample = parse_sample(members["json"], key=key, shard=shard, captions_required=False)
    except SampleError as error:
        return Drop(key, error.kind, str(error))
    if sample.frames is not None:
        return _clip_record(key, members, sample, frames, shard)
    if extension is None:
        return Drop(key, "incomplete_sample", f"{shard}: sample {key} has frames, but its record no times of them")
    extra = {name: data for name, data in members.items() if name not in (extension, "json")}
    return Record(key, members[extension], extension, sample, extra)


def _clip_record(key: str, members: dict[str, bytes], sample: Sample, frames: list[str], shard: str) -> Record | Drop:
    if len(frames) != sample.num_frames:
        told = f"{shard}: sample {key} has {len(frames)} frames, and its record {sample.num_frames} times"
        return Drop(key, "missing_frame" if frames else "no_frames", told)
    extensions = {name.rpartition(".")[2] for name in frames}
    if len(extensions) > 1:
        return Drop(key, "mixed_frames", f"{shard}: sample {key} has frames of {' and '.join(sorted(extensions))}")
    extra = {name: data for name, data in members.items() if name not in (*frames, "json")}
    return Record(key, b"", extensions.pop(), sample, extra, tuple(members[name] for name in frames))


def tar_shards(folder: str | Path) -> list[TarShard]:
    """The shards of a folder, by name.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(Path(folder).glob("*.tar"))
    if not paths:
        raise ValueError(f"{folder} holds no *.tar; give the folder of a finished build step")
    return [TarShard(path) for path in paths]


def with_source(sample: Sample, **fields: Any) -> Sample:
    """The sample with further entries in its provenance."""
    return replace(sample, source={**sample.source, **fields})
