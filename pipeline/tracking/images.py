"""Images by step, as files with the names by which MLflow's page finds them and makes its image grid."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.base.files import write_aside
from pipeline.base.run_folder import FIGURES

FOLDER = "images"  # of the run's artifacts, and of RUN/figures
SMALL_SIDE = 256  # pixels of the longer side of the copy that the grid shows; mlflow.tracking.multimedia has the same
_NAME = re.compile(r"^[a-zA-Z0-9_\-./ ]+$")  # mlflow.MlflowClient.log_image's rule


@dataclass(frozen=True)
class SavedImage:
    """An image and its small copy."""

    full: Path
    small: Path


def save_step_image(run_folder: Path, name: str, step: int, image: Image.Image) -> SavedImage:
    """Write RUN/figures/images/NAME+step+….png and a small copy.

    A step that is made again after a resume gets the same file names, so that the store holds it once.

    Raises:
        ValueError: MLflow does not take the name.
        OSError: the disk refuses it.
    """
    if not _NAME.match(name):
        raise ValueError(f"image name {name!r}; MLflow takes letters of ASCII, digits, _ - . / and blanks")
    folder = run_folder / FIGURES / FOLDER
    beginning = f"{name.replace('/', '~')}+step+{step}+timestamp+"
    known = sorted(folder.glob(f"{_escaped(beginning)}*+compressed.webp"))
    stem = known[0].name.removesuffix("+compressed.webp") if known else _new_name(beginning)
    saved = SavedImage(folder / f"{stem}.png", folder / f"{stem}+compressed.webp")
    scale = SMALL_SIDE / max(image.size)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    with write_aside(saved.full) as partial:
        image.save(partial, format="PNG")
    with write_aside(saved.small) as partial:
        small.save(partial, format="WEBP")
    return saved


def _new_name(beginning: str) -> str:
    return f"{beginning}{int(time.time() * 1000)}+{uuid.uuid4()}"


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
