"""The rows of one shard's index, read from its tar: where each sample lies and what it has."""

from __future__ import annotations

import zlib
from pathlib import Path

from pipeline.data.images import ImageFault, image_size
from pipeline.data.records import Fault, TarSample, read_record, walk_tar
from pipeline.data.schema import SampleError
from pipeline.data.tar import LARGEST_MEMBER_BYTES


def read_rows(shard: Path, max_megapixels: float) -> tuple[list[dict], list[Fault]]:
    """A row for each sample of a tar, and what was left out. Raises ``OSError``."""
    rows: list[dict] = []
    faults: list[Fault] = []
    seen: set[str] = set()

    def report(kind: str, key: str, message: str) -> None:
        faults.append(Fault(kind, shard.name, key, message))

    for found in walk_tar(shard, faults.append):
        key = found.key
        try:
            if key in seen:
                raise SampleError("duplicate_key", "an earlier sample of the shard has this key; rename one")
            rows.append(_read_row(found, max_megapixels))
            seen.add(key)
        except SampleError as error:
            report(error.kind, key, error.message)
        except ImageFault as error:
            report(error.kind, key, str(error))
    return rows, faults


def _read_row(found: TarSample, max_megapixels: float) -> dict:
    sample = read_record(found)
    record = found.members["json"]
    if sample.frames is None:
        extension = found.image_extension or ""
        start, content = found.image.offset, found.read(extension)
        images = [content]
    else:
        frames = found.clip_members(sample)
        extension, start = frames[0].name.rpartition("/")[2].partition(".")[2], min(frame.start for frame in frames)
        content = _run_of(found, start, max(frame.offset + frame.size for frame in frames))
        images = [content[frame.offset - start : frame.offset - start + frame.size] for frame in frames]
    _check_sizes([image_size(image, max_megapixels) for image in images], (sample.width, sample.height))
    return {
        "key": found.key,
        "extension": extension,
        "image_offset": start,
        "image_length": len(content),
        "image_crc32": zlib.crc32(content),
        "json_offset": record.offset,
        "json_length": record.size,
        "json_crc32": zlib.crc32(found.read("json")),
        "width": sample.width,
        "height": sample.height,
        "language": sample.language,
        "num_regions": len(sample.regions),
        "num_negatives": sum(len(region.negatives) for region in sample.regions),
        "num_frames": 0 if sample.frames is None else len(sample.frames),
    }


def _run_of(found: TarSample, start: int, end: int) -> bytes:
    """A run of the tar with the frames of a clip, their headers and what lies between."""
    if end - start > LARGEST_MEMBER_BYTES:
        rule = f"its frames lie over {end - start} bytes; at most {LARGEST_MEMBER_BYTES} are read: cut it into clips"
        raise SampleError("unsafe_member", rule)
    found.file.seek(start)
    return found.file.read(end - start)


def _check_sizes(sizes: list[tuple[int, int]], noted: tuple[int, int]) -> None:
    """Of an image, or of all frames of a clip, against the record's."""
    (width, height), (wanted_width, wanted_height) = sizes[0], noted
    if sizes[0] != noted:
        raise SampleError(
            "size_mismatch",
            f"the upright image has {width}x{height} pixels, its record says {wanted_width}x{wanted_height}; "
            "boxes would lie elsewhere, so write the record again",
        )
    for number, size in enumerate(sizes):
        if size != noted:
            rule = (
                f"frame {number} has {size[0]}x{size[1]} pixels, those before it {width}x{height}; they must be alike"
            )
            raise SampleError("unequal_frames", rule)
