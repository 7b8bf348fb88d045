"""Small runs of stage 2 in which one thing is wrong, each fault put in where it would happen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from pipeline.data.batch import Batch
from pipeline.data.facts import facts_of
from tests.end_to_end.runs import Material

STEPS, MOST_STEPS = 12, 28  # the second for healthy runs
BATCH = 16
SETTINGS = (
    "tracking.enabled=false", "data.num_workers=0", "data.patch_budgets=[48]", f"train.global_batch_size={BATCH}",
    "train.health_every_steps=6", "train.checkpoint_every_steps=100",
    "optimizer.group_factors.scales=1", "optimizer.warmup_steps=4",
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """``finding``: the check that must name it, alone. ``patch``: what goes wrong in the code or the data."""

    finding: str
    settings: tuple[str, ...] = ()
    steps: int = STEPS
    patch: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


def run_with_fault(material: Material, run: Path, settings: tuple[str, ...], fault: str | None) -> int:
    """A run on this rank, to its end."""
    from pipeline.base.ranks import read_rank_info
    from pipeline.config import Stage2Settings, load_settings
    from pipeline.training.assemble import run_in_group

    chosen = FAULTS[fault] if fault else Fault("", steps=MOST_STEPS)
    values = material.settings(run, *SETTINGS, f"train.max_steps={chosen.steps}", *chosen.settings, *settings)
    with chosen.patch():
        return run_in_group(load_settings(Stage2Settings, None, values), read_rank_info(), torch.device("cpu"))


def run_all(material: Material, folder: Path, faults: list[str], seeds: list[int]) -> None:
    """``folder/FAULT`` and ``folder/healthy-SEED``, one after another, and what each prints as ``….log``."""
    runs: list[tuple[str, str | None, tuple[str, ...]]] = [(fault, fault, ()) for fault in faults]
    runs += [(f"healthy-{seed}", None, (f"train.seed={seed}",)) for seed in seeds]
    for name, fault, settings in runs:
        with open(folder / f"{name}.log", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            assert run_with_fault(material, folder / name, settings, fault) == 0


def _with_boxes(change: Callable[[torch.Tensor], torch.Tensor]) -> contextlib.AbstractContextManager[Any]:
    """Every batch has other boxes than its shards."""
    from pipeline.training.step import _Step

    plain = _Step.read

    def read(self: Any, count: int) -> Iterator[Batch]:
        for batch in plain(self, count):
            changed = replace(batch, boxes=change(batch.boxes), facts=None)
            yield replace(changed, facts=facts_of(changed, batch.facts.num_region_texts if batch.facts else None))

    return mock.patch.object(_Step, "read", read)


def _without_area(boxes: torch.Tensor) -> torch.Tensor:
    """Every fourth box begins and ends at the same place."""
    boxes = boxes.clone()
    boxes[::4, 2] = boxes[::4, 0]
    return boxes


def _shrunk(boxes: torch.Tensor) -> torch.Tensor:
    """Sides of a twentieth of the image at most, about the same middle."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, ((boxes[:, 2:] - boxes[:, :2]) / 2).clamp(max=0.025)
    return torch.cat([middle - half, middle + half], dim=1)


def _on_model(change: Callable[[Any], None]) -> contextlib.AbstractContextManager[Any]:
    from pipeline.training import assemble

    plain = assemble.make_model

    def make(*arguments: Any) -> Any:
        model = plain(*arguments)
        change(model)
        return model

    return mock.patch.object(assemble, "make_model", make)


def _flat_scale(model: Any) -> None:
    with torch.no_grad():
        model.logit_scale_finegraind.fill_(2.6592)


def _freeze_region_text(model: Any) -> None:
    model.boxtext_head.requires_grad_(False)


def _cut_region_text(model: Any) -> None:
    """The projection's output leaves the graph, as a detach too many would do; its zero gradient stays."""
    plain = model.boxtext_head.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        found = plain(hidden)
        return found.detach() + 0 * found

    model.boxtext_head.forward = forward


def _new_heads_among_text() -> contextlib.AbstractContextManager[Any]:
    from pipeline.training import optimizer

    return mock.patch.object(optimizer, "NEW_HEADS", ())


def _rate_by_micro_steps() -> contextlib.AbstractContextManager[Any]:
    from pipeline.training import step

    plain = step.learning_rate
    return mock.patch.object(step, "learning_rate", lambda number, *rest: plain(4 * number, *rest))


def _on_total(factor: Callable[[int], float]) -> contextlib.AbstractContextManager[Any]:
    """The loss that is differentiated is multiplied by a factor of the step."""
    from pipeline.training.step import _Step

    plain = _Step.losses

    def losses(self: Any, embeddings: Any, batch: Batch, *, with_health: bool) -> Any:
        found = plain(self, embeddings, batch, with_health=with_health)
        return replace(found, total=found.total * factor(self.run.state.step))

    return mock.patch.object(_Step, "losses", losses)


FAULTS = {
    "bank": Fault(
        "memory-bank-never-starts",
        ("region_loss.memory_bank_size=64", f"region_loss.memory_bank_start_step={8 * STEPS}"),
    ),
    "flat-scale": Fault("region-scale", patch=lambda: _on_model(_flat_scale)),
    "no-area": Fault("regions-without-area", patch=lambda: _with_boxes(_without_area)),
    "small-boxes": Fault("small-boxes", patch=lambda: _with_boxes(_shrunk)),
    "no-group": Fault("untrained-projection", patch=lambda: _on_model(_freeze_region_text)),
    "no-gradient": Fault("untrained-projection", patch=lambda: _on_model(_cut_region_text)),
    "lost-rate": Fault(
        "learning-rate-lost", ("optimizer.group_factors.new_heads=10",), patch=_new_heads_among_text
    ),
    "no-clipping": Fault(
        "clipping-off", ("optimizer.gradient_clip_norm=1e9",), patch=lambda: _on_total(lambda step: 2.5**step)
    ),
    "orders-apart": Fault(
        "losses-orders-apart",
        tuple(f"region_loss.{name}_weight=1e-4" for name in ("fgv", "fgt", "tic", "cmr")),
    ),
    "few-negatives": Fault("few-negatives", ("train.accumulation=separate", "train.accumulation_steps=8")),
    "oscillation": Fault(
        "growing-oscillation",
        steps=44,  # the loss falls too fast before the tenth
        patch=lambda: _on_total(lambda step: 1 + min(0.9, 0.0005 * 1.2**step) * (-1) ** step),
    ),
    "micro-steps": Fault(
        "warmup-in-micro-steps",
        ("train.accumulation_steps=4", "optimizer.warmup_steps=12"),
        steps=18,
        patch=_rate_by_micro_steps,
    ),
}  # fmt: skip
