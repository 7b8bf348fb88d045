"""FG-CLIP 2: SigLIP 2's towers, long texts, patch features in the joint space, and regions.

Shape letters: B images, P patches, N texts, T tokens, R regions, U distinct region texts, D width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.siglip2.modeling_siglip2 import Siglip2Attention, Siglip2MLP

from .attention import PackedAttention, additive_mask
from .checkpointing import EVERY_LAYER, Recomputation
from .configuration import START_LOGIT_BIAS, START_LOGIT_SCALE, START_REGION_SCALE, FGCLIP2Config
from .embeddings import Embeddings, Scales, StepInputs, unit
from .inference import Inference, TextKind
from .layout import ImageLayout, RegionLayout, image_layout, region_layout
from .regions import pool_regions
from .scratch import start_vision_from_scratch
from .start import configuration_of, starting_weights, stretch_table
from .towers import PoolingHead, TextTower, VisionTower


class FGCLIP2(Inference):
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
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1))
        self.logit_scale_finegraind = nn.Parameter(torch.empty(()))  # (sic) the public checkpoints' spelling
        self.logit_scale_hardneg = nn.Parameter(torch.empty(()))
        self.post_init()

    @classmethod
    def from_scratch(cls, config: FGCLIP2Config) -> FGCLIP2:
        """Random weights from torch's generator, with the long tables and the heads made from their originals.

        The vision tower's positions and attention start as ``scratch.py`` says, everything else as SigLIP 2 does.
        """
        model = cls(config)
        start_vision_from_scratch(model.vision_model)
        model.stretch_positions()
        model.copy_heads_for_stage2()
        model.longtext_head.load_state_dict(model.text_model.head.state_dict())
        return model

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
        with torch.device("meta"):
            model = cls(config)
        shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        model.load_state_dict(starting_weights(found, shapes, config, from_siglip), assign=True)
        # The file's tensors may be shared or mapped; training must own what it writes to.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)
        model.name_or_path = config.name_or_path = str(found)
        return model

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> FGCLIP2:
        """The model of a run (its ``final/``) or of a Hugging Face folder, ready to use.

        A SigLIP 2 folder is taken too; copies of its own heads then stand for those it lacks.

        Raises:
            StartError: the folder holds no such model, or weights are missing or of another shape.
        """
        model = cls.start_from(folder)
        nn.Module.to(model, device=device, dtype=dtype)  # transformers' own ``to`` hides its arguments' types
        return model.eval()

    # --- what a step needs -----------------------------------------------------------------------------------------

    def forward(self, batch: StepInputs, regions: bool = False) -> Embeddings:
        """All embeddings of a ``pipeline.data.batch.Batch`` (anything with its fields).

        One call makes everything, so that DeepSpeed's hooks see every parameter. With ``regions`` every submodule runs
        on every rank in the same order, also for R = U = 0: one image or text stands in, and empty slices of its
        features keep the heads in the graph (see ``Embeddings.region_anchor``).
        """
        facts = batch.facts
        patches, image = self.encode_vision(
            batch.pixel_values, batch.pixel_attention_mask, batch.spatial_shapes, facts.images if facts else None
        )
        num_short = batch.short_ids.shape[0]
        short_ids = batch.short_ids
        if regions:  # the same table and length as short texts: one pass serves both
            region_ids = batch.region_ids if batch.region_ids.shape[0] else batch.short_ids[:1]
            short_ids = torch.cat([short_ids, region_ids])
        budget = batch.pixel_values.shape[1]
        hidden = self.text_model(short_ids, long=False, patches=budget)
        short = unit(self.text_model.head(hidden[:num_short]))
        long = unit(self.longtext_head(self.text_model(batch.long_ids, long=True, patches=budget)))
        if not regions:
            nothing = torch.zeros(0, dtype=torch.bool, device=image.device)
            return Embeddings(image, short, long, None, nothing, None, self.scales())
        region_text = unit(self.boxtext_head(hidden[num_short:])[: batch.region_ids.shape[0]])
        region, valid = self._region_embeddings(batch, patches)
        return Embeddings(image, short, long, region, valid, region_text, self.scales())

    def _region_embeddings(self, batch: StepInputs, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Regions [R, D] and valid [R]; the dense head runs on images with boxes only."""
        facts = batch.facts
        layout = facts.regions if facts else region_layout(batch.boxes, batch.region_image, batch.spatial_shapes)
        boxed, visible, grids = layout.boxed_images, batch.pixel_attention_mask, batch.spatial_shapes
        if len(boxed) < patches.shape[0]:
            patches, visible, grids = patches.index_select(0, boxed), visible[boxed], grids[boxed]
        dense = self.dense_features(patches, None if facts and facts.images.all_real else visible)
        return self.pool_regions(dense, grids, batch.boxes, layout.region_slot, layout)

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
        mask = self._mask(None if layout.all_real else pixel_attention_mask)
        patches = self.vision_model(pixel_values, mask, spatial_shapes, layout)
        return patches, unit(self.vision_model.head(patches, mask))

    def _mask(self, pixel_attention_mask: Tensor | None) -> Tensor | None:
        if pixel_attention_mask is None:
            return None
        # Not a named weight: ZeRO 3 gathers what is read by name outside its module, and only some ranks come here.
        return additive_mask(pixel_attention_mask, like=next(self.parameters()))

    def dense_features(self, patches: Tensor, pixel_attention_mask: Tensor | None) -> Tensor:
        """Patch features in the joint space, [B, P, D], not normalised; rows of padding mean nothing."""
        return self.dense_feature_head(patches, self._mask(pixel_attention_mask), dense=True)

    def pool_regions(
        self,
        dense: Tensor,
        spatial_shapes: Tensor,
        boxes: Tensor,
        region_image: Tensor,
        layout: RegionLayout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[B, P, D], [B, 2], boxes [R, 4] normalised xyxy, [R] -> regions [R, D] unit float32, valid [R] bool.

        A box without area or outside its image gives a row of 0, ``valid`` False and no gradient.
        """
        pooled, valid = pool_regions(dense, spatial_shapes, boxes, region_image, layout)
        return unit(pooled, valid), valid

    def encode_ids(self, ids: Tensor, kind: TextKind) -> Tensor:
        """[N, T] ids, lower-cased text padded on the right with 0, -> [N, D] unit float32."""
        if kind not in ("short", "long", "region"):
            raise ValueError(f"kind is {kind!r}; it must be 'short', 'long' or 'region'")
        head = {"short": self.text_model.head, "long": self.longtext_head, "region": self.boxtext_head}[kind]
        return unit(head(self.text_model(ids, long=kind == "long")))

    def scales(self) -> Scales:
        """The learned scalars in float32, exponentiated where they are stored as logarithms."""
        return Scales(
            global_scale=self.logit_scale.float().exp().squeeze(),
            global_bias=self.logit_bias.float().squeeze(),
            finegrained=self.logit_scale_finegraind.float().exp().squeeze(),
            hardneg=self.logit_scale_hardneg.float().exp().squeeze(),
        )

    def checkpoint_activations(self, recomputation: Recomputation = EVERY_LAYER) -> None:
        """Recompute layers in the backward instead of keeping their activations."""
        self.vision_model.encoder.recomputation = self.text_model.encoder.recomputation = recomputation

    # --- where weights start ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def copy_heads_for_stage2(self) -> None:
        """Make the heads for regions copies of the trained ones: called at the end of stage 1."""
        self.boxtext_head.load_state_dict(self.text_model.head.state_dict())
        self.dense_feature_head.load_state_dict(self.vision_model.head.state_dict())

    @torch.no_grad()
    def stretch_positions(self) -> None:
        """Fill both long position tables from the short one.

        Raises:
            ValueError: where ``longtext_len`` is not what the stretch gives.
        """
        tables, text = self.text_model.embeddings, self.config.text_config
        stretched = stretch_table(tables.position_embedding.weight, text.keep_len)
        if stretched.shape[0] != text.longtext_len:
            raise ValueError(
                f"text_config.longtext_len is {text.longtext_len}; {text.max_position_embeddings} positions of which "
                f"{text.keep_len} are kept stretch to {stretched.shape[0]}; set longtext_len to that"
            )
        tables.position_embedding_ori.weight.copy_(stretched)
        tables.position_embedding_res.weight.copy_(stretched)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """SigLIP 2's own starts, module by module. ``init`` leaves weights alone that a checkpoint has filled."""
        if isinstance(module, Siglip2Attention | Siglip2MLP):
            for layer in module.children():
                if isinstance(layer, nn.Linear):
                    init.xavier_uniform_(layer.weight)
                    if isinstance(module, Siglip2MLP):
                        init.normal_(layer.bias, std=1e-6)
                    else:
                        init.zeros_(layer.bias)
        elif isinstance(module, PoolingHead):
            init.xavier_uniform_(module.probe)
        elif isinstance(module, PackedAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
            init.zeros_(module.out_proj.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.lecun_normal_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, FGCLIP2):
            init.constant_(module.logit_scale, START_LOGIT_SCALE)
            init.constant_(module.logit_bias, START_LOGIT_BIAS)
            init.constant_(module.logit_scale_finegraind, START_REGION_SCALE)
            init.constant_(module.logit_scale_hardneg, START_REGION_SCALE)
