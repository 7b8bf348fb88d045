"""SigLIP folders of transformers: SigLIP 2's fixed-resolution checkpoints and those of the first SigLIP.

One text path of 64 positions without mask, one square image size. Where patch features are asked for, the pooling head
is used as FG-CLIP 2 uses its dense head (every patch its own query): the copy that such a model would start from. The
result files say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.evaluation.models.base import EncodedImages, Prepared
from pipeline.evaluation.models.clip import CLIPEvaluation
from pipeline.evaluation.scclip import Calibration, calibrated_patches


class SiglipEvaluation(CLIPEvaluation):
    """A transformers ``SiglipModel`` with its tokenizer; loading and windows are CLIP's."""

    kind = "siglip"
    has_class_token = False
    module_class = "SiglipModel"
    default_mean = default_std = (0.5, 0.5, 0.5)

    def prepare(self, image: Image.Image, dense: bool = False) -> Prepared:
        """SigLIP squeezes every image to its square, whatever is asked for."""
        return self._prepared(image.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR))

    def encode_images(self, prepared: Sequence[Prepared], dense: bool = False) -> EncodedImages:
        pixels = self._pixels(prepared)
        output = self.module.vision_model(pixel_values=pixels, interpolate_pos_encoding=self._stretched(pixels))
        embeds = nn.functional.normalize(output.pooler_output.float(), dim=-1).cpu()
        return self._features(embeds, output.last_hidden_state, pixels) if dense else EncodedImages(embeds)

    def encode_dense(self, prepared: Sequence[Prepared], calibration: Calibration | None) -> EncodedImages:
        if calibration is None:
            return self.encode_images(prepared, dense=True)
        pixels = self._pixels(prepared)
        mask, shapes = self._grid(pixels)
        tower = self.module.vision_model
        patches = calibrated_patches(
            list(tower.encoder.layers),
            tower.embeddings(pixels, interpolate_pos_encoding=self._stretched(pixels)),
            lambda block, states: block(states, None),
            mask=mask.bool(),
            grids=shapes,
            has_class_token=self.has_class_token,
            settings=calibration,
        )
        return self._features(torch.zeros(len(pixels), 0), tower.post_layernorm(patches), pixels)

    def _features(self, embeds: Tensor, patches: Tensor, pixels: Tensor) -> EncodedImages:
        """``patches`` after the final norm."""
        mask, shapes = self._grid(pixels)
        head = self.module.vision_model.head
        attended = head.attention(patches, patches, patches, need_weights=False)[0]
        return EncodedImages(embeds, (attended + head.mlp(head.layernorm(attended))).float(), mask, shapes)

    def encode_texts(self, texts: Sequence[str], kind: str) -> Tensor:
        self.check_kind(kind)
        length = self.module.config.text_config.max_position_embeddings
        lowered = [text.lower() for text in texts]
        ids = self.tokenizer(lowered, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        output = self.module.text_model(input_ids=ids["input_ids"].to(self.device))
        return nn.functional.normalize(output.pooler_output.float(), dim=-1).cpu()

    def text_path(self, kind: str) -> str:
        length = self.module.config.text_config.max_position_embeddings
        return f"SigLIP's only text path, cut to {length} tokens" if kind != "short" else kind

    def region_path(self) -> str:
        return "RoIAlign 1x1 over patches through a copy of the pooling head; SigLIP has no dense head"

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"preparation": "squeezed to a square"}
