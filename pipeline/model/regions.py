"""Region pooling: 1x1 RoIAlign (aligned, adaptive sampling) for all boxes of all images in one batched product.

RoIAlign at one output bin averages bilinear samples on a regular grid of ceil(height) x ceil(width) points. A regular
grid is a product of two lines and bilinear interpolation is a product of two tents, so the whole average is
``sum_h sum_w rows[h] * columns[w] * features[h, w]`` with one short weight vector for each side of the box.

Shape letters: B images, R boxes, P patches, D width, S samples along one side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import RegionLayout, finite_boxes, region_layout, side_extent


def side_weights(start: Tensor, end: Tensor, size: Tensor, length: int, most_samples: int) -> Tensor:
    """How much each cell along one side counts, for boxes from ``start`` to ``end`` (in cells, [R]).

    ``size`` [R] is the number of cells of the side, ``length`` the length of the result's last axis (>= every size),
    ``most_samples`` at least the number of samples of any box.
    Samples more than one cell outside contribute 0 but are counted, samples within one cell of the border take the
    border's value: the conventions of the compiled kernel. Returns [R, length]; all 0 where ``end <= start``.
    """
    start, extent, count = side_extent(start, end, length)
    steps = torch.arange(most_samples, device=start.device, dtype=start.dtype)
    count = count.unsqueeze(-1)
    position = start.unsqueeze(-1) + (steps + 0.5) * extent.unsqueeze(-1) / count.clamp(min=1)
    last = (size - 1).unsqueeze(-1).to(start.dtype)
    counted = (steps < count) & (position >= -1) & (position <= last + 1)
    position = torch.minimum(position.clamp(min=0), last)
    low = position.floor()
    fraction = position - low
    share = counted.to(start.dtype) / count.clamp(min=1)
    weights = torch.zeros(start.shape[0], length, device=start.device, dtype=start.dtype)
    weights.scatter_add_(1, low.long(), share * (1 - fraction))
    weights.scatter_add_(1, torch.minimum(low + 1, last).long(), share * fraction)
    return weights


def side_tables(boxes: Tensor, grids: Tensor, longest_side: int, most_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """``side_weights`` of rows and columns, [R, longest_side] each, and [R] bool: False as in ``region_weights``."""
    boxes, finite = finite_boxes(boxes)
    x1, y1, x2, y2 = boxes.unbind(-1)
    height, width = grids[:, 0], grids[:, 1]
    rows = side_weights(y1 * height, y2 * height, height, longest_side, most_samples)
    columns = side_weights(x1 * width, x2 * width, width, longest_side, most_samples)
    return rows, columns, finite & (rows.sum(-1) > 0) & (columns.sum(-1) > 0)


def region_weights(
    boxes: Tensor, grids: Tensor, num_patches: int, longest_side: int, most_samples: int
) -> tuple[Tensor, Tensor]:
    """Weights of every patch for every box.

    Args:
        boxes: [R, 4], normalised xyxy, R > 0.
        grids: [R, 2] int64, height and width in patches of the box's image.
        num_patches: P, the (padded) number of patches of an image; patch p lies in row p // width.
        longest_side: the largest number in ``grids`` or more.
        most_samples: the largest number of ``sample_counts`` or more.

    Returns:
        [R, P] float32 (float64 for float64 boxes), and [R] bool: False for a box that has no area, lies outside its
        image or is not finite. Such a row's weights are 0.
    """
    rows, columns, valid = side_tables(boxes, grids, longest_side, most_samples)
    height, width = grids[:, 0], grids[:, 1]
    patch = torch.arange(num_patches, device=boxes.device)
    inside = (patch < (height * width).unsqueeze(-1)) & valid.unsqueeze(-1)
    row = (patch // width.unsqueeze(-1)).clamp(max=longest_side - 1)  # the padding's rows lie beyond the grid
    weights = rows.gather(1, row) * columns.gather(1, patch % width.unsqueeze(-1))
    return torch.where(inside, weights, 0.0), valid


def pool_regions(
    dense: Tensor, spatial_shapes: Tensor, boxes: Tensor, region_image: Tensor, layout: RegionLayout | None = None
) -> tuple[Tensor, Tensor]:
    """Average the patch features under each box.

    Args:
        dense: [B, P, D] patch features, rows of a grid one after another, then padding.
        spatial_shapes: [B, 2] int64, height and width in patches.
        boxes: [R, 4] normalised xyxy.
        region_image: [R] int64, the image of each box.
        layout: of these boxes; None: made here, which reads them back.

    Returns:
        [R, D] features in float32 (float64 for float64 features), not normalised, 0 where invalid; [R] bool valid.
    """
    num_images, num_patches, width = dense.shape
    num_regions = boxes.shape[0]
    with torch.autocast(dense.device.type, enabled=False):
        dense = dense if dense.dtype == torch.float64 else dense.float()
        if num_regions == 0:
            # A slice, not new zeros: the empty result stays in the graph of the features.
            return dense.reshape(-1, width)[:0], torch.zeros(0, dtype=torch.bool, device=dense.device)
        layout = layout or region_layout(boxes, region_image, spatial_shapes)
        weights, valid = region_weights(
            boxes, spatial_shapes[region_image], num_patches, layout.longest_side, layout.most_samples
        )
        # Boxes of one image stand together in a padded table: one product then reads each image's features once.
        order = torch.argsort(region_image, stable=True)
        image = region_image[order]
        # bincount would make the host wait for the largest number
        counts = torch.zeros(num_images, dtype=torch.int64, device=dense.device)
        counts = counts.scatter_add(0, image, torch.ones_like(image))
        place = torch.arange(num_regions, device=dense.device) - (counts.cumsum(0) - counts)[image]
        table = dense.new_zeros(num_images, layout.most_boxes, num_patches)
        table[image, place] = weights[order].to(dense.dtype)
        pooled = torch.bmm(table, dense)[image, place]
        back = torch.empty_like(order)
        back[order] = torch.arange(num_regions, device=dense.device)
        return pooled[back], valid
