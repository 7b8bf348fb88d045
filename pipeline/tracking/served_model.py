"""An exported model behind ``mlflow.pyfunc``: rows with a text or an image in, unit vectors out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from pipeline.base.border import read_typed
from pipeline.data.images import decode_image
from pipeline.model import DualEncoder
from pipeline.model.families import load_trained

LOCATION_FILE = "location.json"


@dataclass(frozen=True)
class _Location:
    """What LOCATION_FILE holds: whether the weights lie beside it, and else where they do."""

    uploaded: bool
    folder: str


_LOCATION: TypeAdapter[_Location] = TypeAdapter(_Location)


class ServedModel:
    """What ``mlflow.pyfunc.load_model`` calls."""

    def __init__(self, model: DualEncoder) -> None:
        self.model = model

    def predict(self, rows: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """One embedding a row, [N, D] float32.

        Args:
            rows: a pandas DataFrame with a column ``text`` (strings) or ``image`` (encoded files as bytes, or paths).

        Raises:
            ValueError: neither column, or both, have values.
        """
        names = [name for name in ("text", "image") if name in rows.columns and rows[name].notna().any()]
        if len(names) != 1:
            raise ValueError(f"columns with values are {names}; give either text or image, one value a row")
        values = list(rows[names[0]])
        if names[0] == "text":
            return self.model.encode_text(values).embeds.cpu().numpy()
        images = [_image(value) for value in values]
        return self.model.encode_image(images).embeds.cpu().numpy()


def _load_pyfunc(path: str) -> ServedModel:  # the name that MLflow calls
    folder = Path(path)
    location = read_typed(folder / LOCATION_FILE, _LOCATION, "log the model again")
    source = folder if location.uploaded else Path(location.folder)
    if not source.is_dir():
        raise FileNotFoundError(
            f"the weights were not uploaded and {source} is not on this machine; train with tracking.upload_model=true"
        )
    return ServedModel(load_trained(source))


def _image(value: Any) -> Image.Image:
    if isinstance(value, str):
        value = Path(value).read_bytes()
    return decode_image(bytes(value))
