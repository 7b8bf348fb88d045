"""The models that can be evaluated, behind one small interface.

``load_model(FOLDER)`` takes a run of ours, a folder of a public FG-CLIP 2 checkpoint, or a plain SigLIP 2 (of any or of
fixed resolution) or CLIP folder of transformers. Letters: B images, P patches, D width, R regions, N texts.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipeline.config import read_saved_values
from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.scclip import Calibration, calibrated_patches

DEFAULT_LEVELS = (128, 256, 576, 784, 1024)  # method.md section 2
TEXT_KINDS = ("short", "long", "region")


@dataclass(frozen=True)
class Prepared:
    """One image as the model's tower takes it. ``group``: only equal ones share a batch."""

    pixels: Tensor
    group: tuple
    extra: tuple = ()


@dataclass(frozen=True)
class ImageFeatures:
    """Features of a batch. ``dense`` lies in the joint space and is not normalised; None where it was not asked for."""

    embeds: Tensor  # [B, D] unit norm, float32; [B, 0] where only patches were asked for
    dense: Tensor | None = None  # [B, P, D] float32
    mask: Tensor | None = None  # [B, P]
    shapes: Tensor | None = None  # [B, 2] patches: height, width


class EvaluationModel(ABC):
    """What a task may ask of a model. All tensors come back on the CPU in float32."""

    name: str
    kind: str
    module: torch.nn.Module
    device: torch.device
    has_class_token: bool = False
    text_batch_size: int = 256
    patch_size: int = 16

    @abstractmethod
    def prepare(self, image: Image.Image, dense: bool = False) -> Prepared:
        """The image as the model takes it; ``dense``: so that boxes of the whole image keep their place.

        Needs no device; runs in a thread.
        """

    @abstractmethod
    def prepare_window(self, image: Image.Image) -> Prepared:
        """An image at its own size, cut to whole patches: a window of a larger one."""

    @abstractmethod
    def encode_images(self, prepared: Sequence[Prepared], dense: bool = False) -> ImageFeatures:
        """Features of images of one group."""

    @abstractmethod
    def encode_dense(self, prepared: Sequence[Prepared], calibration: Calibration | None) -> ImageFeatures:
        """Patch features of images of one group, calibrated by SC-CLIP or plain (None)."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str], kind: str) -> Tensor:
        """[N, D] unit norm; ``kind`` is short, long or region."""

    @abstractmethod
    def pool_regions(self, features: ImageFeatures, boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [R, 4] normalised xyxy of images [R]: ``(embeds [R, D], valid [R])``."""

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

    def short_prefix(self, language: str) -> str:
        """What the model's run read before short captions of ``language``."""
        return ""

    def region_path(self) -> str:
        """Where region vectors come from, for the result file."""
        return "RoIAlign 1x1 over the dense head's features"

    def text_path(self, kind: str) -> str:
        """How texts of ``kind`` are encoded, for the result file."""
        return kind

    @contextmanager
    def evaluating(self):
        """Evaluation mode without gradients; the training mode of before comes back at the end."""
        was_training = self.module.training
        self.module.eval()
        try:
            # no_grad and not inference_mode: tensors made here must not poison a training step that follows
            with torch.no_grad():
                yield self
        finally:
            self.module.train(was_training)


class FGCLIP2Evaluation(EvaluationModel):
    """FG-CLIP 2, ours or public; and SigLIP 2 with its heads copied into FG-CLIP 2's (stated in the settings)."""

    patch_size = 16

    def __init__(self, module, tokenizer, *, levels=DEFAULT_LEVELS, name="model", prefixes=None, notes=None):
        self.module, self.tokenizer, self.levels = module, tokenizer, tuple(levels)
        self.name, self.kind = name, "fgclip2"
        self.prefixes, self.notes = dict(prefixes or {}), dict(notes or {})
        text = module.config.text_config
        self.lengths = {
            "short": text.max_position_embeddings,
            "region": text.max_position_embeddings,
            "long": text.longtext_len,
        }

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def prepare(self, image: Image.Image, dense: bool = False) -> Prepared:
        from pipeline.data.resolution import level_of

        return self._patches(image, level_of(image.width, image.height, self.levels))

    def prepare_window(self, image: Image.Image) -> Prepared:
        grid = (max(image.height // self.patch_size, 1), max(image.width // self.patch_size, 1))
        return self._patches(image, grid[0] * grid[1], grid)

    def _patches(self, image: Image.Image, level: int, grid: tuple[int, int] | None = None) -> Prepared:
        from pipeline.data.images import patchify

        pixels, mask, shape = patchify(image, level, grid)
        return Prepared(pixels, (level,), (mask, tuple(shape)))

    def _batch(self, prepared: Sequence[Prepared]) -> tuple[Tensor, Tensor, Tensor]:
        pixels = torch.stack([one.pixels for one in prepared]).to(self.device)
        mask = torch.stack([one.extra[0] for one in prepared]).to(self.device)
        return pixels, mask, torch.tensor([one.extra[1] for one in prepared], device=self.device)

    def encode_images(self, prepared: Sequence[Prepared], dense: bool = False) -> ImageFeatures:
        pixels, mask, shapes = self._batch(prepared)
        patches, embeds = self.module.encode_vision(pixels, mask, shapes)
        features = self.module.dense_features(patches, mask).float() if dense else None
        return ImageFeatures(embeds.float().cpu(), features, mask, shapes)

    def encode_dense(self, prepared: Sequence[Prepared], calibration: Calibration | None) -> ImageFeatures:
        if calibration is None:
            return self.encode_images(prepared, dense=True)
        pixels, mask, shapes = self._batch(prepared)
        tower, visible = self.module.vision_model, mask.bool()
        seen = visible[:, None, None, :]
        patches = calibrated_patches(
            list(tower.encoder["layers"]),
            tower.embeddings(pixels, shapes),
            lambda block, hidden: block(hidden, seen),
            mask=visible,
            grids=shapes,
            has_class_token=self.has_class_token,
            settings=calibration,
        )
        features = self.module.dense_features(tower.post_layernorm(patches), mask).float()
        return ImageFeatures(torch.zeros(len(pixels), 0), features, mask, shapes)

    def short_prefix(self, language: str) -> str:
        return self.prefixes.get(language, "")

    def encode_texts(self, texts: Sequence[str], kind: str) -> Tensor:
        if kind not in TEXT_KINDS:
            raise EvaluationError(f"text kind is {kind!r}; it must be one of {', '.join(TEXT_KINDS)}")
        ids = self.tokenizer(list(texts), self.lengths[kind]).to(self.device)
        return self.module.encode_ids(ids, kind).float().cpu()

    def pool_regions(self, features: ImageFeatures, boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        boxes, image_index = boxes.to(self.device), image_index.to(self.device)
        embeds, valid = self.module.pool_regions(features.dense, features.shapes, boxes, image_index)
        return embeds.float().cpu(), valid.cpu()

    def settings(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "levels": list(self.levels),
            "text_lengths": self.lengths,
            "dtype": str(next(self.module.parameters()).dtype).removeprefix("torch."),
        } | self.notes


def run_settings(checkpoint: str | Path) -> dict[str, Any]:
    """The settings.yaml of the run that made ``checkpoint`` (the run's folder, or a folder in it); {} without one."""
    for folder in (Path(checkpoint), *list(Path(checkpoint).resolve().parents)[:2]):
        if (folder / "settings.yaml").is_file():
            return read_saved_values(folder / "settings.yaml")
    return {}


def run_folder_of(checkpoint: str | Path) -> Path | None:
    """The folder of the run that made ``checkpoint``, or None."""
    for folder in (Path(checkpoint).resolve(), *list(Path(checkpoint).resolve().parents)[:2]):
        if (folder / "settings.yaml").is_file():
            return folder
    return None


def load_model(
    checkpoint: str | Path, *, levels: Sequence[int] | None = None, device: str = "cpu", dtype: str = "float32"
) -> EvaluationModel:
    """Any model that can be evaluated, by what its folder's config.json says it is.

    ``levels`` None: those the run was trained with (settings.yaml beside the checkpoint), else the method's.

    Raises:
        EvaluationError: no config.json there, or a model type that no task can use.
    """
    folder = Path(checkpoint)
    if not (folder / "config.json").is_file() and (folder / "final" / "config.json").is_file():
        folder = folder / "final"
    if not (folder / "config.json").is_file():
        raise EvaluationError(f"{checkpoint} holds no config.json; give a run's folder or a Hugging Face model folder")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    of_run = run_settings(folder).get("data", {})
    prefixes = of_run.get("short_caption_prefix") or {}
    torch_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    kind = config.get("model_type", "")
    if kind == "clip":
        from pipeline.evaluation.clip import CLIPEvaluation

        return CLIPEvaluation.load(folder, device=device, dtype=torch_dtype)
    from pipeline.data.tokenizer import load_tokenizer
    from pipeline.model import FGCLIP2

    if kind == "siglip":
        from pipeline.evaluation.siglip import SiglipEvaluation

        return SiglipEvaluation.load(folder, device=device, dtype=torch_dtype)
    is_ours = kind.startswith("fgclip2") or "longtext_len" in (config.get("text_config") or {})
    if not is_ours and kind != "siglip2":
        raise EvaluationError(
            f"{folder} holds a model of type {kind!r}; evaluation reads FG-CLIP 2 (ours and the public ones), siglip2, "
            "siglip and clip"
        )
    module = FGCLIP2.load(folder, device=device, dtype=torch_dtype)
    levels = levels or of_run.get("patch_budgets") or module.patch_budgets or DEFAULT_LEVELS
    notes = {}
    if kind == "siglip2":
        notes = {"heads": "a SigLIP 2 has no dense, long and region heads: copies of its own heads take their place"}
    tokenizer = load_tokenizer(folder)
    return FGCLIP2Evaluation(module, tokenizer, levels=levels, name=str(checkpoint), prefixes=prefixes, notes=notes)
