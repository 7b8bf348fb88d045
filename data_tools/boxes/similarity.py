"""A second opinion on boxes from the project's own models: the one place where building data uses one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL.Image import Image

from data_tools.execution.device import device_for
from pipeline.model import FGCLIP2


class RegionTextFilter:
    """Leaves out boxes whose region is not alike its phrase by an FG-CLIP 2 or SigLIP 2 checkpoint."""

    def __init__(self, path: str | Path, min_similarity: float = 0.15) -> None:
        self.path, self.min_similarity = str(path), min_similarity
        self._model: FGCLIP2 | None = None

    def settings(self) -> dict[str, Any]:
        return {"similarity_model": Path(self.path).name, "min_similarity": self.min_similarity}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    def open(self, worker: int) -> None:
        self._model = FGCLIP2.load(self.path, device=device_for(worker))

    def similarities(self, image: Image, boxes: list[tuple], phrases: list[str]) -> list[float]:
        """Cosine of each box's region with its own phrase."""
        if self._model is None:
            raise RuntimeError("the filter's model is not loaded; call open() first")
        regions = self._model.encode_regions(image, boxes, box_format="normalised").embeds
        texts = self._model.encode_text(phrases, kind="region").embeds
        return (regions * texts).sum(-1).tolist()
