"""FG-CLIP 2: SigLIP 2's towers, long texts, patch features in the joint space, and regions.

Shape letters: B images, P patches, D width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .attention import additive_mask
from .configuration import START_LOGIT_BIAS, START_LOGIT_SCALE, FGCLIP2Config
from .contrast import ContrastOutput, padded
from .dual_encoder import DualEncoder
from .embeddings import unit
from .layout import ImageLayout, image_layout
from .start import configuration_of, starting_weights
from .towers import PoolingHead, TextTower, VisionTower


class FGCLIP2(DualEncoder):
    """The model. ``forward`` makes every embedding of a batch; ``encode_*`` (inference.py) take images and strings."""

    config_class = FGCLIP2Config
    config: FGCLIP2Config
    base_model_prefix = "fgclip2"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "TextEmbeddings",
        "VisionEmbeddings",
        "EncoderLayer",
        "LastPositionLayer",
        "PoolingHead",
    ]
    _supports_sdpa = True
    start_logit_scale, start_logit_bias = START_LOGIT_SCALE, START_LOGIT_BIAS

    def __init__(self, config: FGCLIP2Config) -> None:
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        for tower in (text, vision):  # the towers are plain modules here, so nobody else hands them the choice
            tower._attn_implementation = config._attn_implementation
        self.text_model = TextTower(text)
        self.vision_model = VisionTower(vision)
        self.longtext_head = nn.Linear(text.hidden_size, text.projection_size)
        self.boxtext_head = nn.Linear(text.hidden_size, text.projection_size)
        self.dense_feature_head = PoolingHead(vision)
        self.temporal = self._make_temporal()
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1))
        self.logit_scale_finegraind = nn.Parameter(torch.empty(()))  # (sic) the public checkpoints' spelling
        self.logit_scale_hardneg = nn.Parameter(torch.empty(()))
        self.post_init()

    @classmethod
    def start_from(
        cls, folder: str | Path, vocab_size: int | None = None, config: FGCLIP2Config | None = None
    ) -> FGCLIP2:
        """A model in float32 with the weights of a run, of an FG-CLIP 2, a SigLIP 2 or a SigLIP folder.

        What a SigLIP 2 lacks starts as a copy of its own heads and tables.

        Args:
            vocab_size: the number of ids of the tokenizer that will be used with it; None: not checked.
            config: for a folder of weights without config.json.

        Raises:
            StartError: no model there, another tokenizer, and missing, unexpected or differently shaped weights.
        """
        found, config, from_siglip = configuration_of(folder, vocab_size, config)
        return cls._filled(found, config, lambda shapes: starting_weights(found, shapes, config, from_siglip))

    # --- what a step needs -----------------------------------------------------------------------------------------

    def _text_heads(self) -> dict[str, nn.Module]:
        return {"short": self.text_model.head, "long": self.longtext_head, "region": self.boxtext_head}

    def contrast(
        self,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: object,
    ) -> ContrastOutput:
        """Logits of a SigLIP 2 processor's output, as transformers' own models give them; texts take the short path.

        ``attention_mask`` and whatever else tokenizers and pipelines send along is not used.

        Raises:
            ValueError: neither images nor texts, images without their grids, or texts that are too long.
        """
        image = text = None
        if pixel_values is not None:
            if spatial_shapes is None:
                raise ValueError("pixel_values came without spatial_shapes; give all that the image processor returns")
            image = self.encode_vision(pixel_values, pixel_attention_mask, spatial_shapes)[1]
        if input_ids is not None:
            text = self.encode_ids(padded(input_ids, self.config.text_config.max_position_embeddings), "short")
        if image is None or text is None:
            if image is None and text is None:
                raise ValueError("neither pixel_values nor input_ids were given; give what the processor returns")
            return ContrastOutput(image_embeds=image, text_embeds=text)
        scales = self.scales()
        logits = image @ text.T * scales.global_scale + scales.global_bias
        return ContrastOutput(logits, logits.T, image, text)

    def encode_vision(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None,
        spatial_shapes: Tensor,
        layout: ImageLayout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[B, P, 768], [B, P], [B, 2] -> patches [B, P, D] before any head, images [B, D] unit float32.

        ``pixel_values`` are uint8 or in [-1, 1]. Without ``layout`` the grids are read back from ``spatial_shapes``.
        """
        layout = layout or image_layout(spatial_shapes, pixel_values.shape[1])
        mask = self.patch_mask(None if layout.all_real else pixel_attention_mask)
        patches = self.vision_model(pixel_values, mask, spatial_shapes, layout)
        return patches, unit(self.vision_model.head(patches, mask))

    def patch_mask(self, pixel_attention_mask: Tensor | None) -> Tensor | None:
        if pixel_attention_mask is None or pixel_attention_mask.ndim == 4:  # made already
            return pixel_attention_mask
        # Not a named weight: ZeRO 3 gathers what is read by name outside its module, and only some ranks come here.
        return additive_mask(pixel_attention_mask, like=next(self.parameters()))

    def dense_features(self, patches: Tensor, pixel_attention_mask: Tensor | None) -> Tensor:
        """Patch features in the joint space, [B, P, D], not normalised; rows of padding mean nothing."""
        return self.dense_feature_head(patches, self.patch_mask(pixel_attention_mask), dense=True)

    # --- where weights start ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def copy_heads_for_stage2(self) -> None:
        """Make the heads for regions copies of the trained ones: called at the end of stage 1."""
        self.boxtext_head.load_state_dict(self.text_model.head.state_dict())
        self.dense_feature_head.load_state_dict(self.vision_model.head.state_dict())
