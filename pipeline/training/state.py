"""Everything that a resume needs and the weights do not tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class TrainState:
    """Numbers only. The data's position is the step: the plan is a function of it, and so are the learning rate and
    the seeds, so none of them has state of its own. τ and the memory bank are tensors beside this record."""

    step: int = 0  # optimizer steps done; also the number of the next global batch
    samples_seen: int = 0  # images, over all ranks
    skipped_in_a_row: int = 0  # optimizer steps that DeepSpeed left out
    skipped_in_all: int = 0
    seconds: float = 0.0  # training time before this process started
    flops: float = 0.0  # of all ranks, as pipeline.estimate.flops counts them
    tracker_run_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> TrainState:
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in known})
