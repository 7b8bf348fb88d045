"""What the page asks of a model: search by text, image or box; a phrase's map; a box against phrases."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline.embed.read import Embeddings
from pipeline.evaluation.models.base import EncodedImages, EvaluationModel
from pipeline.evaluation.models.fgclip2 import FGCLIP2Evaluation
from pipeline.evaluation.pictures import heat_overlay, panel_of
from pipeline.evaluation.results import EvaluationError
from pipeline.explore.index import Found, Index, make_index

Box = tuple[float, float, float, float]  # normalised xyxy
CHINESE = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True)
class Hits:
    """Results of a search, and how long embedding the query and searching took, in milliseconds."""

    found: list[Found]
    encode_milliseconds: float
    search_milliseconds: float


@dataclass(frozen=True)
class Scored:
    """A phrase with its cosine and its share among the phrases at the learned scale; None for models without one."""

    phrase: str
    cosine: float
    share: float | None


@dataclass
class Explored:
    """A model and, where there are data, their embeddings by it. One question at a time."""

    name: str
    model: EvaluationModel
    data: Embeddings | None = None
    index: Index | None = field(init=False, default=None)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.index = make_index(self.data.vectors) if self.data is not None else None

    def search_text(self, text: str, kind: str, count: int) -> Hits:
        """Images by a text; ``kind`` is short, long or region."""
        begun = time.perf_counter()
        return self._search(self._encode_search_text(text, kind), count, begun)

    def search_image(self, image: Image.Image, box: Box | None, count: int) -> Hits:
        """Images by another image, or by a box of it."""
        begun = time.perf_counter()
        with self._lock:
            query = self._encode_place(image, box)
        return self._search(query, count, begun)

    def heat(self, image: Image.Image, phrase: str) -> tuple[Image.Image, float, float]:
        """The image under the map of a phrase, with the least and the greatest cosine."""
        with self._lock, torch.no_grad():
            encoded = self.model.encode_images([self.model.prepare(image, dense=True)], dense=True)
            features = F.normalize(encoded.grid(0).float().cpu(), dim=-1)
            similarity = (features @ self._phrases([phrase])[0]).numpy()
        return heat_overlay(panel_of(image), similarity), float(similarity.min()), float(similarity.max())

    def score(self, image: Image.Image, box: Box | None, phrases: Sequence[str]) -> list[Scored]:
        """Phrases against a box (None: the whole image), best first."""
        with self._lock, torch.no_grad():
            place = self._encode_place(image, box if box is not None else (0.0, 0.0, 1.0, 1.0))
            cosines = self._phrases(phrases) @ torch.from_numpy(place)
            scale = self.model.module.scales().hardneg if isinstance(self.model, FGCLIP2Evaluation) else None
            shares = (cosines * scale.cpu()).softmax(0).tolist() if scale is not None else [None] * len(phrases)
        rows = [Scored(phrase, float(c), s) for phrase, c, s in zip(phrases, cosines, shares, strict=True)]
        return sorted(rows, key=lambda row: -row.cosine)

    def _search(self, query: np.ndarray, count: int, begun: float) -> Hits:
        if self.index is None:
            raise EvaluationError("there are no data to search; start the page with --data")
        encoded = time.perf_counter()
        found = self.index.search(query, count)
        return Hits(found, 1000 * (encoded - begun), 1000 * (time.perf_counter() - encoded))

    def _encode_search_text(self, text: str, kind: str) -> np.ndarray:
        language = "zh" if CHINESE.search(text) else "en"
        prefix = self.model.short_prefix(language) if kind == "short" else ""
        with self._lock, torch.no_grad():
            return self.model.encode_texts([prefix + text], kind)[0].numpy()

    def _phrases(self, phrases: Sequence[str]) -> Tensor:
        return self.model.encode_texts(list(phrases), "region").float().cpu()

    @torch.no_grad()
    def _encode_place(self, image: Image.Image, box: Box | None) -> np.ndarray:
        encoded: EncodedImages = self.model.encode_images(
            [self.model.prepare(image, dense=box is not None)], dense=box is not None
        )
        if box is None:
            return encoded.embeds[0].numpy()
        embeds, valid = self.model.pool_regions(encoded, torch.tensor([box]), torch.tensor([0]))
        if not bool(valid[0]):
            raise EvaluationError(f"the box {box} has no area; draw a larger one")
        return embeds[0].numpy()
