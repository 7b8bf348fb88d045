"""Assembles a run from its settings and drives it to its end; the only place that knows all the parts."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.base.files import write_json, write_text
from pipeline.base.provenance import describe_host, git_revision, package_versions
from pipeline.base.ranks import RankInfo
from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.record import read_record
from pipeline.config import Stage1Settings, dump_settings
from pipeline.data.loader import Loader, Reading, make_loader
from pipeline.data.slices import Division
from pipeline.data.tokenizer import Tokenizer, load_tokenizer
from pipeline.estimate.fitting import largest_micro_batches
from pipeline.estimate.inputs import estimated_config, read_zero, sharding_of
from pipeline.export.folder import export_model, model_with_weights
from pipeline.export.run import languages_of
from pipeline.model import DualEncoder
from pipeline.model.configuration import size_of
from pipeline.supervise.attempts import AttemptLog
from pipeline.tracking.interface import Tracker
from pipeline.tracking.start import start_tracking
from pipeline.training.full_state import full_state_dict
from pipeline.training.health import group_table
from pipeline.training.last_lines import last_lines
from pipeline.training.loop import train
from pipeline.training.micro_batches import bank_notes, division_notes, make_division
from pipeline.training.optimizer import parameter_groups, rate_notes
from pipeline.training.recomputation import describe, least_usable_memory, recomputation_of
from pipeline.training.resume import (
    choose_checkpoint,
    noted_attempt,
    nothing_left,
    run_folder_held,
    settle_changes,
    settle_inputs,
)
from pipeline.training.run import Run
from pipeline.training.running import Start, running
from pipeline.training.starting import describe_start, make_model
from pipeline.training.state import TrainState
from pipeline.training.tracked import describe_inputs, describe_result
from pipeline.tuning.lora import merged_weights

EXPORT_LIMIT_SECONDS = 3600.0  # assumption: a few gigabytes to a slow file system, and reading them back


def run_in_group(settings: Stage1Settings, rank_info: RankInfo, device: torch.device) -> int:
    """A stage in the process group that is there. Returns 0, or 128 plus the number of the signal that stopped it.

    Raises:
        SettingsError, ValueError, OSError, CheckpointError: the run cannot begin or go on; the message says why.
        NonFiniteStep, DataFaultLimit: training cannot go on.
    """
    settle_inputs(settings, rank_info)
    with run_folder_held(settings, rank_info), noted_attempt(settings, rank_info) as attempt:
        start = prepare(settings, rank_info, device)
        try:
            tracker = _start_tracker(start)
            try:
                status = _drive(start, tracker, attempt)
            except BaseException:
                tracker.end("FAILED")
                raise
        finally:
            start.loader.close()
        tracker.end("FINISHED" if status == 0 else "KILLED")
        if attempt is not None:
            attempt.ended(status)
    return status


def prepare(settings: Stage1Settings, rank_info: RankInfo, device: torch.device) -> Start:
    """What a run begins with, from its settings; collective. Raises as :func:`run_in_group`."""
    tokenizer = load_tokenizer(settings.tokenizer.path)
    checkpoint = choose_checkpoint(settings, rank_info)
    model = make_model(settings, tokenizer, checkpoint)
    state = TrainState(**read_record(checkpoint).state.model_dump()) if checkpoint else TrainState()
    division = _make_division(settings, rank_info, device, model)
    model.checkpoint_activations(recomputation_of(settings, model.config, rank_info, device, division))
    loader = _make_loader(settings, rank_info, division, tokenizer, model, state.step)
    total_steps = settings.train.max_steps or max(1, round((settings.train.epochs or 0) * loader.steps_per_epoch()))
    fingerprint = settle_changes(settings, rank_info, checkpoint)
    if settings.model.start_from:  # what is recorded is the size that the start has
        made = settings.model.model_copy(update={"preset": size_of(model.config)})
        settings = settings.model_copy(update={"model": made})
    return Start(
        settings, rank_info, device, tokenizer, model, checkpoint, state, division, loader, total_steps, fingerprint
    )


def _make_division(settings: Stage1Settings, rank_info: RankInfo, device: torch.device, model: DualEncoder) -> Division:
    """How batches are divided, alike on all ranks; collective where the devices' memory decides."""

    def fitting() -> dict[int, int]:
        usable = least_usable_memory(device, rank_info)
        stage = int(read_zero(settings).get("stage", 0))
        config = estimated_config(model.config)
        sharding = sharding_of(settings, config, rank_info.world_size, stage, on_cpu=device.type == "cpu")
        return largest_micro_batches(settings, config, sharding, usable)

    return make_division(settings, rank_info.world_size, fitting)


def _make_loader(
    settings: Stage1Settings,
    rank_info: RankInfo,
    division: Division,
    tokenizer: Tokenizer,
    model: DualEncoder,
    start_step: int,
) -> Loader:
    text = model.config.text_config
    return make_loader(
        Reading(
            settings.data,
            tokenizer,
            (text.max_position_embeddings, text.longtext_len),
            seed=settings.train.seed,
            global_batch_size=settings.train.global_batch_size,
            rank=rank_info.rank,
            division=division,
            start_step=start_step,
            with_regions=settings.trains_regions,
            of_negatives=settings.losses_of_negatives,
            local_world_size=rank_info.local_world_size,
        )
    )


def _start_tracker(start: Start) -> Tracker:
    if start.rank_info.is_main:
        _write_provenance(start.folder, start.settings)
    # A run that was killed before its first checkpoint is resumed too: from step 0, in the same MLflow run.
    resumes = start.settings.train.resume != "never" and start.folder.metrics.is_file()
    resume_step = start.state.step if start.checkpoint or resumes else None
    tracker = start_tracking(start.settings, start.folder.path, start.state.tracker_run_id, resume_step)
    if start.rank_info.is_main:
        describe_inputs(start.settings, start.folder, tracker)
    return tracker


def _write_provenance(folder: RunFolder, settings: Stage1Settings) -> None:
    """The settings as they are used, and the versions of code, packages and host."""
    write_text(folder.settings, dump_settings(settings))
    versions = {"git_revision": git_revision(), "packages": package_versions(), "host": describe_host()}
    # relative paths of the settings are meant from there
    write_json(folder.versions, versions | {"started_in": str(Path.cwd())})


def _drive(start: Start, tracker: Tracker, attempt: AttemptLog | None) -> int:
    """The loop under heartbeats, and the export of a finished run."""
    if start.rank_info.is_main:
        announce(start)
    with running(start, tracker, attempt) as (run, patient):
        status = train(run)
        if status == 0:
            run.heartbeat.beat(run.state.step, "export", allowed_seconds=EXPORT_LIMIT_SECONDS)
            _export(run, start, patient)
            if start.rank_info.is_main:
                describe_result(run)
    if start.rank_info.is_main:
        told = last_lines(start.folder.path, status, run.state.step, start.total_steps, run.last_metrics, tracker.page)
        print("\n".join(told), flush=True)
    return status


def announce(start: Start) -> None:
    """What is about to run, and the table of what trains; before DeepSpeed takes the parameters apart."""
    settings, checkpoint = start.settings, start.checkpoint
    begin = f"goes on from {checkpoint}" if checkpoint else f"starts from {settings.model.start_from or 'scratch'}"
    print(
        f"{settings.train.run_folder} {begin}: {start.total_steps} steps of {settings.train.global_batch_size} images "
        f"on {start.rank_info.world_size} process(es), {start.device.type}, {settings.train.precision}",
        flush=True,
    )
    for note in [
        *nothing_left(start.state.step, start.total_steps),
        *start.loader.plan_notes(),
        *division_notes(settings, start.division),
        *bank_notes(settings, start.loader.regions_per_sample(), start.total_steps),
        *rate_notes(settings.optimizer, start.total_steps, from_scratch=settings.model.start_from is None),
    ]:
        print(note, flush=True)
    if settings.model.start_from and not checkpoint:
        print(describe_start(settings, start.tokenizer), flush=True)
    groups = parameter_groups(start.model.named_parameters(), settings.optimizer)
    print(group_table(groups, start.model), flush=True)
    memory = (
        f"{start.loader.buffer_bytes(budget) / 1e9:.2f} at {budget} patches" for budget in settings.data.patch_budgets
    )
    print(
        f"the loader holds at most {start.loader.num_buffers} micro-batches of pixels; host memory of a rank in GB, by "
        f"what it reads: {', '.join(memory)}",
        flush=True,
    )
    encoder = start.model.vision_model.encoder
    print(describe(encoder.recomputation, len(encoder.layers)), flush=True)


def _export(run: Run, start: Start, group: dist.ProcessGroup) -> None:
    """The trained model as a Hugging Face folder; collective, because ZeRO 3 gathers the weights."""
    weights = merged_weights(full_state_dict(run.engine, run.rank_info), run.settings.tune)
    if run.rank_info.is_main:
        model = model_with_weights(start.model.config, weights)
        if not run.settings.trains_regions:  # stage 1 trained the heads that the region heads start from
            model.copy_heads_for_stage2()
        card = {
            "run_folder": str(start.folder.path),
            "mlflow_run": run.tracker.run_id,
            "step": run.state.step,
            "settings": dump_settings(run.settings),
            "languages": languages_of(run.settings.data),
            "metrics": run.last_metrics,
        }
        export_model(model.eval(), start.tokenizer, start.folder.final, card)
    dist.barrier(group=group)  # an export may be longer than train.timeout_seconds
