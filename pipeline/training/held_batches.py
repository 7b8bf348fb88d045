"""The micro-batches of one step, for taking the same step more than once."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.data.batch import Batch
from pipeline.data.device_feed import Source
from pipeline.data.micro_batches import Unit


@dataclass
class HeldBatches:
    """The micro-batches of one step, read once and given again and again."""

    source: Source
    unit: Unit = field(init=False)
    _batches: list[Batch] = field(init=False)
    _given: int = 0

    def __post_init__(self) -> None:
        self.unit = self.source.upcoming()
        self._batches = [next(self.source) for _ in range(self.unit.parts)]

    def upcoming(self) -> Unit:
        return self.unit

    def __next__(self) -> Batch:
        batch = self._batches[self._given % len(self._batches)]
        self._given += 1
        return batch

    @property
    def patches(self) -> int:
        """P of the images, padding included."""
        return int(self._batches[0].pixel_attention_mask.shape[1])

    @property
    def frames(self) -> int:
        """Of a clip; 1 for images."""
        return self._batches[0].num_frames

    def count(self, name: str) -> int:
        """Rows of a tensor of :class:`Batch`, over the micro-batches."""
        return sum(len(getattr(batch, name)) for batch in self._batches)
