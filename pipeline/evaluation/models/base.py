"""The one small interface of every model that can be evaluated.

Letters: B images, P patches, D width, R regions, N texts.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.scclip import Calibration

TEXT_KINDS = ("short", "long", "region")


@dataclass(frozen=True)
class Prepared:
    """One image as the model's tower takes it. ``group``: only equal ones share a batch."""

    pixels: Tensor
    group: tuple[int, ...]
    extra: tuple[Any, ...] = ()


@dataclass(frozen=True)
class EncodedImages:
    """Features of a batch. ``dense`` lies in the joint space and is not normalised; None where it was not asked for."""

    embeds: Tensor  # [B, D] unit norm, float32; [B, 0] where only patches were asked for
    dense: Tensor | None = None  # [B, P, D] float32
    mask: Tensor | None = None  # [B, P]
    shapes: Tensor | None = None  # [B, 2] patches: height, width

    def patches(self) -> tuple[Tensor, Tensor]:
        """``dense`` and ``shapes``, where they were asked for."""
        if self.dense is None or self.shapes is None:
            raise ValueError("these images were encoded without their patches; ask for dense=True")
        return self.dense, self.shapes

    def grid(self, number: int) -> Tensor:
        """[h, w, D]: the patches of one image."""
        dense, shapes = self.patches()
        height, width = shapes[number].tolist()
        return dense[number, : height * width].view(height, width, -1)


class EvaluationModel(ABC):
    """What a task may ask of a model. All tensors come back on the CPU in float32."""

    name: str
    kind: str
    module: Any  # a torch module; its parts differ from family to family and transformers does not type them
    has_class_token: bool = False
    has_patch_budgets: bool = False  # takes images at budgets of patches that can be chosen
    text_batch_size: int = 256
    patch_size: int = 16  # pixels
    image_size: int | None = None  # pixels, of the one square that the tower was trained on; None: any size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @abstractmethod
    def prepare(self, image: Image.Image, dense: bool = False) -> Prepared:
        """The image as the model takes it; ``dense``: so that boxes of the whole image keep their place.

        Needs no device; runs in a thread.
        """

    @abstractmethod
    def prepare_window(self, image: Image.Image) -> Prepared:
        """An image at its own size, cut to whole patches: a window of a larger one."""

    @abstractmethod
    def encode_images(self, prepared: Sequence[Prepared], dense: bool = False) -> EncodedImages:
        """Features of images of one group."""

    @abstractmethod
    def encode_dense(self, prepared: Sequence[Prepared], calibration: Calibration | None) -> EncodedImages:
        """Patch features of images of one group, calibrated by SC-CLIP or plain (None)."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str], kind: str) -> Tensor:
        """[N, D] unit norm; ``kind`` is short, long or region."""

    @abstractmethod
    def pool_regions(self, features: EncodedImages, boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [R, 4] normalised xyxy of images [R]: ``(embeds [R, D], valid [R])``."""

    def aggregate_frames(self, embeds: Tensor) -> Tensor:
        """[C, F, D] unit vectors of C clips' frames: [C, D] unit norm, the clips'."""
        return embeds[:, 0] if embeds.shape[1] == 1 else torch.nn.functional.normalize(embeds.mean(1), dim=-1)

    def aggregate_regions(self, per_frame: Tensor, visible: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors [R, F, D] of regions in frames, where they are there [R, F], their boxes [R, F, 4], normalised
        xyxy: ``(embeds [R, D], valid [R])``.

        The mean over the frames where a region is there; models with a temporal transformer have their own.
        """
        if visible.shape[1] == 1:
            return per_frame[:, 0], visible[:, 0]
        weights = visible.unsqueeze(-1).to(per_frame.dtype)
        mean = (per_frame * weights).sum(1) / weights.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=-1), visible.any(1)

    @property
    def most_frames(self) -> int | None:
        """Frames of a clip that ``aggregate_regions`` takes at most; None: any number."""
        return None

    def frames_path(self) -> str:
        """How frames become a clip, for the result file."""
        return "the mean over the frames"

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What of the model influences a score, for the result file."""

    def fingerprint(self) -> str:
        """A short name of weights and settings: two equal ones give equal features."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True, default=str).encode())
        for name, weight in self.module.state_dict().items():
            flat = weight.detach().double().flatten()
            signs = torch.cos(torch.arange(min(len(flat), 4096), dtype=torch.double, device=flat.device))
            digest.update(f"{name}{flat.sum().item():.12e}{(flat[:4096] * signs).sum().item():.12e}".encode())
        return digest.hexdigest()[:16]

    def with_patch_budgets(self, budgets: Sequence[int]) -> EvaluationModel:
        """This model, taking images at other budgets of patches.

        Raises:
            EvaluationError: the model takes one size of image.
        """
        raise EvaluationError(
            f"{self.name} is a {self.kind} model of one image size; leave patch_budgets out, it takes none"
        )

    def short_prefix(self, language: str) -> str:
        """What the model's run read before short captions of ``language``."""
        return ""

    def region_path(self) -> str:
        """Where region vectors come from, for the result file."""
        return "RoIAlign 1x1 over the dense head's features"

    def text_path(self, kind: str) -> str:
        """How texts of ``kind`` are encoded, for the result file."""
        return kind

    def check_kind(self, kind: str) -> None:
        """Raises EvaluationError for a kind of text that is none of TEXT_KINDS."""
        if kind not in TEXT_KINDS:
            raise EvaluationError(f"text kind is {kind!r}; it must be one of {', '.join(TEXT_KINDS)}")

    @contextmanager
    def evaluating(self) -> Iterator[EvaluationModel]:
        """Evaluation mode without gradients; the training mode of before comes back at the end."""
        was_training = self.module.training
        self.module.eval()
        try:
            # no_grad and not inference_mode: tensors made here must not poison a training step that follows
            with torch.no_grad():
                yield self
        finally:
            self.module.train(was_training)
