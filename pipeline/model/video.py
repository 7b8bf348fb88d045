"""What a model makes of clips: frames to one embedding, regions over frames, and both of images in hand.

    model.encode_video(frames).embeds @ model.encode_text(["a red circle that stops"]).embeds.T
    model.encode_video_regions(frames, [[[40, 30, 90, 80], None, [60, 30, 110, 80]]]).embeds

Letters: B clips, R regions, F frames, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .embeddings import unit
from .inference import ImageFeatures, Inference, as_list, normalised_boxes
from .temporal import TemporalAggregator, masked_mean

if TYPE_CHECKING:
    from PIL.Image import Image

BoxInFrames = Sequence[Sequence[float] | None]  # one a frame, None where the region is not there


@dataclass(frozen=True)
class VideoRegionFeatures:
    embeds: Tensor  # [R, D] float32, unit norm
    boxes: Tensor  # [R, F, 4] float32, normalised xyxy; 0 in frames where the region is not there


class VideoInference(Inference):
    """The uses of a model on clips."""

    temporal: TemporalAggregator | None  # of models that were trained on regions of clips

    def aggregate_frames(self, embeds: Tensor) -> Tensor:
        """Unit embeddings of the frames of clips [B, F, D] -> [B, D] unit float32: their mean."""
        return embeds[:, 0] if embeds.shape[1] == 1 else unit(embeds.mean(dim=1))

    def aggregate_regions(self, per_frame: Tensor, visible: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Regions in frames, over the frames -> [R, D] unit float32, valid [R] bool.

        Args:
            per_frame: [R, F, D] unit features.
            visible: [R, F] bool.
            boxes: [R, F, 4] normalised xyxy, which have no part where not ``visible``.

        A region that is in no frame gives a row of 0, ``valid`` False and no gradient. One frame is taken as it is; a
        model without temporal weights gives the masked mean.

        Raises:
            ValueError: more frames than the temporal weights have positions.
        """
        valid = visible.any(dim=1)
        if per_frame.shape[1] == 1:
            return per_frame[:, 0], valid
        if self.temporal is None:
            return unit(masked_mean(per_frame, visible), valid), valid
        if not len(per_frame):  # the temporal weights are in the graph all the same
            return per_frame.sum(dim=1) + self._aggregated_stand_in(per_frame, per_frame.shape[1])[:0], valid
        return unit(self.temporal(per_frame, visible, boxes), valid), valid

    def _aggregated_stand_in(self, like: Tensor, frames: int) -> Tensor:
        """[1, D]: what the temporal weights make of a region that is nowhere, with them in its graph."""
        assert self.temporal is not None
        nothing, boxes = like.new_zeros(1, frames, like.shape[-1]), like.new_zeros(1, frames, 4)
        return self.temporal(nothing, torch.ones(1, frames, dtype=torch.bool, device=like.device), boxes)

    def add_temporal(self, layers: int, max_frames: int) -> None:
        """Give the model fresh temporal weights, with which a region of a clip is the masked mean of its frames."""
        self.config.temporal_layers, self.config.temporal_frames = layers, max_frames
        self.temporal = self._make_temporal()
        if self.temporal is not None:
            self.temporal.apply(self._init_weights)

    def _make_temporal(self) -> TemporalAggregator | None:
        """Of the configuration's size; None where it has none."""
        config = self.config
        if not config.temporal_layers:
            return None
        return TemporalAggregator(config.text_config.projection_size, config.temporal_layers, config.temporal_frames)

    @torch.no_grad()
    def encode_video(
        self, frames: Sequence[Image], *, batch_size: int = 32, max_num_patches: int | None = None
    ) -> ImageFeatures:
        """One embedding [1, D] of the frames of a clip, taken as they are: the mean of their own.

        Raises:
            ValueError: no frame.
        """
        if not len(frames):
            raise ValueError("frames is empty; give at least one image")
        each = self.encode_image(frames, batch_size=batch_size, max_num_patches=max_num_patches)
        return ImageFeatures(self.aggregate_frames(each.embeds.unsqueeze(0)))

    @torch.no_grad()
    def encode_video_regions(
        self,
        frames: Sequence[Image],
        boxes: Sequence[BoxInFrames],
        *,
        box_format: str = "pixels",
        max_num_patches: int | None = None,
    ) -> VideoRegionFeatures:
        """One embedding a region, from its box (x1, y1, x2, y2) or None in each frame; the formats of encode_regions.

        Raises:
            ValueError: frames of several sizes, more or fewer boxes than frames, a region that is nowhere, more frames
                than the model has positions for, or a box that ``encode_regions`` would not take.
        """
        frames = as_list(frames)
        if len({frame.size for frame in frames}) != 1:
            raise ValueError(f"frames have the sizes {sorted({f.size for f in frames})}; all must have one size")
        visible = torch.zeros(len(boxes), len(frames), dtype=torch.bool)
        table = torch.zeros(len(boxes), len(frames), 4)
        for number, of_region in enumerate(boxes):
            if len(of_region) != len(frames) or all(box is None for box in of_region):
                raise ValueError(
                    f"boxes[{number}] has {len(of_region)} entries for {len(frames)} frames; give a box or None for "
                    "each, and a box for one at least"
                )
            visible[number] = torch.tensor([box is not None for box in of_region])
            there = [box for box in of_region if box is not None]
            table[number, visible[number]] = normalised_boxes(there, frames[0].size, box_format)
        table, visible = table.to(self.device), visible.to(self.device)
        if not len(boxes):
            return VideoRegionFeatures(self._nothing(), table)
        pixels, mask, grids = self._pixels(frames, max_num_patches or self._patch_budget(frames[0]))
        dense = self.dense_features(self.encode_vision(pixels, mask, grids)[0], mask)
        found, valid = self.pool_regions(dense, grids, table[visible], visible.nonzero()[:, 1])
        per_frame = found.new_zeros(*visible.shape, found.shape[1])
        per_frame[visible] = found
        seen = visible.clone()
        seen[visible] = valid
        embeds, valid = self.aggregate_regions(per_frame, seen, table)
        if not valid.all():
            number = int((~valid).nonzero()[0])
            raise ValueError(f"boxes[{number}] has no box with an area in float32; make one larger")
        return VideoRegionFeatures(embeds, table)
