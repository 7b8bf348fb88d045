"""Writing a picture as a PNG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from pipeline.base.files import write_aside


def save_picture(picture: Figure | Image.Image, path: str | Path, num_colours: int | None = None) -> Path:
    """Write a figure or an image, whole or not at all.

    Args:
        num_colours: reduce an image to so many colours, which makes a small file.
    """
    path = Path(path)
    with write_aside(path) as partial:
        if isinstance(picture, Figure):
            picture.savefig(partial, format="png")
        elif num_colours is None:
            picture.save(partial, format="PNG")
        else:
            picture.quantize(num_colours).save(partial, format="PNG", optimize=True)
    return path
