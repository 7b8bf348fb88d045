"""What the all-reduce of a preflight found; apart from the measuring, which needs torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bandwidth:
    """``gigabytes_per_second`` is algorithm bandwidth: bytes of the tensor over the time of one all-reduce."""

    ranks: int
    megabytes: float
    seconds: float
    gigabytes_per_second: float
    right: bool
