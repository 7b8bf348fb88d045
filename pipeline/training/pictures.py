"""Pictures of fixed test images every so many steps, made by rank 0 while the others wait."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist

from pipeline.config import Stage1Settings
from pipeline.data.tokenizer import Tokenizer
from pipeline.evaluation.learning_pictures import learning_pictures
from pipeline.evaluation.models.trained import evaluation_of
from pipeline.export.folder import model_with_weights
from pipeline.model import FamilyConfig
from pipeline.training.full_state import full_state_dict
from pipeline.training.run import Run
from pipeline.tuning.lora import merged_weights

LIMIT_SECONDS = 3600.0  # assumption: a few dozen images on one rank


def pictures_callback(
    settings: Stage1Settings, config: FamilyConfig, tokenizer: Tokenizer
) -> Callable[[Run], None] | None:
    """A callback for the loop, or None where ``evaluation.pictures_every_steps`` is null."""
    every_steps, data = settings.evaluation.pictures_every_steps, settings.evaluation.data
    if every_steps is None or data is None:  # one without the other is refused before the run has a folder
        return None

    def show(run: Run) -> None:
        if run.state.step % every_steps and run.state.step not in (1, run.total_steps):
            return
        run.heartbeat.beat(run.state.step, "pictures", allowed_seconds=LIMIT_SECONDS)
        # collective: ZeRO 3 gathers
        weights = merged_weights(full_state_dict(run.engine, run.rank_info), settings.tune)
        if run.rank_info.is_main:
            copy = model_with_weights(config, weights)
            if not settings.trains_regions:
                copy.copy_heads_for_stage2()
            prefixes = {str(language): prefix for language, prefix in settings.data.short_caption_prefix.items()}
            model = evaluation_of(
                copy.to(run.device).eval(), tokenizer, patch_budgets=settings.data.patch_budgets, prefixes=prefixes
            )
            run.tracker.log_images(run.state.step, learning_pictures(model, data))
        dist.barrier()

    return show
