"""FG-CLIP 2, ours or public, and SigLIP 2 with its heads copied into FG-CLIP 2's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.base.constants import PATCH_BUDGETS
from pipeline.data.tokenizer import Tokenizer
from pipeline.evaluation.models.base import EncodedImages, Prepared
from pipeline.evaluation.models.patched import PatchedEvaluation
from pipeline.evaluation.scclip import Calibration, calibrated_patches
from pipeline.model import FGCLIP2


class FGCLIP2Evaluation(PatchedEvaluation):
    """FG-CLIP 2, ours or public; and SigLIP 2 with its heads copied into FG-CLIP 2's (stated in the settings)."""

    def __init__(
        self,
        module: FGCLIP2,
        tokenizer: Tokenizer,
        *,
        patch_budgets: Sequence[int] = PATCH_BUDGETS,
        name: str = "model",
        prefixes: Mapping[str, str] | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        """``prefixes``: what the run read before short captions, by language. ``notes``: further settings to state."""
        self.module, self.tokenizer, self.patch_budgets = module, tokenizer, tuple(patch_budgets)
        self.name, self.kind = name, "fgclip2"
        self.prefixes, self.notes = dict(prefixes or {}), dict(notes or {})
        text = self.module.config.text_config
        self.lengths = {
            "short": text.max_position_embeddings,
            "region": text.max_position_embeddings,
            "long": text.longtext_len,
        }

    def with_patch_budgets(self, budgets: Sequence[int]) -> FGCLIP2Evaluation:
        return FGCLIP2Evaluation(
            self.module,
            self.tokenizer,
            patch_budgets=budgets,
            name=self.name,
            prefixes=self.prefixes,
            notes=self.notes,
        )

    def encode_images(self, prepared: Sequence[Prepared], dense: bool = False) -> EncodedImages:
        pixels, mask, shapes = self._batch(prepared)
        patches, embeds = self.module.encode_vision(pixels, mask, shapes)
        features = self.module.dense_features(patches, mask).float() if dense else None
        return EncodedImages(embeds.float().cpu(), features, mask, shapes)

    def encode_dense(self, prepared: Sequence[Prepared], calibration: Calibration | None) -> EncodedImages:
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
        return EncodedImages(torch.zeros(len(pixels), 0), features, mask, shapes)

    def short_prefix(self, language: str) -> str:
        return self.prefixes.get(language, "")

    def encode_texts(self, texts: Sequence[str], kind: str) -> Tensor:
        self.check_kind(kind)
        ids = self.tokenizer(list(texts), self.lengths[kind]).to(self.device)
        return self.module.encode_ids(ids, kind).float().cpu()

    def pool_regions(self, features: EncodedImages, boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        boxes, image_index = boxes.to(self.device), image_index.to(self.device)
        embeds, valid = self.module.pool_regions(*features.patches(), boxes, image_index)
        return embeds.float().cpu(), valid.cpu()

    def aggregate_frames(self, embeds: Tensor) -> Tensor:
        return self.module.aggregate_frames(embeds.to(self.device)).float().cpu()

    def aggregate_regions(self, per_frame: Tensor, visible: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        inputs = (each.to(self.device) for each in (per_frame, visible, boxes))
        embeds, valid = self.module.aggregate_regions(*inputs)
        return embeds.float().cpu(), valid.cpu()

    @property
    def most_frames(self) -> int | None:
        return self.module.config.temporal_frames or None

    def frames_path(self) -> str:
        if not self.module.config.temporal_layers:
            return super().frames_path()
        return f"regions by a temporal transformer of {self.module.config.temporal_layers} layers; clips by the mean"

    def settings(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "patch_budgets": list(self.patch_budgets),
            "text_lengths": self.lengths,
            "dtype": str(next(self.module.parameters()).dtype).removeprefix("torch."),
        } | self.notes
