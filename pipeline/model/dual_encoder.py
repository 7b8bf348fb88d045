"""What both model families share: one forward for all embeddings of a batch, texts, regions and scales.

A family is its two towers, ``encode_vision``, ``dense_features`` and the heads of its kinds of text. Training, caches,
checkpoints, evaluation and export know this class alone.

Shape letters: B samples of F frames (1 for images), P patches, N texts, T tokens, R regions, U distinct region texts,
D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.siglip2.modeling_siglip2 import Siglip2Attention, Siglip2MLP

from .attention import PackedAttention
from .checkpointing import EVERY_LAYER, Recomputation
from .configuration import START_REGION_SCALE
from .contrast import ContrastOutput
from .embeddings import Embeddings, Scales, StepInputs, unit
from .inference import TextKind
from .layout import RegionLayout, region_layout
from .regions import pool_regions
from .scratch import start_vision_from_scratch
from .start import Shapes, stretch_table
from .temporal import TemporalAggregator
from .towers import PoolingHead
from .video import VideoInference


class DualEncoder(VideoInference):
    """Two towers whose embeddings meet in one space."""

    # The towers are typed in the families; every parameter of a head is used by the module that this returns.
    text_model: Any
    vision_model: Any
    start_logit_scale: float  # as it is stored: a logarithm
    start_logit_bias: float
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter
    logit_scale_finegraind: nn.Parameter  # (sic) the public checkpoints' spelling
    logit_scale_hardneg: nn.Parameter
    # Values in float32, [1] each, of scalars that are stored with fewer bits, by name; see pipeline/training/master.py.
    exact_scalars: Mapping[str, Tensor] = MappingProxyType({})

    @classmethod
    def from_scratch(cls, config: Any) -> Self:
        """Random weights from torch's generator, with the long tables and the heads made from their originals.

        The vision tower's positions and attention start as ``scratch.py`` says, everything else as SigLIP 2 does.

        Args:
            config: of the family.
        """
        model = cls(config)
        start_vision_from_scratch(model.vision_model)
        model.stretch_positions()
        model.copy_heads_for_stage2()
        model.text_head("long").load_state_dict(model.text_head("short").state_dict())
        return model

    @classmethod
    def _filled(cls, folder: Path, config: Any, weights_of: Callable[[Shapes], dict[str, Tensor]]) -> Self:
        """A model of ``config`` with the weights that ``weights_of`` reads from ``folder`` for the shapes it has."""
        with torch.device("meta"):
            model = cls(config)
        shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        model.load_state_dict(weights_of(shapes), assign=True)
        # The file's tensors may be shared or mapped; training must own what it writes to.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)
        model.name_or_path = config.name_or_path = str(folder)
        return model

    @classmethod
    def start_from(cls, folder: str | Path, vocab_size: int | None = None) -> Self:
        """A model in float32 with the weights of a folder; each family says of which kinds."""
        raise NotImplementedError

    def text_head(self, kind: TextKind) -> nn.Module:
        """What projects the text tower's pooled state of short texts, long texts or region texts.

        Raises:
            ValueError: for another kind.
        """
        heads = self._text_heads()
        if kind not in heads:
            raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(heads)}")
        return heads[kind]

    def _text_heads(self) -> dict[str, nn.Module]:
        raise NotImplementedError

    def copy_heads_for_stage2(self) -> None:
        """Make the heads for regions copies of the trained ones: called at the end of stage 1."""
        raise NotImplementedError

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """The model of a run (its ``final/``) or of a Hugging Face folder, ready to use.

        A SigLIP 2 folder (for FG-CLIP 1 a CLIP folder) is taken too; copies of its own heads then stand for those it
        lacks.

        Raises:
            StartError: the folder holds no such model, or weights are missing or of another shape.
        """
        model = cls.start_from(folder)
        nn.Module.to(model, device=device, dtype=dtype)  # transformers' own ``to`` hides its arguments' types
        return model.eval()

    # --- what a step needs -----------------------------------------------------------------------------------------

    def forward(
        self, batch: StepInputs | None = None, regions: bool = False, **inputs: Tensor
    ) -> Embeddings | ContrastOutput:
        """A step's embeddings, or the logits of a processor's output: ``model(pixel_values=…, input_ids=…)``."""
        return self.contrast(**inputs) if batch is None else self.embed_batch(batch, regions)

    def contrast(self, **inputs: Tensor) -> ContrastOutput:
        """Logits of a processor's output, where the family has them."""
        raise NotImplementedError

    def embed_batch(self, batch: StepInputs, regions: bool) -> Embeddings:
        """All embeddings of a ``pipeline.data.batch.Batch`` (anything with its fields).

        One call makes everything, so that DeepSpeed's hooks see every parameter. With ``regions`` every submodule runs
        on every rank in the same order, also for R = U = 0: one image or text stands in, and empty slices of its
        features keep the heads in the graph (see ``Embeddings.region_anchor``).
        """
        facts = batch.facts
        mask = None if facts and facts.images.all_real else self.patch_mask(batch.pixel_attention_mask)
        patches, image = self.encode_vision(
            batch.pixel_values, mask, batch.spatial_shapes, facts.images if facts else None
        )
        num_short = batch.short_ids.shape[0]
        short_ids = batch.short_ids
        if regions:  # the same table and length as short texts: one pass serves both
            region_ids = batch.region_ids if batch.region_ids.shape[0] else batch.short_ids[:1]
            short_ids = torch.cat([short_ids, region_ids])
        if batch.num_frames > 1:  # every frame went through the tower as an image
            image = self.aggregate_frames(image.view(num_short, batch.num_frames, image.shape[1]))
        budget = batch.pixel_values.shape[1]
        hidden = self.text_model(short_ids, long=False, patches=budget)
        short = unit(self.text_head("short")(hidden[:num_short]))
        long = unit(self.text_head("long")(self.text_model(batch.long_ids, long=True, patches=budget)))
        if not regions:
            nothing = torch.zeros(0, dtype=torch.bool, device=image.device)
            return Embeddings(image, short, long, None, nothing, None, self.scales())
        region_text = unit(self.text_head("region")(hidden[num_short:])[: batch.region_ids.shape[0]])
        region, valid = self._region_embeddings(batch, patches, mask)
        return Embeddings(image, short, long, region, valid, region_text, self.scales())

    def _region_embeddings(self, batch: StepInputs, patches: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Regions [R, D] and valid [R]; the dense head runs on images with boxes only. ``mask``: of ``patch_mask``.

        In batches of images the temporal weights are in the graph with a factor of 0, so that every step of a run goes
        through the same modules.
        """
        facts = batch.facts
        layout = facts.regions if facts else region_layout(batch.boxes, batch.region_image, batch.spatial_shapes)
        boxed, grids = layout.boxed_images, batch.spatial_shapes
        if len(boxed) < patches.shape[0]:
            patches, grids = patches.index_select(0, boxed), grids[boxed]
            mask = None if mask is None else mask[boxed]
        dense = self.dense_features(patches, mask)
        region, valid = self.pool_regions(dense, grids, batch.boxes, layout.region_slot, layout)
        if batch.num_frames > 1:
            shape = (len(region) // batch.num_frames, batch.num_frames)
            return self.aggregate_regions(*(each.unflatten(0, shape) for each in (region, valid, batch.boxes)))
        if self.temporal is not None:
            region = region + 0.0 * self._aggregated_stand_in(region, 1).sum()
        return region, valid

    def patch_mask(self, pixel_attention_mask: Tensor | None) -> Tensor | None:
        """What attention takes for [B, P], 1 for a patch and 0 for padding; None where no patch is padding.

        Made once for a batch: ``encode_vision`` and ``dense_features`` take it as well as what it is made from.
        """
        return None

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
        """[N, T] ids of a tokenizer of the model -> [N, D] unit float32."""
        return unit(self.text_head(kind)(self.text_model(ids, long=kind == "long")))

    def scales(self) -> Scales:
        """The learned scalars in float32, exponentiated where they are stored as logarithms."""
        return Scales(
            global_scale=self._scalar("logit_scale").exp(),
            global_bias=self._scalar("logit_bias"),
            finegrained=self._scalar("logit_scale_finegraind").exp(),
            hardneg=self._scalar("logit_scale_hardneg").exp(),
        )

    def _scalar(self, name: str) -> Tensor:
        """[] float32: of the exact value where there is one, with the gradient of what is stored."""
        stored, exact = getattr(self, name).float(), self.exact_scalars.get(name)
        return (stored if exact is None else exact.reshape(stored.shape) + (stored - stored.detach())).squeeze()

    def checkpoint_activations(self, recomputation: Recomputation = EVERY_LAYER) -> None:
        """Recompute layers in the backward instead of keeping their activations."""
        self.vision_model.encoder.recomputation = self.text_model.encoder.recomputation = recomputation

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
        """SigLIP 2's own starts, module by module, and CLIP's convolution as its linear layers.

        ``init`` leaves weights alone that a checkpoint has filled.
        """
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
        elif isinstance(module, TemporalAggregator):  # after the layers that it holds
            init.zeros_(module.projection.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            init.lecun_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, DualEncoder):
            init.constant_(module.logit_scale, self.start_logit_scale)
            init.constant_(module.logit_bias, self.start_logit_bias)
            init.constant_(module.logit_scale_finegraind, START_REGION_SCALE)
            init.constant_(module.logit_scale_hardneg, START_REGION_SCALE)
