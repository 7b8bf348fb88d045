"""Image files to pixels: checked, upright, RGB. Needs no torch; ``patches.py`` goes on from here.

JPEGs go through simplejpeg where it is installed: the same libjpeg-turbo as Pillow's and the same pixels, without
Pillow's four-byte copy.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from pipeline.base.border import one_line

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: Pillow decodes the same pixels, slower
    simplejpeg = None

FORMATS = ("JPEG", "PNG", "WEBP", "MPO")
# Scaled decoding drops detail that the resize would average away. With twice the target still left the result stays
# within 1.5/255 of a full decode (tests/data/test_images.py); with less it does not.
SCALED_DECODE_MARGIN = 2
EXIF_MARK, EXIF_SEARCH_BYTES = b"Exif\x00\x00", 65536
# What Pillow's decoders raise on damaged input, by experiment with damaged files and from its sources.
DECODE_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError)
DECODE_ERRORS += (TypeError, OverflowError, struct.error, zlib.error, MemoryError)


class ImageFault(ValueError):
    """An image cannot be used. ``kind``: ``broken_image``, ``too_many_pixels`` or ``animated_image``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def decode_image(data: bytes, max_megapixels: float = 100.0, target: tuple[int, int] | None = None) -> Image.Image:
    """An RGB image, upright (EXIF orientation applied).

    Args:
        data: a JPEG, PNG or WebP file. CMYK, grey, palette, 16-bit and transparent images are converted as
            Pillow's ``convert("RGB")`` does; transparency is dropped.
        max_megapixels: larger images are refused before they are decoded.
        target: width and height in pixels that the caller will resize to; JPEGs much larger than that are decoded
            at 1/2, 1/4 or 1/8.

    Raises:
        ImageFault: with its ``kind``.
    """
    return Image.fromarray(decode_array(data, max_megapixels, target))


def decode_array(data: bytes, max_megapixels: float = 100.0, target: tuple[int, int] | None = None) -> np.ndarray:
    """``decode_image`` as an array [height, width, 3] uint8."""
    if simplejpeg is not None and data[:2] == b"\xff\xd8" and EXIF_MARK not in data[:EXIF_SEARCH_BYTES]:
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            if colors in ("YCbCr", "Gray", "RGB"):
                _check_pixels(width, height, max_megapixels)
                factor = _scale_factor(width, height, target)
                if factor == 1:
                    return simplejpeg.decode_jpeg(data)
                return simplejpeg.decode_jpeg(data, min_height=height // factor, min_width=width // factor)
        except ImageFault:
            raise
        except ValueError:
            pass  # simplejpeg stops at every warning of libjpeg; Pillow decides which of them are damage
    return np.asarray(_decode_with_pillow(data, max_megapixels, target))


def image_size(data: bytes, max_megapixels: float = 100.0) -> tuple[int, int]:
    """Width and height of the upright image, from its header alone. Raises ``ImageFault`` as ``decode_image``."""
    if simplejpeg is not None and data[:2] == b"\xff\xd8" and EXIF_MARK not in data[:EXIF_SEARCH_BYTES]:
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            pass
        else:
            _check_pixels(width, height, max_megapixels)
            return width, height
    with _quiet():
        image = _open(data, max_megapixels)
        swapped = _orientation(image) >= 5
    return (image.height, image.width) if swapped else (image.width, image.height)


def _check_pixels(width: int, height: int, max_megapixels: float) -> None:
    if width < 1 or height < 1:
        raise ImageFault("broken_image", f"image of {width}x{height} pixels; both sides must be at least 1")
    if width * height > max_megapixels * 1e6:
        raise ImageFault(
            "too_many_pixels",
            f"image of {width}x{height} pixels is above {max_megapixels:g} megapixels (data.max_image_megapixels)",
        )


def _scale_factor(width: int, height: int, target: tuple[int, int] | None) -> int:
    """8, 4, 2 or 1: the strongest scaled decoding that leaves SCALED_DECODE_MARGIN times the target."""
    if target is None:
        return 1
    ratio = min(width / target[0], height / target[1]) / SCALED_DECODE_MARGIN
    return next((factor for factor in (8, 4, 2) if factor <= ratio), 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns about what is raised here as a fault, or does not matter (damaged EXIF fields)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(data: bytes, max_megapixels: float) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageFault("too_many_pixels", f"{error}; this is Pillow's own limit") from error
    except DECODE_ERRORS as error:
        raise ImageFault("broken_image", f"not a readable JPEG, PNG or WebP ({_line(error)})") from error
    _check_pixels(image.width, image.height, max_megapixels)
    # A multi-picture JPEG is one photograph with extras; an animation has no picture that its caption is true of.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageFault(
            "animated_image",
            f"animation of {getattr(image, 'n_frames', 'several')} frames; store the frame that is meant",
        )
    return image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except DECODE_ERRORS:
        return 1  # EXIF that does not parse turns no picture
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _decode_with_pillow(data: bytes, max_megapixels: float, target: tuple[int, int] | None) -> Image.Image:
    with _quiet():
        image = _open(data, max_megapixels)
        orientation = _orientation(image)
        stored_target = target[::-1] if target is not None and orientation >= 5 else target
        factor = _scale_factor(image.width, image.height, stored_target)
        try:
            if factor > 1:
                image.draft(None, (image.width // factor, image.height // factor))
            image.load()
            if orientation != 1:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # convert("RGB") would clip 16-bit values to white
                values = np.asarray(image).astype(np.int64)
                image = Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
            return image if image.mode == "RGB" else image.convert("RGB")
        except DECODE_ERRORS as error:
            raise ImageFault("broken_image", f"it does not decode ({_line(error)})") from error


def _line(error: BaseException) -> str:
    return one_line(error, 160)
