"""Checks of what trains and how fast: projections, learning rates, warm-up, clipping."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from pipeline.config import Stage1Settings, Stage2Settings
from pipeline.doctor.evidence import Evidence, Finding
from pipeline.training.optimizer import PROJECTIONS

RATE_TOLERANCE = 0.05  # relative; rates are computed, so any difference is a fault
# The parts with a learning rate of their own, and projections that show whether they train.
PARTS: Mapping[str, tuple[str, ...]] = {
    "text": ("text_model.head",),
    "vision": ("vision_model.head",),
    "new_heads": ("longtext_head", "boxtext_head", "dense_feature_head"),
    "scales": (),
}
RUNAWAY_FACTOR = 10.0  # assumption: healthy norms fall from their first values
OTHER_FAMILYS = {  # of the projections, those that a family has not
    "fgclip2": ("visual_projection", "text_projection", "roi_projection"),
    "fgclip1": ("vision_model.head", "text_model.head", "dense_feature_head"),
}
USUAL_CLIP_NORM = 1.0  # the recipe's
WINDOW = 3  # logged steps whose median is a level


def projection_does_not_train(evidence: Evidence) -> Finding | None:
    """A projection into the joint space that is in no optimizer group, or never got a gradient."""
    seen = evidence.gradients_of_projections()
    if not seen or not evidence.last_step or evidence.settings.tune.heads == "frozen":
        return None
    for name in _trained_projections(evidence):
        if name not in seen:
            return Finding(
                f"{name} is in no group of the optimizer: it keeps the values that it started with",
                0.0,
                "it was frozen, or it was made after the groups were",
                "model.start_from",
                f"let every stage make its groups from the finished model, with {name} in one of them",
            )
        if seen[name] == 0:
            return Finding(
                f"the gradient of {name} was 0 at every step so far",
                0.0,
                "its output is cut from the graph, or no loss with a weight uses it",
                "region_loss" if PROJECTIONS[name] == "regions" else "global_loss",
                "give a loss that uses it a weight; else look for a detach between it and the loss",
            )
    return None


def learning_rate_is_lost(evidence: Evidence) -> Finding | None:
    """A part whose learning rate, against the others', is not what its factor says."""
    factors = evidence.settings.optimizer.group_factors
    rates = _newest_rates(evidence)
    wanted = {part: getattr(factors, part) for part in rates}
    base = next((part for part in rates if wanted[part] and rates[part]), None)
    if base is None:
        return None
    for part, rate in rates.items():
        factor = rate / rates[base] * wanted[base]
        if abs(factor - wanted[part]) > RATE_TOLERANCE * max(wanted[part], factor):
            return Finding(
                f"the parameters of {part} train at {factor:.3g} times the learning rate; the settings say "
                f"{wanted[part]:g} times",
                factor,
                "they are in another group, or in one that took the default",
                f"optimizer.group_factors.{part}",
                "look at the table of groups at the start of the run's log: each new part must be in the group whose "
                "factor it should have",
            )
    return None


def warmup_is_not_in_steps(evidence: Evidence) -> Finding | None:
    """Rates in the warm-up that do not rise with the optimizer steps; or a warm-up that the run never leaves."""
    settings, total = evidence.settings.optimizer, evidence.total_steps
    points = [(step, rate) for step, rate in evidence.points("learning_rate") if rate]
    ratio = 1.0
    for step, rate in points:
        if step <= settings.warmup_steps:
            risen = (rate / points[0][1]) / (step / points[0][0])
            ratio = max(ratio, risen, key=lambda value: abs(math.log(value)))
    if abs(ratio - 1) > RATE_TOLERANCE:
        return Finding(
            f"in the warm-up the learning rate rises {ratio:.3g} times as fast as the optimizer steps",
            ratio,
            "the schedule is advanced once a micro-batch, not once an optimizer step"
            if ratio > 1
            else "the schedule counts fewer steps than the optimizer makes, or ends its warm-up before",
            "optimizer.warmup_steps",
            "count it in optimizer steps, whatever train.accumulation_steps is",
        )
    if total is not None and settings.warmup_steps >= total:
        return Finding(
            f"the warm-up lasts {settings.warmup_steps} steps and the run {total}: it never reaches its learning rate",
            float(settings.warmup_steps),
            "it was counted in micro-batches, or for a longer run",
            "optimizer.warmup_steps",
            f"count it in optimizer steps: a part of {total}",
        )
    return None


def clipping_is_off(evidence: Evidence) -> Finding | None:
    """A gradient norm that has grown tenfold while the clipping norm was never reached."""
    norms, clip = evidence.values("gradient_norm"), evidence.settings.optimizer.gradient_clip_norm
    if len(norms) < 2 * WINDOW:
        return None
    levels = [statistics.median(norms[end - WINDOW : end]) for end in range(WINDOW, len(norms) + 1)]
    lowest, newest = min(levels), levels[-1]
    if max(norms) >= clip or newest < USUAL_CLIP_NORM or newest <= RUNAWAY_FACTOR * lowest:
        return None
    return Finding(
        f"the gradient norm has grown from {lowest:.3g} to {newest:.3g}, and clipping at {clip:g} never acted",
        newest,
        "steps that are too large, and nothing that bounds them",
        "optimizer.gradient_clip_norm",
        f"set it to {USUAL_CLIP_NORM:g}; then lower optimizer.peak_learning_rate or lengthen the warm-up",
    )


def _trained_projections(evidence: Evidence) -> list[str]:
    """Those that a loss with a weight reaches; of regions once regions were met."""
    uses = _uses(evidence.settings)
    if not any(evidence.values("count/regions/valid")):
        uses.discard("regions")
    model = evidence.settings.model
    absent = {*OTHER_FAMILYS[model.family], *(["roi_projection"] if model.region_projection == "frozen" else [])}
    return [name for name, use in PROJECTIONS.items() if use in uses and name not in absent]


def _uses(settings: Stage1Settings) -> set[str]:
    weights = settings.global_loss
    uses = {"short"} if weights.short_weight else set()
    uses |= {"long"} if weights.long_weight else set()
    uses |= {"images"} if weights.short_weight or weights.long_weight else set()
    if isinstance(settings, Stage2Settings):
        region = settings.region_loss
        uses |= {"regions"} if region.fgv_weight or region.fgt_weight or region.hard_inbatch_weight else set()
    return uses


def _newest_rates(evidence: Evidence) -> dict[str, float]:
    """The newest learning rate of each part that trains; rates that agree are logged once for all."""
    common, seen = evidence.points("learning_rate"), evidence.gradients_of_projections()
    if not common:
        return {}
    step, shared = common[-1]
    rates, are_equal = {}, all(evidence.at_step(f"learning_rate/{name}", step) is None for name in _groups())
    for part, modules in PARTS.items():
        own = [evidence.at_step(f"learning_rate/{name}", step) for name in (part, f"{part}_no_decay")]
        logged = next((rate for rate in own if rate is not None), None)
        trains = seen is None or any(name in seen for name in modules)
        if logged is not None:
            rates[part] = logged
        elif are_equal and trains:
            rates[part] = shared
        elif seen is not None and trains:  # it trains, in a group of another name
            rates[part] = evidence.at_step("learning_rate/text", step) or shared
    return rates


def _groups() -> list[str]:
    return [name for part in PARTS for name in (part, f"{part}_no_decay")]
