"""FG-CLIP 1: CLIP's towers, long texts with a path of their own, and regions.

Image:   the class token through ``visual_projection``, as CLIP.
Regions: RoIAlign on the patch grid of the last-but-one layer's hidden states, through the tower's final norm and
         ``roi_projection``. The projection is linear and without a bias, so projecting before pooling gives the same.
Texts:   short ones as CLIP; long ones with the stretched position tables and ``longtext_head``; region texts with the
         short table and ``boxtext_head``.

Source: FG-CLIP (arXiv 2505.05071) and its public code, which reads the last layer once more without its attention and
projects regions with ``visual_projection`` itself; here regions have a projection of their own. The names of CLIP's own
weights are those of transformers' ``CLIPModel``.

Shape letters: B images, P patches of the tower, R regions, D width.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import initialization as init

from .clip_configuration import LOADER_PATCH, START_CLIP_SCALE, FGCLIP1Config
from .clip_start import clip_configuration_of, clip_weights
from .clip_towers import ClipTextTower, ClipVisionEmbeddings, ClipVisionTower
from .configuration import START_LOGIT_BIAS, START_LOGIT_SCALE
from .dual_encoder import DualEncoder
from .embeddings import unit
from .layout import ImageLayout, RegionLayout

if TYPE_CHECKING:
    from PIL.Image import Image


class FGCLIP1(DualEncoder):
    """The model. ``forward`` makes every embedding of a batch; ``encode_*`` (inference.py) take images and strings."""

    config_class = FGCLIP1Config
    config: FGCLIP1Config
    base_model_prefix = "fgclip1"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TextEmbeddings", "ClipVisionEmbeddings", "EncoderLayer"]
    _supports_sdpa = True
    start_logit_scale, start_logit_bias = START_CLIP_SCALE, 0.0  # of the softmax, which has no bias

    def __init__(self, config: FGCLIP1Config) -> None:
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        for tower in (text, vision):  # the towers are plain modules here, so nobody else hands them the choice
            tower._attn_implementation = config._attn_implementation
        self.text_model = ClipTextTower(text)
        self.vision_model = ClipVisionTower(vision)
        self.visual_projection = nn.Linear(vision.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
        self.longtext_head = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
        self.boxtext_head = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
        self.roi_projection = nn.Linear(vision.hidden_size, config.projection_dim, bias=False)
        self.temporal = self._make_temporal()
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.logit_bias = nn.Parameter(torch.empty(()))  # of the sigmoid loss alone
        self.logit_scale_finegraind = nn.Parameter(torch.empty(()))  # (sic) the public checkpoints' spelling
        self.logit_scale_hardneg = nn.Parameter(torch.empty(()))
        self.post_init()

    @classmethod
    def start_from(cls, folder: str | Path, vocab_size: int | None = None) -> FGCLIP1:
        """A model in float32 with the weights of a run, of an FG-CLIP 1 folder of this project, or of a CLIP folder.

        What a CLIP lacks starts as a copy of its own projections and tables.

        Args:
            vocab_size: the number of ids of the tokenizer that will be used with it; None: not checked.

        Raises:
            StartError: no model there, another tokenizer, and missing, unexpected or differently shaped weights.
        """
        found, config, from_clip = clip_configuration_of(folder, vocab_size)
        return cls._filled(found, config, lambda shapes: clip_weights(found, shapes, config, from_clip))

    # --- what a step needs -----------------------------------------------------------------------------------------

    def _text_heads(self) -> dict[str, nn.Module]:
        return {"short": self.text_projection, "long": self.longtext_head, "region": self.boxtext_head}

    def encode_vision(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None,
        spatial_shapes: Tensor,
        layout: ImageLayout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[B, P', 768] patches of 16 pixels -> patches [B, P, D] before the projection, images [B, D] unit float32.

        ``pixel_values`` are uint8 or in [-1, 1] and make a square of the tower's size; what says how they lie is not
        read.
        """
        patches, image = self.vision_model(pixel_values)
        return patches, unit(self.visual_projection(image))

    def dense_features(self, patches: Tensor, pixel_attention_mask: Tensor | None) -> Tensor:
        """Patch features in the joint space, [B, P, D], not normalised. No patch is padding."""
        return self.roi_projection(patches)

    def pool_regions(
        self,
        dense: Tensor,
        spatial_shapes: Tensor,
        boxes: Tensor,
        region_image: Tensor,
        layout: RegionLayout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As ``DualEncoder.pool_regions``, on the tower's own grid, whatever that of the batch's patches is."""
        vision = self.config.vision_config
        if layout is not None:  # counted for patches of 16 pixels; these bounds hold for the tower's
            samples = layout.most_samples * max(1, math.ceil(LOADER_PATCH / vision.patch_size))
            layout = replace(layout, longest_side=vision.grid_side, most_samples=samples)
        grids = torch.full_like(spatial_shapes, vision.grid_side)
        return super().pool_regions(dense, grids, boxes, region_image, layout)

    # --- images and strings ----------------------------------------------------------------------------------------

    @property
    def start_ids(self) -> list[int]:
        start = self.config.text_config.bos_token_id
        return [] if start is None else [start]

    def _patch_budget(self, image: Image) -> int:
        return self.config.vision_config.loader_patches

    def _pixels(self, images: list[Image], max_num_patches: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images squeezed to the tower's square, as training reads them.

        Raises:
            ValueError: another number of patches is asked for.
        """
        vision = self.config.vision_config
        if max_num_patches != vision.loader_patches:
            raise ValueError(
                f"max_num_patches is {max_num_patches}; this tower takes squares of {vision.image_size} pixels: leave "
                "it out"
            )
        size, side = vision.image_size, vision.image_size // LOADER_PATCH
        squares = [image.convert("RGB").resize((size, size), resample=2) for image in images]  # 2: bilinear
        values = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).to(self.device)
        lines = values.view(-1, side, LOADER_PATCH, side, LOADER_PATCH * 3).transpose(2, 3)
        mask = torch.ones(len(images), side**2, dtype=torch.int32, device=self.device)
        grids = torch.full((len(images), 2), vision.grid_side, device=self.device)
        return lines.reshape(len(images), side**2, -1), mask, grids

    # --- where weights start ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def copy_heads_for_stage2(self) -> None:
        """Make the projections for regions copies of the trained ones: called at the end of stage 1."""
        self.boxtext_head.load_state_dict(self.text_projection.state_dict())
        self.roi_projection.load_state_dict(self.visual_projection.state_dict())

    @torch.no_grad()
    def draw_region_projection(self) -> None:
        """Random weights for ``roi_projection`` from torch's generator: a start that knows nothing."""
        init.lecun_normal_(self.roi_projection.weight)

    @torch.no_grad()
    def start_sigmoid(self) -> None:
        """Scale and bias of the global loss where SigLIP starts them; CLIP's own scale is a softmax's."""
        self.logit_scale.fill_(START_LOGIT_SCALE)
        self.logit_bias.fill_(START_LOGIT_BIAS)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ClipVisionEmbeddings):
            init.normal_(module.class_embedding, std=self.config.vision_config.hidden_size**-0.5)
