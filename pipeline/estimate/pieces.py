"""The model in pieces: what each keeps for the backward, and its matrix products.

They are traced on tensors without data: the real modules run under torch's FakeTensorMode, so that a change of the
model changes the estimate with it. Each piece is traced for two numbers of rows; everything between is linear.

Shape letters: B images, P patches, N texts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model import FGCLIP2, FGCLIP2Config
from pipeline.model.attention import additive_mask

Unit = Literal["images", "boxed_images", "short_texts", "long_texts"]
FEW, MORE = 2, 6  # rows of the two traces; one row would let torch drop a dimension


@dataclass(frozen=True)
class Linear:
    """``fixed + each * rows``."""

    fixed: float = 0.0
    each: float = 0.0

    def at(self, rows: float) -> float:
        return self.fixed + self.each * rows if rows else 0.0


@dataclass(frozen=True)
class Piece:
    """One module, or ``layers`` equal ones, on ``unit`` rows."""

    name: str
    part: Literal["vision", "text", "region"]
    unit: Unit
    layers: int
    saved: Linear  # bytes a layer keeps for the backward, its input included
    entry: Linear  # bytes of a layer's input, which is all that a recomputed layer keeps
    widest: Linear  # bytes of the largest tensor that it keeps: the size of what the backward works in
    forward_flops: Linear  # of a layer
    backward_flops: Linear
    trained: int  # numbers that get a gradient, of all layers
    recomputable: bool = False


def model_without_data(config: FGCLIP2Config) -> FGCLIP2:
    """The model with shapes and no memory."""
    with torch.device("meta"):
        return FGCLIP2(config)


def trace_pieces(
    config: FGCLIP2Config,
    patches: int,
    precision: str,
    with_regions: bool,
    is_trained: Callable[[str], bool],
    products: bool = True,
    weights: str = "fp32",
) -> list[Piece]:
    """The pieces of one forward at a patch budget, in the order in which they run.

    Args:
        patches: P of every image.
        is_trained: whether a parameter's name gets a gradient.
        products: count the matrix products; without them, which is enough for memory, it takes a third of the time.
        precision, weights: as ``train.precision`` and ``train.weights``.
    """
    model = model_without_data(config)
    if weights == "bf16":
        model.bfloat16()  # while it has no data at all: fake tensors may be remembered, and then they are not replaced
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_trained(name))
        tracer = _Tracer(precision if weights == "fp32" else "fp32", products)
        pieces = _vision(model, tracer, patches)
        pieces += _text(model, tracer, config.text_config.max_position_embeddings, "short_texts")
        pieces += _text(model, tracer, config.text_config.longtext_len, "long_texts")
        if with_regions:
            pieces.append(_dense(model, tracer, patches))
    return pieces


class _Tracer:
    def __init__(self, precision: str, products: bool) -> None:
        self.autocast, self.products = precision == "bf16", products

    def piece(
        self,
        name: str,
        part: Any,
        unit: Unit,
        modules: list[nn.Module],
        run: Callable[[int], tuple[Tensor, Tensor]],
        layers: int = 1,
        recomputable: bool = False,
        own_weights: bool = True,
    ) -> Piece:
        """``run(rows)`` gives input and output of one layer; ``own_weights``: the text tower's are counted once."""
        traced = [self._trace(run, rows, modules) for rows in (FEW, MORE)]
        few, more = traced
        lines = []
        for small, large in zip(few, more, strict=True):
            each = (large - small) / (MORE - FEW)
            lines.append(Linear(small - each * FEW, each))
        trained = sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad) if own_weights else 0
        saved, entry, widest, forward, backward = lines
        if not own_weights:
            saved = Linear(0.0, saved.each)
        return Piece(name, part, unit, layers, saved, entry, widest, forward, backward, trained * layers, recomputable)

    def _trace(
        self, run: Callable[[int], tuple[Tensor, Tensor]], rows: int, modules: list[nn.Module]
    ) -> tuple[float, ...]:
        weights = {p.untyped_storage()._cdata for m in modules for p in m.parameters()}
        saved: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                saved[storage._cdata] = storage
            return tensor

        with self._precision(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            entry, _ = run(rows)
        sizes = [storage.nbytes() for storage in saved.values()]
        flops = self._count_products(run, rows) if self.products else (0.0, 0.0)
        return sum(sizes), entry.untyped_storage().nbytes(), max(sizes, default=0), *flops

    def _count_products(self, run: Callable[[int], tuple[Tensor, Tensor]], rows: int) -> tuple[float, float]:
        """Operations of the forward and of the backward."""
        # torch counts no products of the fused attention on CPUs, so products are counted in its plain form
        with self._precision(), sdpa_kernel([SDPBackend.MATH]):
            with FlopCounterMode(display=False) as forward:
                _, out = run(rows)
            with FlopCounterMode(display=False) as backward:
                if out.requires_grad:  # a frozen embedding has no backward
                    out.float().sum().backward()
        return forward.get_total_flops(), backward.get_total_flops()

    def _precision(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)


def _dtype(module: nn.Module) -> torch.dtype:
    """Of the residual stream: autocast leaves it as the weights are."""
    return next(module.parameters()).dtype


def _vision(model: FGCLIP2, tracer: _Tracer, patches: int) -> list[Piece]:
    tower = model.vision_model
    width, layers = model.config.vision_config.hidden_size, list(tower.encoder["layers"])
    values = model.config.vision_config.num_channels * model.config.vision_config.patch_size**2

    def hidden(rows: int) -> Tensor:
        return torch.empty(rows, patches, width, dtype=_dtype(tower), requires_grad=True)

    def visible(rows: int) -> Tensor:
        return torch.ones(rows, patches, dtype=torch.int32)

    def embed(rows: int) -> tuple[Tensor, Tensor]:
        pixels = torch.empty(rows, patches, values, dtype=_dtype(tower))
        return pixels, tower.embeddings.patch_embedding(pixels)

    def layer(rows: int) -> tuple[Tensor, Tensor]:
        entry = hidden(rows)
        return entry, layers[0](entry, additive_mask(visible(rows), like=entry))

    def head(rows: int) -> tuple[Tensor, Tensor]:
        entry = hidden(rows)
        return entry, tower.head(tower.post_layernorm(entry), additive_mask(visible(rows), like=entry))

    return [
        tracer.piece("patches", "vision", "images", [tower.embeddings], embed),
        tracer.piece("layers", "vision", "images", [layers[0]], layer, len(layers), recomputable=True),
        tracer.piece("head", "vision", "images", [tower.post_layernorm, tower.head], head),
    ]


def _text(model: FGCLIP2, tracer: _Tracer, tokens: int, unit: Unit) -> list[Piece]:
    tower, short = model.text_model, unit == "short_texts"
    width, layers = model.config.text_config.hidden_size, list(tower.encoder["layers"])
    head = tower.head if short else model.longtext_head
    label = "short" if short else "long"

    def embed(rows: int) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(rows, tokens, dtype=torch.int64)
        return ids, tower.embeddings(ids, not short)

    def run(module: nn.Module) -> Callable[[int], tuple[Tensor, Tensor]]:
        def one(rows: int) -> tuple[Tensor, Tensor]:
            entry = torch.empty(rows, tokens, width, dtype=_dtype(tower), requires_grad=True)
            return entry, module(entry, None)

        return one

    def project(rows: int) -> tuple[Tensor, Tensor]:
        entry = torch.empty(rows, width, dtype=_dtype(tower), requires_grad=True)
        return entry, head(tower.final_layer_norm(entry))

    first, last = layers[0], layers[-1]
    return [
        tracer.piece(f"{label} tokens", "text", unit, [tower.embeddings], embed, own_weights=short),
        tracer.piece(
            f"{label} layers", "text", unit, [first], run(first), len(layers) - 1, recomputable=True, own_weights=short
        ),
        tracer.piece(f"{label} last layer", "text", unit, [last], run(last), recomputable=True, own_weights=short),
        tracer.piece(f"{label} head", "text", unit, [tower.final_layer_norm, head], project),
    ]


def _dense(model: FGCLIP2, tracer: _Tracer, patches: int) -> Piece:
    width = model.config.vision_config.hidden_size

    def run(rows: int) -> tuple[Tensor, Tensor]:
        entry = torch.empty(rows, patches, width, dtype=_dtype(model), requires_grad=True)
        mask = additive_mask(torch.ones(rows, patches, dtype=torch.int32), like=entry)
        return entry, model.dense_feature_head(entry, mask, dense=True)

    return tracer.piece("dense head", "region", "boxed_images", [model.dense_feature_head, model.boxtext_head], run)
