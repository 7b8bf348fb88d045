"""Which samples make which batch. ``python -m pipeline.data.plan`` prints what an epoch will look like."""

from pipeline.data.plan.plan import Plan, PlannedBatch, rank_slice

__all__ = ["Plan", "PlannedBatch", "rank_slice"]
