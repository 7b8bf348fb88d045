"""The one loop of both stages: data, forward, losses, backward, update; checkpoints and logs around it.

Every collective below runs on every rank at every step. The order of a step: read micro-batches; forward and losses
in float32; one all-reduce of three flags (a loss that is not finite, a stop request, a due checkpoint); backward;
update.
"""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.model import Embeddings
from pipeline.training.bundle import write_rank_bundle
from pipeline.training.failure import NonFiniteStep, bundle_folder
from pipeline.training.first_losses import check_first_losses
from pipeline.training.flops import step_flops
from pipeline.training.health import embedding_health, gradient_norms, norm_problems
from pipeline.training.losses import LossOutput
from pipeline.training.metrics import Progress, reduce_metrics
from pipeline.training.optimizer import learning_rate, set_learning_rates
from pipeline.training.run import Run, StepResult
from pipeline.training.signals import StopRequest
from pipeline.training.tracked import kept_models


def train(run: Run) -> int:
    """Run until the last step or a stop request. Returns 0, or 128 plus the signal's number.

    Raises:
        NonFiniteStep: on every rank, before the update.
        CheckpointError: on every rank, if the last checkpoint could not be written.
    """
    settings, state = run.settings.train, run.state
    progress = Progress(run.total_steps, state.step, run.rank_info.is_main)
    started, before = time.monotonic(), state.seconds
    last_saved = time.monotonic()
    with StopRequest() as stop:
        try:
            while state.step < run.total_steps:
                step_started = time.monotonic()
                due = settings.checkpoint_every_minutes
                wants_save = due is not None and time.monotonic() - last_saved >= 60 * due
                result = _step(run, bool(stop.received), wants_save)
                state.seconds = before + time.monotonic() - started
                progress.step()
                if _is_logged(run, state.step):
                    _log(run, result, time.monotonic() - step_started, progress)
                for callback in run.callbacks:
                    callback(run)
                finished = state.step >= run.total_steps
                is_due = _is_due(state.step, settings.checkpoint_every_steps)
                if finished or result.stop or result.save or run.saver.wanted or is_due:
                    run.saver.save(run, must_succeed=finished or result.stop)
                    last_saved = time.monotonic()
                    _tell_checkpoints(run)
                if result.stop:
                    run.saver.finish()
                    _tell_checkpoints(run)
                    return 128 + (stop.received or 15)
        finally:
            progress.close()
    run.saver.finish()
    _tell_checkpoints(run)
    return 0


def _tell_checkpoints(run: Run) -> None:
    """Tracking hears which checkpoints are on disk now; one that is still being written is told the next time."""
    if run.rank_info.is_main:
        run.tracker.log_checkpoints(kept_models(run))


def _step(run: Run, wants_stop: bool, wants_save: bool) -> StepResult:
    """One optimizer step; advances the state."""
    settings, state, result = run.settings.train, run.state, StepResult()
    rates = set_learning_rates(run.engine.optimizer, learning_rate(state.step, run.total_steps, run.settings.optimizer))
    # Seeds are a function of step and rank, so no generator's state has to survive a resume.
    torch.manual_seed((settings.seed * 1_000_003 + state.step) * 4096 + run.rank_info.rank)
    run.speed.phases.exact = _is_logged(run, state.step + 1)
    needs_health = _is_due(state.step + 1, settings.health_every_steps) or state.step == 0
    for part in range(settings.accumulation_steps):
        run.heartbeat.beat(state.step, "data")
        waited = time.monotonic()
        batch = next(run.loader).to(run.device)
        result.wait_seconds += time.monotonic() - waited
        run.speed.count(batch)
        run.heartbeat.beat(state.step, "forward")
        embeddings = run.engine(batch, regions=run.settings.trains_regions)
        run.heartbeat.beat(state.step, "losses")
        output = run.losses(embeddings, batch, with_health=needs_health)
        total = output.total + _every_scale(embeddings)
        flags = _any_rank([not bool(output.total.detach().isfinite()), wants_stop, wants_save], run.device)
        if flags[0]:
            _fail(run, batch, output, "a loss is not finite")
        result.stop, result.save = flags[1], flags[2]
        run.heartbeat.beat(state.step, "backward")
        run.engine.backward(total)
        if part == settings.accumulation_steps - 1:
            if needs_health:
                result.health = {**output.health, **gradient_norms(run.engine)}
            if needs_health or _is_logged(run, state.step + 1):
                result.health.update(embedding_health(embeddings))
        run.heartbeat.beat(state.step, "update")
        run.engine.step()
        share = 1 / settings.accumulation_steps
        result.total += share * float(output.total.detach())
        result.flops += step_flops(run.engine.module.config, batch, run.settings.trains_regions)
        for name, value in output.parts.items():
            result.parts[name] = result.parts.get(name, 0.0) + share * float(value)
        for name, value in output.counters.items():
            result.counters[name] = result.counters.get(name, 0.0) + float(value)
    _count_skips(run, batch, output)
    run.losses.state.advance(state.step + 1)
    state.step += 1
    state.samples_seen += settings.global_batch_size
    state.flops += result.flops * run.rank_info.world_size
    result.health.update({f"learning_rate/{name}": rate for name, rate in rates.items()})
    return result


def _every_scale(embeddings: Embeddings) -> Tensor:
    """A zero that gives every scalar a gradient on every rank.

    ZeRO 1 and 2 reduce only the parameters that had one, so a rank without regions would reduce fewer than the others.
    """
    scales = embeddings.scales
    return 0.0 * (scales.global_scale + scales.global_bias + scales.finegrained + scales.hardneg)


def _count_skips(run: Run, batch: Batch, output: LossOutput) -> None:
    """Without a loss scale DeepSpeed leaves a step out for one reason only: the gradient's norm is not finite."""
    if run.engine.was_step_applied():
        run.state.skipped_in_a_row = 0
        return
    run.state.skipped_in_a_row += 1
    run.state.skipped_in_all += 1
    if run.settings.train.precision == "fp32" or (
        run.state.skipped_in_a_row >= run.settings.train.max_skipped_steps_in_a_row
    ):
        _fail(run, batch, output, f"the gradient is not finite, {run.state.skipped_in_a_row} step(s) in a row")


def _fail(run: Run, batch: Batch, output: LossOutput, reason: str) -> None:
    """Leave a bundle on every rank, then raise on every rank."""
    folder = bundle_folder(run.settings.train.run_folder, run.state.step)
    losses = {"total": float(output.total.detach()), **{n: float(v) for n, v in output.parts.items()}}
    circumstances = {
        "reason": reason,
        "step": run.state.step,
        "last_metrics": run.last_metrics,
        "health": {n: float(v) for n, v in output.health.items()},
    }
    write_rank_bundle(folder, run.rank_info, batch, losses, circumstances)
    run.saver.save_failed_step(run, folder / "checkpoint")
    raise NonFiniteStep(
        f"step {run.state.step}, rank {run.rank_info.rank}: {reason}; nothing was updated. "
        f"Replay: python -m pipeline.training.failure {folder}"
    )


def _log(run: Run, result: StepResult, step_seconds: float, progress: Progress) -> None:
    """Reduce over the ranks and write; the values are those of this step alone, so a resumed curve is the same."""
    run.heartbeat.beat(run.state.step, "log")
    for problem in norm_problems(result.health):
        print(f"warning: rank {run.rank_info.rank}, step {run.state.step}: {problem}", flush=True)
    gradient_norm = float(run.engine.get_global_grad_norm() or 0.0)
    means = {
        "loss": result.total,
        **{name: value for name, value in result.parts.items()},
        **result.health,
        "gradient_norm": gradient_norm,
        **run.losses.state.metrics(),
        **run.saver.metrics(),
        "step_seconds": step_seconds,
        "data_wait_share": result.wait_seconds / step_seconds,
        **(run.host_metrics.sample() if run.host_metrics else {}),
    }
    sums = {
        **{f"count/{name}": value for name, value in result.counters.items()},
        **{f"replaced/{name}": float(count) for name, count in run.loader.fault_counts().items()},
    }
    metrics = reduce_metrics(means, sums)
    speed, slow_ranks = run.speed.report()
    metrics |= speed
    metrics["images_per_second"] = run.settings.train.global_batch_size / metrics["step_seconds"]
    metrics["samples_seen"] = float(run.state.samples_seen)
    metrics["training_hours"] = run.state.seconds / 3600
    metrics["training_flops"] = run.state.flops
    metrics["skipped_steps"] = float(run.state.skipped_in_all)
    if run.state.step == 1:
        _warn_of_a_wrong_start(run, metrics)
    for line in slow_ranks if run.rank_info.is_main else []:
        print(f"warning: step {run.state.step}: {line}", flush=True)
    run.last_metrics = metrics
    run.tracker.log(run.state.step, metrics)
    progress.report(run.state.step, metrics)


def _warn_of_a_wrong_start(run: Run, metrics: dict[str, float]) -> None:
    """Compare the first losses with those of random weights; rank 0 prints, since all ranks have the same numbers."""
    counters = {name.removeprefix("count/"): value for name, value in metrics.items() if name.startswith("count/")}
    width = run.engine.module.config.vision_config.hidden_size
    random_start = run.settings.model.start_from is None
    for warning in check_first_losses(run.settings, metrics, counters, metrics, width, random_start):
        if run.rank_info.is_main:
            print(f"warning: first step: {warning}", flush=True)


def _any_rank(flags: list[bool], device: torch.device) -> list[bool]:
    """Each flag, true if it is true on any rank; collective."""
    values: Tensor = torch.tensor([float(flag) for flag in flags], device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return [bool(value) for value in values.tolist()]


def _is_logged(run: Run, step: int) -> bool:
    return step in (1, run.total_steps) or _is_due(step, run.settings.train.log_every_steps)


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
