"""Region pooling: 1x1 RoIAlign (aligned, adaptive sampling) for all boxes of all images in one batched product.

RoIAlign at one output bin averages bilinear samples on a regular grid of ceil(height) x ceil(width) points. A regular
grid is a product of two lines and bilinear interpolation is a product of two tents, so the whole average is
``sum_h sum_w rows[h] * columns[w] * features[h, w]`` with one short weight vector for each side of the box.

Shape letters: B images, R boxes, P patches, D width, S samples along one side.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A box that reaches beyond its image is sampled beyond it too, as the compiled kernel does; past this many image sides
# the samples stop growing in number, so that one absurd box cannot take all memory (assumption: none is meant).
MAX_SIDES_SAMPLED = 4


def side_weights(start: Tensor, end: Tensor, size: Tensor, length: int) -> Tensor:
    """How much each cell along one side counts, for boxes from ``start`` to ``end`` (in cells, [R]).

    ``size`` [R] is the number of cells of the side, ``length`` the length of the result's last axis (>= every size).
    Samples more than one cell outside contribute 0 but are counted, samples within one cell of the border take the
    border's value: the conventions of the compiled kernel. Returns [R, length]; all 0 where ``end <= start``.
    """
    # The half cell moves from the corners of cells to their centres ("aligned"). The order of these operations is the
    # kernel's: rounding decides on which side of a whole number an extent falls, and so how many samples there are.
    start, end = start - 0.5, end - 0.5
    extent = end - start
    count = extent.ceil().clamp(min=0, max=MAX_SIDES_SAMPLED * length)  # adaptive: one sample a cell
    steps = torch.arange(max(int(count.max()), 1), device=start.device, dtype=start.dtype)
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


def region_weights(boxes: Tensor, grids: Tensor, num_patches: int) -> tuple[Tensor, Tensor]:
    """Weights of every patch for every box.

    Args:
        boxes: [R, 4], normalised xyxy, R > 0.
        grids: [R, 2] int64, height and width in patches of the box's image.
        num_patches: P, the (padded) number of patches of an image; patch p lies in row p // width.

    Returns:
        [R, P] float32 (float64 for float64 boxes), and [R] bool: False for a box that has no area, lies outside its
        image or is not finite. Such a row's weights are 0.
    """
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    finite = boxes.isfinite().all(dim=-1)
    x1, y1, x2, y2 = torch.where(finite.unsqueeze(-1), boxes, 0.0).unbind(-1)
    height, width = grids[:, 0], grids[:, 1]
    longest = int(grids.max())
    rows = side_weights(y1 * height, y2 * height, height, longest)
    columns = side_weights(x1 * width, x2 * width, width, longest)
    valid = finite & (rows.sum(-1) > 0) & (columns.sum(-1) > 0)
    patch = torch.arange(num_patches, device=boxes.device)
    inside = (patch < (height * width).unsqueeze(-1)) & valid.unsqueeze(-1)
    row = (patch // width.unsqueeze(-1)).clamp(max=longest - 1)  # the padding's rows lie beyond the grid
    weights = rows.gather(1, row) * columns.gather(1, patch % width.unsqueeze(-1))
    return torch.where(inside, weights, 0.0), valid


def pool_regions(dense: Tensor, spatial_shapes: Tensor, boxes: Tensor, region_image: Tensor) -> tuple[Tensor, Tensor]:
    """Average the patch features under each box.

    Args:
        dense: [B, P, D] patch features, rows of a grid one after another, then padding.
        spatial_shapes: [B, 2] int64, height and width in patches.
        boxes: [R, 4] normalised xyxy.
        region_image: [R] int64, the image of each box.

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
        weights, valid = region_weights(boxes, spatial_shapes[region_image], num_patches)
        # Boxes of one image stand together in a padded table: one product then reads each image's features once.
        order = torch.argsort(region_image, stable=True)
        image = region_image[order]
        counts = torch.bincount(image, minlength=num_images)
        place = torch.arange(num_regions, device=dense.device) - (counts.cumsum(0) - counts)[image]
        table = dense.new_zeros(num_images, int(counts.max()), num_patches)
        table[image, place] = weights[order].to(dense.dtype)
        pooled = torch.bmm(table, dense)[image, place]
        back = torch.empty_like(order)
        back[order] = torch.arange(num_regions, device=dense.device)
        return pooled[back], valid
