"""The model's parts as modules without Python decisions on what a tensor holds, and their ONNX graphs.

The grid of an image is an input: one file serves every patch budget. Positions are resized by the matrices of
``pipeline/model/positions.py``, made up to a longest side; regions are pooled as ``pipeline/model/regions.py`` does,
for the boxes of one image.

Letters: B images, P patches, R boxes, N texts, T tokens, D width.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model import FGCLIP2
from pipeline.model.attention import additive_mask
from pipeline.model.embeddings import unit
from pipeline.model.onnx_runtime import IMAGE, LONG, REGIONS, TEXT
from pipeline.model.regions import region_weights

OPSET = 20  # the first with Gelu


class ImageGraph(nn.Module):
    """Pixels to the image's embedding and to patch features in the joint space."""

    sides: Tensor

    def __init__(self, model: FGCLIP2, longest_side: int) -> None:
        super().__init__()
        self.tower, self.dense_head = model.vision_model, model.dense_feature_head
        table = self.tower.embeddings.position_embedding
        self.register_buffer("sides", table.side_matrices(longest_side, torch.device("cpu")))

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, ...]:
        """[B, P, 768], [B, P], [B, 2] -> [B, D] of unit norm, [B, P, D]."""
        embeddings = self.tower.embeddings
        positions = self._positions(spatial_shapes, pixel_values.shape[1])
        hidden = embeddings.patch_embedding(pixel_values) + positions
        mask = additive_mask(pixel_attention_mask, like=hidden)
        for layer in self.tower.encoder.layers:
            hidden = layer(hidden, mask)
        patches = self.tower.post_layernorm(hidden)
        return unit(self.tower.head(patches, mask)), self.dense_head(patches, mask, dense=True)

    def _positions(self, spatial_shapes: Tensor, num_patches: int) -> Tensor:
        """[B, P, D]; as ``PositionTable``, every image by itself."""
        heights, widths = spatial_shapes[:, :1], spatial_shapes[:, 1:]
        patch = torch.arange(num_patches, device=spatial_shapes.device)
        inside, nothing = patch < heights * widths, self.sides.shape[0] - 1
        row = torch.where(inside, heights * (heights - 1) // 2 + patch // widths, nothing)
        column = torch.where(inside, widths * (widths - 1) // 2 + patch % widths, nothing)
        weights = (self.sides[row].unsqueeze(-1) * self.sides[column].unsqueeze(-2)).flatten(2)
        return weights @ self.tower.embeddings.position_embedding.weight


class RegionGraph(nn.Module):
    """Boxes of one image over its patch features."""

    def __init__(self, longest_side: int) -> None:
        super().__init__()
        self.longest_side = longest_side

    def forward(self, dense: Tensor, grid: Tensor, boxes: Tensor) -> Tensor:
        """[P, D], [2], [R, 4] normalised xyxy -> [R, D] of unit norm, 0 where a box has no area."""
        grids = grid.expand(boxes.shape[0], 2)
        longest = self.longest_side
        weights, valid = region_weights(boxes, grids, dense.shape[0], longest, longest + 1)
        return unit(weights @ dense, valid)


class TextGraph(nn.Module):
    """Ids to the embeddings of one path, or of the two that share a table: short texts and phrases."""

    def __init__(self, model: FGCLIP2, long: bool) -> None:
        super().__init__()
        self.tower, self.long = model.text_model, long
        self.heads = nn.ModuleList([model.longtext_head] if long else [model.text_model.head, model.boxtext_head])

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """[N, T] -> [N, D] of unit norm for each head."""
        hidden = self.tower.embeddings(input_ids, self.long)
        for layer in self.tower.encoder.layers:
            hidden = layer(hidden, None)
        hidden = self.tower.final_layer_norm(hidden)
        return tuple(unit(head(hidden)) for head in self.heads)


@dataclass(frozen=True)
class Graph:
    """One file: a module, inputs that show its shapes, and which of their sides may be of any length."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    names: tuple[str, ...]
    outputs: tuple[str, ...]
    free: tuple[dict[int, str], ...]


def graphs(model: FGCLIP2, longest_side: int) -> dict[str, Graph]:
    """The files of a folder by their names. ``longest_side``: of a grid, in patches."""
    text, vision = model.config.text_config, model.config.vision_config
    grids = torch.tensor([[3, 5], [4, 4], [2, 7]])
    patches = 18  # more than any grid has: the padding is part of what is traced
    mask = (torch.arange(patches) < grids.prod(1, keepdim=True)).long()
    pixels = torch.zeros(3, patches, vision.num_channels * vision.patch_size**2)
    boxes = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0], [0.5, 0.1, 0.6, 0.3]])
    of_images: dict[int, str] = {0: "images", 1: "patches"}
    short, long = (
        torch.zeros(3, length, dtype=torch.int64) for length in (text.max_position_embeddings, text.longtext_len)
    )
    return {
        IMAGE: Graph(
            ImageGraph(model, longest_side),
            (pixels, mask, grids),
            ("pixel_values", "pixel_attention_mask", "spatial_shapes"),
            ("image_embeds", "dense"),
            (of_images, of_images, {0: "images"}),
        ),
        REGIONS: Graph(
            RegionGraph(longest_side),
            (torch.ones(patches, vision.hidden_size), grids[0], boxes),
            ("dense", "grid", "boxes"),
            ("region_embeds",),
            ({0: "patches"}, {}, {0: "boxes"}),
        ),
        TEXT: Graph(
            TextGraph(model, long=False), (short,), ("input_ids",), ("short_embeds", "phrase_embeds"), ({0: "texts"},)
        ),
        LONG: Graph(TextGraph(model, long=True), (long,), ("input_ids",), ("long_embeds",), ({0: "texts"},)),
    }


@torch.no_grad()
def traced(graph: Graph) -> Any:
    """The graph as onnx_ir's model, its weights in memory."""
    dimensions = [{side: torch.export.Dim(name) for side, name in one.items()} for one in graph.free]
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # a line an operator of torchvision, which is not needed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself, and of axes that share a name, which is meant
            program = torch.onnx.export(
                graph.module.eval(),
                graph.inputs,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(graph.names),
                output_names=list(graph.outputs),
                dynamic_shapes=tuple(dimensions),
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    return program.model


def names_of(found: Sequence[Graph]) -> list[dict[str, list[str]]]:
    """Inputs and outputs, for the folder's description."""
    return [{"inputs": list(graph.names), "outputs": list(graph.outputs)} for graph in found]
