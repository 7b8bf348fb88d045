"""Which samples a report shows: a fixed, random choice, those with negatives first, and their images."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.images import ImageFault, decode_image
from pipeline.data.schema import Sample

IMAGE_SIDE = 560  # pixels of the longer side in the page; boxes are drawn as vectors over it
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Chosen:
    """A sample to show, and where its image lies in the tar."""

    shard: Path
    key: str
    offset: int
    length: int
    extension: str
    sample: Sample


def rank_of(seed: int, key: str, has_regions: bool, has_negatives: bool) -> int:
    """Lower is shown first: samples with more to look at, and among equals by a hash of seed and key."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=7).digest()
    return ((2 - has_regions - has_negatives) << 56) | int.from_bytes(digest, "big")


def image_uri(chosen: Chosen) -> tuple[str | None, str]:
    """The image as a small JPEG in a data URI, or None and why it cannot be shown."""
    with open(chosen.shard, "rb") as stream:
        stream.seek(chosen.offset)
        data = stream.read(chosen.length)
    try:
        image = decode_image(data)
    except ImageFault as fault:
        return None, str(fault)
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}", ""
