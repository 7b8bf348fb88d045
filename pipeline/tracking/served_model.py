"""An exported model behind ``mlflow.pyfunc``: rows with a text or an image in, unit vectors out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.images import decode_image
from pipeline.model import FGCLIP2

LOCATION_FILE = "location.json"


class ServedModel:
    """What ``mlflow.pyfunc.load_model`` calls."""

    def __init__(self, model: FGCLIP2) -> None:
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
    location = json.loads((folder / LOCATION_FILE).read_text(encoding="utf-8"))
    source = folder if location["uploaded"] else Path(location["folder"])
    if not source.is_dir():
        raise FileNotFoundError(
            f"the weights were not uploaded and {source} is not on this machine; train with tracking.upload_model=true"
        )
    return ServedModel(FGCLIP2.load(source))


def _image(value: Any) -> Image.Image:
    if isinstance(value, str):
        value = Path(value).read_bytes()
    return decode_image(bytes(value))
