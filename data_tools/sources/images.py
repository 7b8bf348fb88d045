"""Image files on their way into a shard: bytes, kind and size, or the reason why not."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.base.border import one_line
from pipeline.data.images import DECODE_ERRORS

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # Pillow's format -> the shard's member
OPENED = ("JPEG", "PNG", "WEBP")  # Pillow opens multi-picture JPEGs (MPO) as JPEG
CONVERTED = ("TIFF", "BMP", "GIF")  # stored as PNG where that is asked for: their first frame, upright
# How files begin that Pillow could open too, some of them through another program: they are named, not opened.
STARTS = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%!PS": "EPS", b"%PDF": "PDF",
          b"\xc5\xd0\xd3\xc6": "EPS", b"8BPS": "PSD", b"\0\0\1\0": "ICO"}  # fmt: skip
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


def check_image(data: bytes, name: str, *, convert: bool = False) -> ImageFile:
    """As ``read_image``, of bytes in hand; ``name`` is for the message.

    Args:
        convert: TIFF, BMP and GIF become PNG, their first frame.
    """
    formats = (*OPENED, *(CONVERTED if convert else ()))
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            kind, (width, height) = image.format or "", image.size
            if kind in CONVERTED:
                return _as_png(image)
            image.draft("RGB", (max(1, width // PROBE_SHARE), max(1, height // PROBE_SHARE)))
            image.load()
    except UnidentifiedImageError as error:  # its own message holds an address in memory, other in each run
        known = next((kind for start, kind in STARTS.items() if data.startswith(start)), None)
        if known is not None and known not in formats:
            raise ImageProblem("unsupported_format", f"{name} is {known}; it must be JPEG, PNG or WebP") from error
        raise ImageProblem("unreadable_image", f"{name}: it is no kind of image that can be read") from error
    except Image.DecompressionBombError as error:
        raise ImageProblem("unreadable_image", f"{name}: {one_line(error, 160)}") from error
    except DECODE_ERRORS as error:
        raise ImageProblem("unreadable_image", f"{name}: {one_line(error, 160)}") from error
    return ImageFile(data, EXTENSIONS[kind], width, height)


def _as_png(image: Image.Image) -> ImageFile:
    """The first frame as an RGB or 16-bit grey PNG."""
    image.seek(0)
    upright = ImageOps.exif_transpose(image)
    if not upright.mode.startswith("I;16"):
        upright = upright.convert("RGB")
    stream = io.BytesIO()
    upright.save(stream, "PNG")
    return ImageFile(stream.getvalue(), "png", *upright.size)
