"""The images' position table, resized to every grid of a batch by one product.

Antialiased bilinear resizing is linear and separable: along a side of n patches it is a matrix [n, S], so for a grid of
h x w patches the table [S x S, D] is multiplied by the products of two such rows. The matrices are torch's own, made
by resizing unit vectors, and are kept.

Shape letters: B images, G distinct grids, P patches, S side of the table, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layout import ImageLayout


class PositionTable(nn.Embedding):
    """A square table of positions."""

    def __init__(self, num_embeddings: int, width: int) -> None:
        super().__init__(num_embeddings, width)
        self._sides: dict[tuple[torch.device, int], Tensor] = {}  # not parameters: the same for every model

    def forward(self, layout: ImageLayout, num_patches: int) -> Tensor:
        """[B, num_patches, D], in the table's type; padding is 0."""
        device = self.weight.device
        # In float32 whatever the towers run in: one result on all devices.
        with torch.autocast(device.type, enabled=False):
            weights = self._weights(layout, num_patches, device)
            positions = weights.flatten(0, 1) @ self.weight.float()
        grids = positions.view(len(layout.grids), num_patches, -1)
        if len(layout.grids) > 1 or len(layout.grid_number) > 1:
            # still in float32: here the gradients of all images of a grid are added up
            grids = grids[layout.grid_number]
        return grids.to(self.weight.dtype)

    def _weights(self, layout: ImageLayout, num_patches: int, device: torch.device) -> Tensor:
        """[G, P, S * S]: how much each row of the table counts for each patch; 0 for padding."""
        sides = self.side_matrices(_next_power_of_two(layout.longest_side), device)
        heights, widths = layout.grid_sizes.unsqueeze(-1).unbind(1)  # [G, 1] each
        patch = torch.arange(num_patches, device=device)
        inside = patch < heights * widths
        nothing = len(sides) - 1
        row = torch.where(inside, _first_row(heights) + patch // widths, nothing)
        column = torch.where(inside, _first_row(widths) + patch % widths, nothing)
        return (sides[row].unsqueeze(-1) * sides[column].unsqueeze(-2)).flatten(2)

    def side_matrices(self, longest: int, device: torch.device) -> Tensor:
        """The matrices [n, S] of n = 1 ... longest under each other, then a row of 0."""
        if (device, longest) not in self._sides:
            side = math.isqrt(self.num_embeddings)
            unit = torch.eye(side, dtype=torch.float64)[None, None]  # row i is the i-th unit vector
            parts = [
                F.interpolate(unit, (side, n), mode="bilinear", align_corners=False, antialias=True)[0, 0].T
                for n in range(1, longest + 1)
            ]
            self._sides[device, longest] = torch.cat([*parts, torch.zeros(1, side)]).float().to(device)
        return self._sides[device, longest]


def _first_row(side: Tensor) -> Tensor:
    """Where the matrix of ``side`` begins: after those of 1 ... side - 1."""
    return side * (side - 1) // 2


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
