"""Clips: one embedding of their frames' embeddings, and of a region its features over the frames where it is.

A clip's embedding is the mean of its frames' unit embeddings, at unit norm again (CLIP4Clip's mean pooling, arXiv
2104.08860): each frame counts alike, and frames that are all the same give what one of them gives. A region's is the
masked mean of its unit features, plus what a small transformer makes of their order and of the region's boxes: pooling
takes the place out of a feature, and a motion is little else. The transformer's last projection starts at 0, so
training starts from the masked mean exactly.

Shape letters: B clips, R regions, F frames, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import PackedAttention

BOX_VALUES = 8  # middle and size, and how far both moved since the frame before
MOVE_FACTOR = 10.0  # moves from frame to frame are tenths of a picture, where places are up to 1
HEAD_SIZE = 64  # columns of an attention head, as in the towers' published sizes
MLP_RATIO = 4


class TemporalLayer(nn.Module):
    """A pre-norm transformer layer over the frames of a region."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = next(number for number in range(max(1, width // HEAD_SIZE), 0, -1) if width % number == 0)
        self.layer_norm1 = nn.LayerNorm(width)
        self.attention = PackedAttention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[R, F, D] -> [R, F, D]; ``mask`` [R, 1, 1, F] bool, True for what is attended to."""
        normed = self.layer_norm1(hidden)
        hidden = hidden + self.attention(normed, mask)
        return hidden + self.fc2(F.gelu(self.fc1(self.layer_norm2(hidden)), approximate="tanh"))


class TemporalAggregator(nn.Module):
    """A region's features of several frames to one: their masked mean, and a correction that knows their order."""

    def __init__(self, width: int, layers: int, max_frames: int) -> None:
        super().__init__()
        self.position_embedding = nn.Embedding(max_frames, width)
        self.box_embedding = nn.Linear(BOX_VALUES, width)
        self.layers = nn.ModuleList([TemporalLayer(width) for _ in range(layers)])
        self.layernorm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, width)  # starts at 0

    def forward(self, features: Tensor, visible: Tensor, boxes: Tensor) -> Tensor:
        """Unit features [R, F, D], [R, F] bool, normalised xyxy [R, F, 4] -> [R, D], not normalised.

        0 for a region that is nowhere. What a frame holds where its ``visible`` is False has no part in the result and
        gets no gradient.

        Raises:
            ValueError: more frames than there are positions.
        """
        frames, most = features.shape[1], self.position_embedding.num_embeddings
        if frames > most:
            raise ValueError(
                f"a region of {frames} frames was given, and the model has positions for {most}; give at most {most}"
            )
        features = torch.where(visible.unsqueeze(-1), features, 0.0)
        mean = masked_mean(features, visible)
        somewhere = visible.any(dim=1, keepdim=True)
        # A region that is nowhere attends to all frames, because a softmax over none is not a number.
        mask = (visible | ~somewhere)[:, None, None, :]
        positions = self.position_embedding(torch.arange(frames, device=features.device))
        # both are of norm about 1; the layers add numbers of about 1 each
        hidden = math.sqrt(features.shape[2]) * (features.to(positions.dtype) + positions)
        hidden = hidden + self.box_embedding(places_and_moves(boxes, visible).to(positions.dtype))
        for layer in self.layers:
            hidden = layer(hidden, mask)
        # bf16 weights too have the mean in float32, as the mean above
        normed = masked_mean(self.layernorm(hidden).float(), visible)
        correction = self.projection(normed.to(positions.dtype))
        return mean + torch.where(somewhere, correction, 0.0)


def places_and_moves(boxes: Tensor, visible: Tensor) -> Tensor:
    """Normalised xyxy [R, F, 4], [R, F] bool -> [R, F, 8]; 0 in frames that are not ``visible``.

    The middle's x and y, width and height, each from -1 to 1; then what each of them changed since the frame before,
    times ``MOVE_FACTOR``, 0 where the region was not there.
    """
    corner, opposite = boxes[..., :2], boxes[..., 2:]
    places = torch.cat([corner + opposite - 1, 2 * (opposite - corner) - 1], dim=-1)
    places = torch.where(visible.unsqueeze(-1), places, 0.0)
    in_both = (visible[:, 1:] & visible[:, :-1]).unsqueeze(-1)
    moves = torch.where(in_both, MOVE_FACTOR * (places[:, 1:] - places[:, :-1]), 0.0)
    return torch.cat([places, F.pad(moves, (0, 0, 1, 0))], dim=-1)


def masked_mean(features: Tensor, visible: Tensor) -> Tensor:
    """[R, F, D], [R, F] bool -> [R, D]: the mean over the frames where ``visible`` is True; 0 where none is."""
    share = visible.to(features.dtype) / visible.sum(dim=1, keepdim=True).clamp(min=1)
    return (torch.where(visible.unsqueeze(-1), features, 0.0) * share.unsqueeze(-1)).sum(dim=1)
