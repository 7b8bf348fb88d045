"""Two pieces of the model against the plain way: region pooling, and the text tower's last layer.

Measured on one thread, in processor seconds: others may use the machine.

Shape letters: R boxes, P patches, D width, N texts, T tokens.
"""

from __future__ import annotations

import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.siglip2.modeling_siglip2 import Siglip2EncoderLayer

from benchmarks.reporting import Row, measure_seconds
from pipeline.model import preset_config
from pipeline.model.regions import pool_regions
from pipeline.model.towers import TextTower

measure = partial(measure_seconds, clock=time.process_time)
GRIDS = ((32, 32), (24, 42), (16, 16), (42, 24), (28, 28), (20, 51), (8, 16), (30, 34))  # heights and widths in patches


def region_pooling_rows(
    images: int = 64, boxes_per_image: int = 8, num_patches: int = 1024, width: int = 768
) -> list[Row]:
    """512 boxes over 64 images of mixed grids, forward and backward, against one call per image."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    grids = torch.tensor([GRIDS[n % len(GRIDS)] for n in range(images)])
    corners = torch.rand(images * boxes_per_image, 2, 2).sort(dim=1).values  # [R, (start, end), (x, y)]
    boxes = corners.flatten(1).clamp(max=0.98)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 0.02)
    owner = torch.arange(images).repeat_interleave(boxes_per_image)
    dense = torch.randn(images, num_patches, width, requires_grad=True)
    weight = torch.randn(len(boxes), width)
    sampled = _pool_by_sampling(dense, grids, boxes, owner)
    difference = (sampled - pool_regions(dense, grids, boxes, owner)[0]).abs().max().item()
    if difference > 1e-4:
        raise AssertionError(f"the two ways of pooling differ by {difference}")

    def both(pooled: Tensor) -> None:
        dense.grad = None
        (pooled * weight).sum().backward()

    ours = measure(lambda: both(pool_regions(dense, grids, boxes, owner)[0]))
    per_image = measure(lambda: both(_pool_image_by_image(dense, grids, boxes, owner)))
    sampling = measure(lambda: both(_pool_by_sampling(dense, grids, boxes, owner)), repeats=1, warmups=0)
    name = f"region pooling, {len(boxes)} boxes of {images} images"
    return [
        Row(f"{name}, RoIAlign by sampling, one call per image: time", sampling, "s"),
        Row(f"{name}, our product, one call per image: time", per_image, "s", sampling),
        Row(f"{name}, ours, one call: time", ours, "s", sampling),
        Row(f"{name}, ours: speed-up over one call per image", sampling / ours, "times"),
    ]


def _pool_image_by_image(dense: Tensor, grids: Tensor, boxes: Tensor, owner: Tensor) -> Tensor:
    pooled = []
    for number, features in enumerate(dense.unbind()):  # slices would each make a gradient of the whole tensor's size
        some, grid = boxes[owner == number], grids[number : number + 1]
        pooled.append(pool_regions(features[None], grid, some, torch.zeros(len(some), dtype=torch.int64))[0])
    return torch.cat(pooled)


def _pool_by_sampling(dense: Tensor, grids: Tensor, boxes: Tensor, owner: Tensor) -> Tensor:
    """RoIAlign to 1×1 (aligned, adaptive sampling) as defined: each image's map, then the mean of bilinear samples."""
    pooled = []
    for number, (features, (height, width)) in enumerate(zip(dense.unbind(), grids.tolist(), strict=True)):
        feature_map = features[: height * width].T.reshape(1, -1, height, width)
        scaled = boxes[owner == number] * torch.tensor([width, height, width, height])
        x1, y1, x2, y2 = scaled.unbind(1)
        columns, column_counted = _sample_places(x1, x2)
        rows, row_counted = _sample_places(y1, y2)
        # grid_sample counts from −1 to 1 over the centres of the border cells
        x = (2 * columns / max(width - 1, 1) - 1)[:, None, :].expand(-1, rows.shape[1], -1)
        y = (2 * rows / max(height - 1, 1) - 1)[:, :, None].expand(-1, -1, columns.shape[1])
        places = torch.stack([x, y], dim=-1).flatten(1, 2)[None]  # [1, R, samples, 2]
        samples = F.grid_sample(feature_map, places, padding_mode="border", align_corners=True)[0]  # [D, R, samples]
        counted = (row_counted[:, :, None] & column_counted[:, None, :]).flatten(1)
        pooled.append(((samples * counted).sum(dim=2) / counted.sum(dim=1)).T)
    return torch.cat(pooled)


def _sample_places(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Sample positions along one side of each box, in cells from the first cell's centre, and which of them count."""
    count = (end - start).ceil().clamp(min=1)
    steps = torch.arange(int(count.max()))
    return (start - 0.5)[:, None] + (steps + 0.5) * ((end - start) / count)[:, None], steps < count[:, None]


def text_tower_rows(texts: int = 4, layers: int = 12) -> list[Row]:
    """Forward and backward of a base text tower against one whose last layer computes every position."""
    config = preset_config("base", vocab_size=1000).text_config
    config.num_hidden_layers = layers
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tower = TextTower(config)
    for parameter in tower.parameters():  # a bare tower starts from whatever memory holds in its tables
        torch.nn.init.normal_(parameter, std=0.02)
    whole = Siglip2EncoderLayer(config)
    whole.load_state_dict(tower.encoder["layers"][-1].state_dict())

    def every_position(ids: Tensor, long: bool) -> Tensor:
        hidden = tower.embeddings(ids, long)
        for layer in [*tower.encoder["layers"][:-1], whole]:
            hidden = layer(hidden, None)
        return tower.final_layer_norm(hidden)[:, -1]

    rows = []
    for kind, length in (("short", config.max_position_embeddings), ("long", config.longtext_len)):
        ids, long = torch.randint(1, 1000, (texts, length)), kind == "long"
        if not torch.allclose(tower(ids, long), every_position(ids, long), atol=1e-4):
            raise AssertionError("the last position differs from the whole layer's")
        ours = measure(lambda: tower(ids, long).sum().backward(), repeats=2)  # noqa: B023 - called at once
        plain = measure(lambda: every_position(ids, long).sum().backward(), repeats=2)  # noqa: B023
        name = f"text tower, {layers} layers, {kind} texts ({length} tokens)"
        rows.append(Row(f"{name}: time", ours, "s", plain))
        rows.append(Row(f"{name}: share of time saved", 1 - ours / plain, "of 1"))
    return rows
