"""Every check by its name. To add one: a function of the evidence in a checks_*.py, and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.doctor.checks_losses import first_losses_are_far_off, losses_are_orders_apart, oscillation_grows
from pipeline.doctor.checks_optimizer import (
    clipping_is_off,
    learning_rate_is_lost,
    projection_does_not_train,
    warmup_is_not_in_steps,
)
from pipeline.doctor.checks_regions import (
    boxes_are_small,
    memory_bank_never_starts,
    negatives_are_few,
    region_scale_is_wrong,
    regions_without_area,
)
from pipeline.doctor.evidence import Check, Evidence, Finding

CHECKS: Mapping[str, Check] = {
    "memory-bank-never-starts": memory_bank_never_starts,
    "region-scale": region_scale_is_wrong,
    "regions-without-area": regions_without_area,
    "small-boxes": boxes_are_small,
    "untrained-projection": projection_does_not_train,
    "learning-rate-lost": learning_rate_is_lost,
    "clipping-off": clipping_is_off,
    "losses-orders-apart": losses_are_orders_apart,
    "few-negatives": negatives_are_few,
    "growing-oscillation": oscillation_grows,
    "warmup-in-micro-steps": warmup_is_not_in_steps,
    "first-losses": first_losses_are_far_off,
}


def diagnose(evidence: Evidence) -> dict[str, Finding]:
    """The findings of all checks, by the check's name; empty for a healthy run."""
    found = {name: check(evidence) for name, check in CHECKS.items()}
    return {name: finding for name, finding in found.items() if finding is not None}
