"""Region pooling equals RoIAlign's definition for mixed grids, and no box can poison a gradient."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.model.embeddings import unit
from pipeline.model.regions import pool_regions

GRIDS = [(4, 6), (1, 9), (7, 3)]
PATCHES = 30  # more than any grid: rows of padding follow


def sample(features, y, x):
    """Bilinear value of ``features`` [h, w, D] at a point in cells; 0 more than one cell outside."""
    height, width = features.shape[:2]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros_like(features[0, 0])
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    upper = (1 - fx) * features[top, left] + fx * features[top, right]
    lower = (1 - fx) * features[bottom, left] + fx * features[bottom, right]
    return (1 - fy) * upper + fy * lower


def roi_align(features, box):
    """The definition, sample by sample: aligned, one output bin, one sample a cell."""
    height, width = features.shape[:2]
    x1, y1, x2, y2 = (v * s for v, s in zip(box, (width, height, width, height), strict=True))
    rows, columns = math.ceil(y2 - y1), math.ceil(x2 - x1)
    if rows <= 0 or columns <= 0:
        return torch.zeros_like(features[0, 0])
    total = torch.zeros_like(features[0, 0])
    for i in range(rows):
        for j in range(columns):
            y = y1 - 0.5 + (i + 0.5) * (y2 - y1) / rows
            x = x1 - 0.5 + (j + 0.5) * (x2 - x1) / columns
            total = total + sample(features, y, x)
    return total / (rows * columns)


def case(boxes_per_image):
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(len(GRIDS), PATCHES, 5, generator=generator, dtype=torch.float64)
    image = torch.repeat_interleave(torch.arange(len(GRIDS)), boxes_per_image)
    image = image[torch.randperm(len(image), generator=generator)]  # boxes of one image need not stand together
    corner = torch.rand(len(image), 2, generator=generator, dtype=torch.float64) * 0.7
    size = torch.rand(len(image), 2, generator=generator, dtype=torch.float64) * 0.6 + 0.01
    return dense, torch.tensor(GRIDS), torch.cat([corner, corner + size], dim=1), image


def reference(dense, boxes, image):
    maps = [dense[n, : h * w].reshape(h, w, -1) for n, (h, w) in enumerate(GRIDS)]
    return torch.stack([roi_align(maps[n], box) for n, box in zip(image.tolist(), boxes.tolist(), strict=True)])


def test_boxes_of_mixed_grids_equal_the_definition_forward_and_backward():
    dense, grids, boxes, image = case(torch.tensor([7, 0, 11]))  # boxes reach beyond the image, too
    gradients = []
    values = []
    for pool in (lambda d: pool_regions(d, grids, boxes, image)[0], lambda d: reference(d, boxes, image)):
        leaf = dense.clone().requires_grad_()
        pooled = pool(leaf)
        (pooled.sin() * torch.arange(1, 6)).sum().backward()
        values.append(pooled.detach())
        gradients.append(leaf.grad)
    torch.testing.assert_close(values[0], values[1], atol=1e-12, rtol=0)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-12, rtol=0)
    assert gradients[0][1].abs().sum() == 0, "an image without boxes got a gradient"


@pytest.mark.parametrize(
    "box",
    [
        [0.3, 0.3, 0.3, 0.3],
        [0.5, 0.5, 0.5, 0.9],
        [0.6, 0.1, 0.2, 0.9],
        [0.0, 0.0, 0.0, 0.0],
        [2.0, 0.1, 2.5, 0.9],
        [0.1, -3.0, 0.9, -2.0],
        [float("nan"), 0.1, 0.5, 0.5],
        [0.1, 0.1, float("inf"), 0.5],
    ],
)
def test_a_box_without_area_or_outside_its_image_is_a_masked_row_without_gradient(box):
    dense, grids, boxes, image = case(torch.tensor([2, 1, 1]))
    gradients = []
    for some, numbers in (
        (torch.cat([boxes, torch.tensor([box], dtype=torch.float64)]), torch.cat([image, torch.tensor([0])])),
        (boxes, image),
    ):
        leaf = dense.float().requires_grad_()
        pooled, valid = pool_regions(leaf, grids, some.float(), numbers)
        embeds = unit(pooled, valid)
        assert valid.tolist() == [True] * 4 + [False] * (len(some) - 4)
        assert (embeds[4:] == 0).all()
        torch.testing.assert_close(embeds[:4].norm(dim=1), torch.ones(4))
        embeds.sin().sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=0)


def test_no_boxes_give_no_rows():
    dense, grids, _, _ = case(torch.tensor([1, 1, 1]))
    pooled, valid = pool_regions(dense, grids, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert pooled.shape == (0, 5)
    assert valid.shape == (0,)


def test_pooling_stays_in_float32_under_autocast():
    dense, grids, boxes, image = case(torch.tensor([3, 3, 3]))
    exact, _ = pool_regions(dense.float(), grids, boxes.float(), image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = pool_regions(dense.float(), grids, boxes.float(), image)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, exact)
