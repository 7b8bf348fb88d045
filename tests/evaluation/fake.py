"""A model whose every answer can be worked out by hand: patches are mean colours, texts are colours by name.

It stands in for a trained one, so that a task's arithmetic can be checked against a plain loop in the test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.evaluation.models.base import EncodedImages, EvaluationModel, Prepared

GRID = 4  # patches a side
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "红": (1, 0, 0), "绿": (0, 1, 0), "蓝": (0, 0, 1)}
WIDTH = 6


class FakeModel(EvaluationModel):
    """Embeddings: colour minus grey in three numbers, and three more that depend on details."""

    patch_size = 4

    def __init__(self) -> None:
        self.name, self.kind = "fake", "fake"
        self.module = torch.nn.LayerNorm(1)  # weights that are the same each time
        self.images_encoded = 0
        self.kinds_asked: set[str] = set()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def prepare(self, image: Image.Image, dense: bool = False) -> Prepared:
        small = image.convert("RGB").resize((GRID, GRID), Image.Resampling.BOX)
        return Prepared(torch.from_numpy(np.array(small)).float() / 255, (GRID, GRID))

    def prepare_window(self, image: Image.Image) -> Prepared:
        size = (max(image.width // self.patch_size, 1), max(image.height // self.patch_size, 1))
        small = image.convert("RGB").resize(size, Image.Resampling.BOX)
        return Prepared(torch.from_numpy(np.array(small)).float() / 255, size)

    def encode_images(self, prepared: Sequence[Prepared], dense: bool = False) -> EncodedImages:
        self.images_encoded += len(prepared)
        pixels = torch.stack([one.pixels for one in prepared])  # [B, h, w, 3]
        features = torch.cat([pixels - 0.4, pixels.roll(1, -1) ** 2 * 0.1], -1)
        shapes = torch.tensor([pixels.shape[1:3]] * len(pixels))
        embeds = torch.nn.functional.normalize(features.mean((1, 2)), dim=-1)
        flat = features.flatten(1, 2)
        mask = torch.ones(flat.shape[:2], dtype=torch.int32)
        return EncodedImages(embeds, flat if dense else None, mask, shapes)

    def encode_dense(self, prepared: Sequence[Prepared], calibration=None) -> EncodedImages:
        return self.encode_images(prepared, dense=True)

    def encode_texts(self, texts: Sequence[str], kind: str) -> Tensor:
        self.kinds_asked.add(kind)
        return torch.stack([text_vector(text, kind) for text in texts])

    def pool_regions(self, features: EncodedImages, boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the patches, each weighted by how much of the box lies in it."""
        pooled, valid = [], []
        for box, image in zip(boxes.tolist(), image_index.tolist(), strict=True):
            height, width = features.shapes[image].tolist()
            rows = torch.tensor([overlap(box[1], box[3], at / height, (at + 1) / height) for at in range(height)])
            columns = torch.tensor([overlap(box[0], box[2], at / width, (at + 1) / width) for at in range(width)])
            weights = (rows[:, None] * columns).flatten()
            pooled.append(weights @ features.dense[image, : height * width])
            valid.append(bool(weights.sum() > 0))
        return torch.nn.functional.normalize(torch.stack(pooled), dim=-1), torch.tensor(valid)

    def settings(self) -> dict:
        return {"kind": self.kind}


def overlap(start: float, end: float, low: float, high: float) -> float:
    return max(0.0, min(end, high) - max(start, low))


def text_vector(text: str, kind: str) -> Tensor:
    """The colour that the text names, and a little of everything else it says."""
    digest = hashlib.sha256(f"{kind}|{text.lower()}".encode()).digest()
    noise = torch.tensor([byte / 255 - 0.5 for byte in digest[:WIDTH]])
    vector = 0.1 * noise
    for name, colour in COLOURS.items():
        if name in text.lower():
            vector[:3] += torch.tensor(colour) - 0.4
    return torch.nn.functional.normalize(vector, dim=0)


def solid(colour: tuple[int, int, int], size: tuple[int, int] = (32, 24)) -> Image.Image:
    return Image.new("RGB", size, colour)


def noisy(seed: int, size: tuple[int, int] = (32, 24)) -> Image.Image:
    """An image that differs from every other seed's in all parts."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)
