"""A folder of ONNX files as a model that can be evaluated, so that smaller weights can be measured on any set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.base.constants import PATCH_BUDGETS
from pipeline.data.tokenizer import load_tokenizer
from pipeline.evaluation.models.base import EncodedImages, Prepared
from pipeline.evaluation.models.patched import PatchedEvaluation
from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.scclip import Calibration
from pipeline.model.onnx_runtime import WEIGHTS, ONNXModel


class ONNXEvaluation(PatchedEvaluation):
    """What ``python -m pipeline.export --as onnx`` wrote, run by onnxruntime on the CPU."""

    kind = "onnx"

    def __init__(self, folder: str | Path, budgets: Sequence[int] | None = None) -> None:
        """
        Raises:
            StartError: a file is missing or damaged, or onnxruntime is not installed.
        """
        self.name, self.graphs, self.tokenizer = str(folder), ONNXModel(folder), load_tokenizer(folder)
        self.module = nn.Identity()  # nothing of it is in torch
        known = self.graphs.description
        self.patch_size = int(known["patch_size"])
        self.patch_budgets = tuple(budgets or known["patch_budgets"] or PATCH_BUDGETS)
        self.lengths: dict[str, int] = known["text_lengths"]

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def with_patch_budgets(self, budgets: Sequence[int]) -> ONNXEvaluation:
        return ONNXEvaluation(self.name, budgets)

    def encode_images(self, prepared: Sequence[Prepared], dense: bool = False) -> EncodedImages:
        pixels, mask, shapes = self._batch(prepared)
        embeds, features = self.graphs.images(pixels, mask, shapes)
        return EncodedImages(embeds, features if dense else None, mask, shapes)

    def encode_dense(self, prepared: Sequence[Prepared], calibration: Calibration | None) -> EncodedImages:
        if calibration is not None:
            raise EvaluationError("--calibrate changes the tower's last layers, which an ONNX file does not show")
        return self.encode_images(prepared, dense=True)

    def encode_texts(self, texts: Sequence[str], kind: str) -> Tensor:
        self.check_kind(kind)
        return self.graphs.texts(self.tokenizer(list(texts), self.lengths[kind]), kind)

    def pool_regions(self, features: EncodedImages, boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        dense, shapes = features.patches()
        embeds = torch.zeros(len(boxes), dense.shape[-1])
        for image in image_index.unique().tolist():
            own = image_index == image
            embeds[own] = self.graphs.regions(dense[image], shapes[image], boxes[own])
        return embeds, embeds.norm(dim=-1) > 0

    def short_prefix(self, language: str) -> str:
        return str(self.graphs.description["short_caption_prefix"].get(language, ""))

    def settings(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "patch_budgets": list(self.patch_budgets),
            "text_lengths": self.lengths,
            "weights": self.graphs.description["weights"],
        }

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(sorted(self.settings().items())).encode())
        with (Path(self.name) / WEIGHTS).open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        return digest.hexdigest()[:16]
