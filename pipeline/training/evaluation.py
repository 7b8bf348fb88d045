"""Evaluation every so many steps: rank 0 scores a copy of the model while the others wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from pipeline.config import SettingsError, Stage1Settings
from pipeline.data.tokenizer import Tokenizer
from pipeline.model import FGCLIP2, FGCLIP2Config
from pipeline.training.full_state import full_state_dict
from pipeline.training.run import Run

LIMIT_SECONDS = 6 * 3600  # assumption: an evaluation beside training that takes longer is a mistake


def evaluation_callback(settings: Stage1Settings, model: FGCLIP2, tokenizer: Tokenizer) -> Callable[[Run], None] | None:
    """A callback for the loop, or None where ``evaluation.every_steps`` is null.

    Raises:
        SettingsError: evaluation is asked for without tasks or data.
    """
    chosen = settings.evaluation
    every_steps, tasks, data = chosen.every_steps, chosen.tasks, chosen.data
    if every_steps is None:
        return None
    if not tasks or not data:
        raise SettingsError(
            f"evaluation.every_steps is {every_steps}, but evaluation.tasks is {tasks} and "
            f"evaluation.data {data}; name tasks and a folder, or set evaluation.every_steps=null"
        )

    def evaluate(run: Run) -> None:
        if run.state.step % every_steps:
            return
        run.heartbeat.beat(run.state.step, "evaluation", allowed_seconds=LIMIT_SECONDS)
        weights = full_state_dict(run.engine.module)  # collective: ZeRO 3 gathers
        if run.rank_info.is_main:
            run.tracker.log(run.state.step, _scores(model.config, weights, tokenizer, run, Path(data)))
        dist.barrier()

    return evaluate


def _scores(
    config: FGCLIP2Config, weights: dict[str, Tensor], tokenizer: Tokenizer, run: Run, data: Path
) -> dict[str, float]:
    # Here, not at the top: most runs do not evaluate, and need not load what the tasks import.
    from pipeline.evaluation.models.fgclip2 import FGCLIP2Evaluation
    from pipeline.evaluation.results import flat_scores
    from pipeline.evaluation.run import evaluate_several

    settings = run.settings
    copy = FGCLIP2(config)
    copy.load_state_dict(weights)
    if not run.settings.trains_regions:
        copy.copy_heads_for_stage2()
    evaluated = FGCLIP2Evaluation(
        copy.to(run.device).eval(),
        tokenizer,
        patch_budgets=settings.data.patch_budgets,
        prefixes={str(language): prefix for language, prefix in settings.data.short_caption_prefix.items()},
    )
    results = evaluate_several(evaluated, settings.evaluation.tasks, data)
    return {
        f"score/{name}/{key}": value
        for name, result in results.items()
        for key, value in flat_scores(result["scores"]).items()
    }
