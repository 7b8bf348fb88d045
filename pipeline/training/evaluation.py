"""Evaluation every so many steps: the first rank scores a copy of the model while the others wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.config import SettingsError, Stage1Settings

LIMIT_SECONDS = 6 * 3600  # assumption: an evaluation beside training that takes longer is a mistake


def evaluation_callback(settings: Stage1Settings, model: Any, tokenizer: Any) -> Callable[[Any], None] | None:
    """A callback for the loop, or None where ``evaluation.every_steps`` is null.

    Raises:
        SettingsError: evaluation is asked for without tasks or data.
    """
    chosen = settings.evaluation
    if chosen.every_steps is None:
        return None
    if not chosen.tasks or not chosen.data:
        raise SettingsError(
            f"evaluation.every_steps is {chosen.every_steps}, but evaluation.tasks is {chosen.tasks} and "
            f"evaluation.data {chosen.data}; name tasks and a folder, or set evaluation.every_steps=null"
        )

    def evaluate(run: Any) -> None:
        if run.state.step % chosen.every_steps:
            return
        from pipeline.training.full_state import full_state_dict

        run.heartbeat.beat(run.state.step, "evaluation", allowed_seconds=LIMIT_SECONDS)
        weights = full_state_dict(run.engine.module)  # collective: ZeRO 3 gathers
        if run.rank_info.is_main:
            run.tracker.log(run.state.step, _scores(settings, model.config, weights, tokenizer, run))
        dist.barrier()

    return evaluate


def _scores(settings: Stage1Settings, config: Any, weights: dict, tokenizer: Any, run: Any) -> dict[str, float]:
    from pipeline.evaluation.models import FGCLIP2Evaluation
    from pipeline.evaluation.results import flat_scores
    from pipeline.evaluation.run import evaluate_tasks
    from pipeline.model import FGCLIP2

    copy = FGCLIP2(config)
    copy.load_state_dict(weights)
    if not run.settings.trains_regions:
        copy.copy_heads_for_stage2()
    evaluated = FGCLIP2Evaluation(
        copy.to(run.device).eval(),
        tokenizer,
        levels=settings.data.patch_budgets,
        prefixes=settings.data.short_caption_prefix,
    )
    results = evaluate_tasks(evaluated, settings.evaluation.tasks, [Path(settings.evaluation.data)])
    return {
        f"score/{name}/{key}": value
        for name, result in results.items()
        for key, value in flat_scores(result["scores"]).items()
    }
