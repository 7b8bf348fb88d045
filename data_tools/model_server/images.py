"""Images as model servers take them."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from pipeline.data.images import decode_image

JPEG_QUALITY = 90  # assumption: above it files grow and no model sees the difference


def fitted(image: bytes, extension: str, max_side: int) -> tuple[bytes, str]:
    """The image, made smaller and upright as a JPEG where a side is longer than ``max_side`` pixels, else as it is.

    Raises:
        ImageFault: it cannot be decoded.
    """
    decoded = decode_image(image)
    if max(decoded.size) <= max_side:
        return image, extension
    decoded.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    decoded.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue(), "jpg"


def image_message(text: str, image: bytes, extension: str) -> dict[str, Any]:
    """A user message with a text and one image, as a data URL."""
    kind = {"jpg": "jpeg"}.get(extension, extension)
    url = f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
    return {
        "role": "user",
        "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}],
    }
