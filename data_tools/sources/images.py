"""Image files on their way into a shard: bytes, kind and size, or the reason why not."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # Pillow's format -> the shard's member
PROBE_SHARE = 8  # JPEGs are decoded at an eighth of their size, which finds cut files at a third of the cost


class ImageProblem(ValueError):
    """An image cannot go into a shard; ``kind`` is what it is counted under."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class ImageFile:
    """``width`` and ``height`` in pixels, of the stored image."""

    data: bytes
    extension: str
    width: int
    height: int


def read_image(path: Path) -> ImageFile:
    """Read and check one image file.

    Raises:
        ImageProblem: ``missing_image``, ``unreadable_image`` (cut, damaged, not an image) or ``unsupported_format``.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ImageProblem("missing_image", f"{path} does not exist") from error
    return check_image(data, str(path))


def check_image(data: bytes, name: str) -> ImageFile:
    """As ``read_image``, of bytes in hand; ``name`` is for the message."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind, (width, height) = image.format, image.size
            image.draft("RGB", (max(1, width // PROBE_SHARE), max(1, height // PROBE_SHARE)))
            image.load()
    except UnidentifiedImageError as error:  # its own message holds an address in memory, other in each run
        raise ImageProblem("unreadable_image", f"{name}: it is no kind of image that Pillow knows") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageProblem("unreadable_image", f"{name}: {' '.join(str(error).split())[:160]}") from error
    if kind not in EXTENSIONS:
        raise ImageProblem("unsupported_format", f"{name} is {kind}; it must be JPEG, PNG or WebP")
    return ImageFile(data, EXTENSIONS[kind], width, height)
