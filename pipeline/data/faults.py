"""When faults of samples end a run."""

from __future__ import annotations

from collections import Counter

from pipeline.config import DataSettings


class DataFaultLimit(RuntimeError):
    """More samples were faulty than the settings allow."""


def check_share(faults: Counter[str], samples: int, settings: DataSettings) -> None:
    """
    Raises:
        DataFaultLimit: the share of faulty samples is above ``max_fault_share``.
    """
    total = faults.total()
    if samples >= settings.min_samples_before_fault_stop and total > settings.max_fault_share * samples:
        kinds = ", ".join(f"{kind} {count}" for kind, count in faults.most_common())
        raise DataFaultLimit(
            f"{total} faults in {samples} samples ({kinds}) are more than data.max_fault_share = "
            f"{settings.max_fault_share:g}; check the shards with `python -m data_tools verify`"
        )
