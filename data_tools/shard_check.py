"""Reading one shard for ``verify``: its members, records and images, and what is wrong with them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.execution.shards import Drop, read_members
from data_tools.sources.images import ImageProblem, check_image
from pipeline.data.records import Fault, frame_names, is_frame
from pipeline.data.schema import IMAGE_EXTENSIONS, Sample, SampleError, parse_sample

HASH_BYTES = 16  # of SHA-256: two images in twelve million agree by chance once in 10^24


@dataclass
class ShardCheck:
    """What reading one shard gave. ``keys`` and ``hashes`` are of the samples that have an image, in order."""

    shard: str
    sha256: str = ""
    counts: Counter[str] = field(default_factory=Counter)  # samples, regions, negatives
    keys: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def check_shard(path: Path, deep: bool = True, progress: Callable[[int], None] = lambda _: None) -> ShardCheck:
    """Read one tar from front to end."""
    check = ShardCheck(path.name)
    try:
        for item in read_members(path):
            if isinstance(item, Drop):
                check.faults.append(Fault(item.reason, path.name, item.key, item.detail))
                continue
            _check_sample(check, *item, deep)
            progress(1)
    except OSError as error:
        check.faults.append(Fault("damaged_shard", path.name, "-", str(error)))
    if deep:
        with open(path, "rb") as stream:
            check.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return check


def _check_sample(check: ShardCheck, key: str, members: dict[str, bytes], deep: bool) -> None:
    def fault(kind: str, message: str) -> None:
        check.faults.append(Fault(kind, check.shard, key, message))

    extension = next((name for name in IMAGE_EXTENSIONS if name in members), None)
    names = [extension] if extension is not None else sorted(filter(is_frame, members))
    if names:
        check.keys.append(key)
        content = hashlib.sha256()
        for name in names:
            content.update(members[name])
        check.hashes.append(content.digest()[:HASH_BYTES])
    if not deep:
        return
    check.counts["samples"] += 1
    sample = None
    if "json" not in members:
        fault("missing_member", f"it has no .json member, only {sorted(members)}")
    else:
        try:
            sample = parse_sample(members["json"], key=key, shard=check.shard)
        except SampleError as error:
            fault(error.kind, error.message)
    if sample is not None:
        check.counts["regions"] += len(sample.regions)
        check.counts["negatives"] += sum(len(region.negatives) for region in sample.regions)
        for message in _bad_negatives(sample):
            fault("bad_negatives", message)
    if sample is not None and sample.frames is not None:
        try:
            names = frame_names(members)
        except SampleError as error:
            fault(error.kind, error.message)
            return
        if len(names) != len(sample.frames):
            kind = "missing_frame" if names else "no_frames"
            fault(kind, f"it has {len(names)} members that are frames, and its record {len(sample.frames)} times")
            return
    elif extension is None:
        fault("missing_member", f"it has no image member, only {sorted(members)}")
        return
    _check_images(sample, key, [(name, members[name]) for name in names], fault)


def _check_images(
    sample: Sample | None, key: str, images: list[tuple[str, bytes]], fault: Callable[[str, str], None]
) -> None:
    """An image, or the frames of a clip: that they decode, and are of the record's size."""
    for number, (extension, data) in enumerate(images):
        try:
            image = check_image(data, f"{key}.{extension}")
        except ImageProblem as problem:
            fault(problem.kind, str(problem))
            return
        if sample is not None and (image.width, image.height) != (sample.width, sample.height):
            found, noted = f"{image.width}x{image.height}", f"{sample.width}x{sample.height}"
            if number:
                fault("unequal_frames", f"the frame {extension} is {found}, those before it are {noted}")
            else:
                fault("size_mismatch", f"the image is {found}, its record says {noted}")
            return


def _bad_negatives(sample: Sample) -> list[str]:
    messages = []
    for number, region in enumerate(sample.regions):
        plain = [" ".join(text.lower().split()) for text in (region.phrase, *region.negatives)]
        twice = [text for text, count in Counter(plain).items() if count > 1]
        if twice:
            what = "equals the phrase" if plain[0] in twice else "is there twice"
            messages.append(f"regions[{number}]: the negative {twice[0]!r} {what}; leave it out")
    return messages
