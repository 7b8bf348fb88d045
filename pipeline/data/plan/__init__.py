"""Which samples make which batch. ``python -m pipeline.data.plan`` prints what an epoch will look like."""

from pipeline.data.plan.batches import PlannedBatch
from pipeline.data.plan.plan import Plan

__all__ = ["Plan", "PlannedBatch"]
