"""Assembles a run from its settings and drives it to its end; the only place that knows all the parts."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.config import SettingsError, Stage1Settings, dump_settings, load_settings
from pipeline.training.engine import (
    Place,
    build_engine,
    find_place,
    join_process_group,
    micro_batch_size,
    prepare_cores,
)

EXPORT_LIMIT_SECONDS = 3600.0  # assumption: a few gigabytes to a slow file system, and reading them back


def main(kind: type[Stage1Settings], yaml_file: Path, description: str, argv: Sequence[str] | None = None) -> int:
    """The command line of a stage script. Returns the exit status: 0 only for a finished run."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  bash launch/stage1.sh train.run_folder=runs/a 'data.shards=[shards/train]' tokenizer.path=tokenizer\n"
        "  python stages/stage2.py --config mine.yaml model.start_from=runs/a optimizer.peak_learning_rate=1e-5\n"
        "  deepspeed --hostfile hostfile --no_python launch/stage1.sh --config mine.yaml",
    )
    parser.add_argument("overrides", nargs="*", metavar="group.name=value", help="settings; values are YAML")
    parser.add_argument("--config", type=Path, action="append", default=[], help="YAML over the stage's; repeatable")
    parser.add_argument("--print-config", action="store_true", help="print every setting as it would be used and stop")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # some launchers pass it; RANK variables rule
    arguments = parser.parse_intermixed_args(argv)
    try:
        settings = load_settings(kind, [yaml_file, *arguments.config], arguments.overrides)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.print_config:
        print(dump_settings(settings), end="")
        return 0
    return run(settings)


def run(settings: Stage1Settings) -> int:
    """Run a stage in this process, one of the world's; the exit status."""
    from pipeline.data.loader import DataFaultLimit
    from pipeline.training.checkpoint import CheckpointError
    from pipeline.training.failure import NonFiniteStep

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    place = find_place()
    prepare_cores(place, settings.train)
    join_process_group(place, settings.train.timeout_seconds)
    try:
        status = run_in_group(settings, place)
    except (SettingsError, ValueError, OSError, CheckpointError, NonFiniteStep, DataFaultLimit) as error:
        # Known failures are one line; every rank that meets one prints it, since any may be the only one.
        print(f"error: rank {place.rank}: {error}", file=sys.stderr, flush=True)
        if place.device.type == "cpu":  # NCCL's would wait for ranks that may be gone
            dist.destroy_process_group()
        return 3 if isinstance(error, NonFiniteStep) else 2
    dist.barrier()  # the launcher ends the others as soon as one process has gone with a status
    dist.destroy_process_group()
    return status


def run_in_group(settings: Stage1Settings, place: Place) -> int:
    """A stage in the process group that is there. Returns 0, or 128 plus the number of the signal that stopped it."""
    from pipeline.data.tokenizer import load_tokenizer
    from pipeline.tracking.tracker import start_tracking
    from pipeline.training.checkpoint import find_resume, read_record
    from pipeline.training.state import TrainState

    run_folder, with_regions = Path(settings.train.run_folder), hasattr(settings, "region_loss")
    tokenizer = load_tokenizer(settings.tokenizer.path)
    choice = [find_resume(run_folder, settings.train.resume) if place.is_first else None]
    dist.broadcast_object_list(choice, src=0)  # one decision: ranks could see a shared folder at different times
    checkpoint: Path | None = choice[0]
    model = _model(settings, tokenizer, checkpoint, with_regions)
    state = TrainState.from_json(read_record(checkpoint)["state"]) if checkpoint else TrainState()
    loader = _loader(settings, place, tokenizer, model.config.text_config, state.step, with_regions)
    total_steps = settings.train.max_steps or max(1, round(settings.train.epochs * loader.steps_per_epoch()))
    if place.is_first:
        _write_facts(run_folder, settings)
    # a run that was killed before its first checkpoint goes on, too: from step 0, in the same MLflow run
    goes_on = settings.train.resume != "never" and (run_folder / "metrics.jsonl").is_file()
    resume_step = state.step if checkpoint or goes_on else None
    tracker = start_tracking(settings, run_folder, state.tracker_run_id, resume_step)
    try:
        if place.is_first:
            _announce(settings, place, model, checkpoint, total_steps)
        engine, losses = _engine_and_losses(settings, place, model, checkpoint)
        parts = {"engine": engine, "losses": losses, "loader": loader, "tracker": tracker}
        status = _drive(settings, place, parts, state, total_steps, model, tokenizer)
    except BaseException:
        tracker.end("FAILED")
        raise
    finally:
        loader.close()
    tracker.end("FINISHED" if status == 0 else "KILLED")
    return status


def _loader(settings: Stage1Settings, place: Place, tokenizer: Any, text: Any, start_step: int, regions: bool) -> Any:
    from pipeline.data.loader import make_loader

    return make_loader(
        settings.data,
        tokenizer,
        (text.max_position_embeddings, text.longtext_len),
        seed=settings.train.seed,
        global_batch_size=settings.train.global_batch_size,
        micro_batch_size=micro_batch_size(settings.train, place.world_size),
        rank=place.rank,
        world_size=place.world_size,
        start_step=start_step,
        accumulation_steps=settings.train.accumulation_steps,
        with_regions=regions,
    )


def _announce(settings: Stage1Settings, place: Place, model: Any, checkpoint: Path | None, total_steps: int) -> None:
    """What is about to run, and the table of what trains; before DeepSpeed takes the parameters apart."""
    from pipeline.training.health import group_table
    from pipeline.training.optimizer import parameter_groups

    begin = f"goes on from {checkpoint}" if checkpoint else f"starts from {settings.model.start_from or 'scratch'}"
    print(
        f"{settings.train.run_folder} {begin}: {total_steps} steps of {settings.train.global_batch_size} images on "
        f"{place.world_size} process(es), {place.device.type}, {settings.train.precision}",
        flush=True,
    )
    print(group_table(parameter_groups(model.named_parameters(), settings.optimizer), model), flush=True)


def _engine_and_losses(settings: Stage1Settings, place: Place, model: Any, checkpoint: Path | None) -> tuple[Any, Any]:
    """Both with their state: that of the checkpoint, or of a beginning."""
    from pipeline.training.checkpoint import read_objective, restore_moments
    from pipeline.training.losses import StageLosses
    from pipeline.training.whole_tensors import prepare_moments

    engine, losses = build_engine(model, settings, place), StageLosses(settings, group=None)
    if checkpoint:
        restore_moments(engine, checkpoint)
        losses.state.load_state_dict(read_objective(checkpoint, losses.state.state_dict()), place.device)
    else:
        prepare_moments(engine)
    return engine, losses


def _drive(
    settings: Stage1Settings,
    place: Place,
    parts: dict[str, Any],
    state: Any,
    total_steps: int,
    model: Any,
    tokenizer: Any,
) -> int:
    """The loop under heartbeats, and the export of a finished run."""
    from pipeline.tracking.figures import draw_losses
    from pipeline.training.evaluation import evaluation_callback
    from pipeline.training.heartbeat import Heartbeat
    from pipeline.training.loop import Run, train

    tracker, run_folder = parts["tracker"], Path(settings.train.run_folder)
    callback = evaluation_callback(settings, model, tokenizer)
    heartbeat = Heartbeat(
        place.rank, place.world_size, settings.train.timeout_seconds, on_failure=lambda verdict: tracker.end("FAILED")
    )
    with heartbeat:
        run = Run(
            settings=settings,
            place=place,
            state=state,
            total_steps=total_steps,
            with_regions=hasattr(settings, "region_loss"),
            heartbeat=heartbeat,
            callbacks=[callback] if callback else [],
            **parts,
        )
        status = train(run)
        if status == 0:
            heartbeat.beat(state.step, "export", allowed_seconds=EXPORT_LIMIT_SECONDS)
            _export(run, model, tokenizer, run_folder)
            if place.is_first:
                tracker.log_figure("losses", draw_losses(run_folder))
    return status


def _model(settings: Stage1Settings, tokenizer: Any, checkpoint: Path | None, with_regions: bool) -> Any:
    """The model with its starting weights; the same on every rank, because the seed is."""
    from pipeline.model import FGCLIP2, FGCLIP2Config, preset_config
    from pipeline.model.start import start_from
    from pipeline.training.checkpoint import read_weights
    from pipeline.training.optimizer import freeze_region_parameters

    torch.manual_seed(settings.train.seed)
    if checkpoint:
        model = FGCLIP2(FGCLIP2Config.from_pretrained(checkpoint))
        model.load_state_dict(read_weights(checkpoint))
    elif settings.model.start_from:
        model = start_from(settings.model.start_from, vocab_size=tokenizer.vocab_size)
    else:
        model = FGCLIP2.from_scratch(preset_config(settings.model.preset, tokenizer.vocab_size))
    if settings.model.gradient_checkpointing:
        model.checkpoint_activations()
    if not with_regions:
        freeze_region_parameters(model)
    return model.train()


def _write_facts(run_folder: Path, settings: Stage1Settings) -> None:
    """``settings.yaml`` and ``versions.json`` beside the checkpoints."""
    from pipeline.base.provenance import describe_host, git_revision, package_versions

    run_folder.mkdir(parents=True, exist_ok=True)
    facts = {"git_revision": git_revision(), "packages": package_versions(), "host": describe_host()}
    for name, text in (("settings.yaml", dump_settings(settings)), ("versions.json", json.dumps(facts, indent=1))):
        aside = run_folder / f"{name}.writing"
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, run_folder / name)


def _export(run: Any, model: Any, tokenizer: Any, run_folder: Path) -> None:
    """The trained model as a Hugging Face folder, RUN/final; collective, because ZeRO 3 gathers the weights."""
    from pipeline.export import export_model
    from pipeline.model import FGCLIP2
    from pipeline.training.whole_tensors import whole_state_dict

    weights = whole_state_dict(run.engine.module)
    if run.place.is_first:
        whole = FGCLIP2(model.config)
        whole.load_state_dict(weights)
        if not run.with_regions:  # stage 1 trained the heads that the region heads start from
            whole.copy_heads_for_stage2()
        card = {
            "run_folder": str(run_folder),
            "mlflow_run": run.tracker.run_id,
            "step": run.state.step,
            "settings": dump_settings(run.settings),
            "metrics": run.last_metrics,
        }
        export_model(whole.eval(), tokenizer, run_folder / "final", card)
    dist.barrier()
