"""What is written of each finished shard, and how it is read back: by later runs, cards and pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from pipeline.base.border import read_bounded, validated

MAX_REPORT_BYTES = 256 << 20  # a million dropped samples with their reasons
Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]


class Dropped(TypedDict):
    """A sample that went no further."""

    key: str
    reason: str
    detail: str


class Failure(TypedDict):
    """A sample that went on without what the step would add."""

    key: str
    why: str


class StepReport(TypedDict):
    """What one step did to one shard."""

    shard: str
    made_by: dict[str, Any]  # input, and of a step its name, version and settings
    samples_in: Count
    samples_out: Count
    dropped: list[Dropped]
    failed: list[Failure]
    counts: dict[str, Count]


class ShardReport(StepReport):
    """The last step's report, with those of the steps before it, oldest first."""

    earlier: list[StepReport]


_REPORT: TypeAdapter[ShardReport] = TypeAdapter(ShardReport)


def read_report(path: Path) -> ShardReport:
    """The report of one shard.

    Raises:
        BorderError: it is damaged. OSError: it cannot be read.
    """
    return validated(_REPORT, read_bounded(path, MAX_REPORT_BYTES), str(path), "make its shard again: delete it")
