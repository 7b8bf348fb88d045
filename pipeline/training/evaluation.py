"""Evaluation every so many steps, by all ranks: scores of tasks, and the losses on held-out shards.

Every rank scores a copy of the model on its share of the set. They meet over a process group of their own, whose limit
is hours, so an evaluation may be longer than ``train.timeout_seconds``; the heartbeats are told so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from pipeline.config import AugmentSettings, SettingsError, Stage1Settings
from pipeline.data.batch import Batch
from pipeline.data.loader import Reading, make_loader
from pipeline.data.tokenizer import Tokenizer
from pipeline.evaluation.ranks import Ranks
from pipeline.export.folder import model_with_weights
from pipeline.model import DualEncoder, Embeddings, FamilyConfig
from pipeline.training.before import check_evaluation
from pipeline.training.cached import losses_of_slice
from pipeline.training.full_state import full_state_dict
from pipeline.training.losses import StageLosses
from pipeline.training.metrics import reduce_metrics
from pipeline.training.run import Run
from pipeline.tuning.lora import merged_weights

if TYPE_CHECKING:
    from pipeline.evaluation.models.base import EvaluationModel

LIMIT_SECONDS = 6 * 3600.0  # assumption: an evaluation beside training that takes longer is a mistake
VALIDATION = "validation/"


def evaluation_callback(
    settings: Stage1Settings, config: FamilyConfig, tokenizer: Tokenizer, group: dist.ProcessGroup | None
) -> Callable[[Run], None] | None:
    """A callback for the loop, or None where ``evaluation.every_steps`` is null.

    Args:
        config: of the model, as it was before DeepSpeed took it.
        group: a gloo process group of all ranks with a limit of hours.

    Raises:
        SettingsError: evaluation is asked for without anything to evaluate on, or a best one without evaluation.
    """
    check_evaluation(settings)
    chosen = settings.evaluation
    every_steps = chosen.every_steps
    if every_steps is None:
        return None

    def evaluate(run: Run) -> None:
        if run.state.step % every_steps:
            return
        run.heartbeat.beat(run.state.step, "evaluation", allowed_seconds=LIMIT_SECONDS)
        copy = copy_of_model(run, config)
        scores: dict[str, float] = {}
        if chosen.shards:
            scores |= validation_losses(run, copy, tokenizer)
        if chosen.tasks and chosen.data:
            scores |= task_scores(run, copy, tokenizer, Ranks(run.rank_info, group), Path(chosen.data))
        dist.barrier(group=group)  # the next collective is training's, whose limit is shorter
        if run.rank_info.is_main:
            run.tracker.log(run.state.step, scores)
        if settings.train.keep_best:
            offer_best(run, settings.train.keep_best, scores, group)

    return evaluate


def copy_of_model(run: Run, config: FamilyConfig) -> DualEncoder:
    """The model as it is now, whole on every rank; collective, because ZeRO 3 gathers. ``config``: as it began."""
    weights = merged_weights(full_state_dict(run.engine, run.rank_info), run.settings.tune)
    copy = model_with_weights(config, weights).to(run.device)
    if not run.settings.trains_regions:
        copy.copy_heads_for_stage2()
    return copy


def evaluated_model(run: Run, copy: DualEncoder, tokenizer: Tokenizer) -> EvaluationModel:
    """A copy of the model as tasks take it, with the run's patch budgets and prefixes."""
    from pipeline.evaluation.models.trained import evaluation_of  # not at the top: see task_scores

    data = run.settings.data
    prefixes = {str(language): prefix for language, prefix in data.short_caption_prefix.items()}
    return evaluation_of(copy.eval(), tokenizer, patch_budgets=data.patch_budgets, prefixes=prefixes)


def task_scores(run: Run, copy: DualEncoder, tokenizer: Tokenizer, ranks: Ranks, data: Path) -> dict[str, float]:
    """``score/TASK/NAME``, the same on every rank."""
    # Here, not at the top: most runs do not evaluate, and need not load what the tasks import.
    from pipeline.evaluation.results import flat_scores
    from pipeline.evaluation.run import evaluate_several

    results = evaluate_several(evaluated_model(run, copy, tokenizer), run.settings.evaluation.tasks, data, ranks)
    return {
        f"score/{name}/{key}": value
        for name, result in results.items()
        for key, value in flat_scores(result["scores"]).items()
    }


@torch.no_grad()
def validation_losses(run: Run, copy: DualEncoder, tokenizer: Tokenizer) -> dict[str, float]:
    """``validation/loss`` and its parts on held-out shards, in training's batches and micro-batches. Collective.

    The batches are the first ones of their plan, so every evaluation sees the same. τ and the memory bank are those of
    training and do not move.
    """
    settings, text = run.settings, copy.config.text_config
    held_out = settings.data.model_copy(
        update={
            "shards": settings.evaluation.shards,
            "source_weights": None,
            "language_weights": None,
            "streaming": False,
            "augment": AugmentSettings(),
        }
    )
    loader = make_loader(
        Reading(
            held_out,
            tokenizer,
            (text.max_position_embeddings, text.longtext_len),
            seed=settings.train.seed,
            global_batch_size=settings.train.global_batch_size,
            rank=run.rank_info.rank,
            division=run.division,
            with_regions=settings.trains_regions,
        )
    )

    def forward(batch: Batch, number: int) -> Embeddings:
        return copy(batch.to(run.device), regions=settings.trains_regions)

    state = run.losses.state.state_dict()
    values: dict[str, float] = {}
    number = min(settings.evaluation.validation_batches, loader.steps_per_epoch())
    try:
        for _ in range(number):
            losses = StageLosses(settings, group=None)
            losses.state.load_state_dict(state, run.device)
            parts = 1 if run.division.separate else loader.upcoming().parts
            with torch.autocast(run.device.type, torch.bfloat16, enabled=settings.train.precision == "bf16"):
                output = losses_of_slice(forward, itertools.islice(loader, parts), parts, losses).output
            for name, value in {"loss": output.total, **output.parts}.items():
                values[VALIDATION + name] = values.get(VALIDATION + name, 0.0) + float(value) / number
    finally:
        loader.close()
    return reduce_metrics(values, {})


def offer_best(run: Run, name: str, scores: dict[str, float], group: dist.ProcessGroup | None) -> None:
    """Keep this step's checkpoint where ``name`` is better than ever: the highest score, the lowest validation loss.

    Raises:
        SettingsError: no score has that name.
    """
    key = name if name in scores else f"score/{name}"
    if key not in scores:
        names = ", ".join(sorted(score.removeprefix("score/") for score in scores))
        raise SettingsError(f"train.keep_best is {name!r}; the evaluation gives {names}: name one of them")
    value = [-scores[key] if key.startswith(VALIDATION) else scores[key]]
    dist.broadcast_object_list(value, src=0, group=group)
    told = None
    if run.saver.offer_best(run.state.step, value[0]):
        told = f"{name} is {scores[key]:.4g}, the best so far; its checkpoint is kept"
    elif _is_enough(run):
        run.ended_early = True
        told = (
            f"{name} is {scores[key]:.4g}; the best was at step {run.saver.best_step}, and "
            f"{run.settings.train.stop_after_worse} evaluation(s) since then did not better it, so the run ends. The "
            f"best model: python -m pipeline.export {run.settings.train.run_folder} --checkpoint {run.saver.best_step} "
            "--out DIR"
        )
    if told and run.rank_info.is_main:
        print(f"step {run.state.step}: {told}", flush=True)


def _is_enough(run: Run) -> bool:
    """Whether as many evaluations as ``train.stop_after_worse`` have passed since the best one.

    Told by the steps alone, so that a resumed run ends where an uninterrupted one does.
    """
    most, every, best = run.settings.train.stop_after_worse, run.settings.evaluation.every_steps, run.saver.best_step
    return bool(most and every and best is not None and run.state.step - best >= most * every)
