"""The one loop of both stages: steps, with logs, callbacks and checkpoints around them.

Every collective below runs on every rank at every step. A step itself is in step.py.
"""

from __future__ import annotations

import time

from pipeline.doctor.watch import FIRST_STEPS
from pipeline.training.health import norm_problems
from pipeline.training.measures import effective_negatives, gradients_seen, small_boxes
from pipeline.training.metrics import StepProgress, reduce_metrics
from pipeline.training.run import Run, StepResult
from pipeline.training.signals import StopRequest
from pipeline.training.step import run_step
from pipeline.training.tracked import kept_models


def train(run: Run) -> int:
    """Run until the last step or a stop request. Returns 0, or 128 plus the signal's number.

    Raises:
        NonFiniteStep: on every rank, before the update.
        CheckpointError: on every rank, if the last checkpoint could not be written.
    """
    settings, state = run.settings.train, run.state
    progress = StepProgress(run.total_steps, state.step, run.rank_info.is_main)
    started, before = time.monotonic(), state.seconds
    last_saved = time.monotonic()
    with StopRequest() as stop:
        try:
            while state.step < run.total_steps and not run.ended_early:
                step_started = time.monotonic()
                due = settings.checkpoint_every_minutes
                wants_save = due is not None and time.monotonic() - last_saved >= 60 * due
                run.speed.phases.exact = _is_logged(run, state.step + 1)
                with_health = _has_health(run, state.step + 1)
                result = run_step(
                    run,
                    bool(stop.received),
                    wants_save,
                    with_health=with_health,
                    with_norms=_is_logged(run, state.step + 1),
                )
                state.seconds = before + time.monotonic() - started
                progress.step()
                if _is_logged(run, state.step):
                    log_step(run, result, time.monotonic() - step_started, progress)
                for callback in run.callbacks:
                    callback(run)
                finished = state.step >= run.total_steps or run.ended_early
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


def log_step(run: Run, result: StepResult, step_seconds: float, progress: StepProgress) -> None:
    """Reduce over the ranks and write; the values are those of this step alone, so a resumed curve is the same."""
    run.heartbeat.beat(run.state.step, "log")
    for problem in norm_problems(result.health):
        print(f"warning: rank {run.rank_info.rank}, step {run.state.step}: {problem}", flush=True)
    gradient_norm = float(run.engine.get_global_grad_norm() or 0.0)
    losses, counters = result.read()
    means = {
        **losses,
        **result.health,
        "gradient_norm": gradient_norm,
        "loss_pools": float(result.pools),
        **run.losses.state.metrics(),
        **run.saver.metrics(),
        "step_seconds": step_seconds,
        "data_wait_share": result.wait_seconds / step_seconds,
        **(run.host_metrics.sample() if run.host_metrics else {}),
    }
    sums = {
        **{f"count/{name}": value for name, value in counters.items()},
        **{f"replaced/{name}": float(count) for name, count in run.loader.fault_counts().items()},
    }
    if run.settings.trains_regions:
        sums["count/regions/small"] = float(small_boxes(result.batches))
    metrics = reduce_metrics(means, sums)
    if _has_health(run, run.state.step):
        metrics |= gradients_seen(run.engine, run.rank_info)
    metrics |= effective_negatives(run.settings, metrics, result.pools, run.rank_info.world_size)
    speed, slow_ranks = run.speed.report()
    metrics |= speed
    images = run.settings.train.global_batch_size * result.batches[0].num_frames  # those of a clip are its frames
    metrics["images_per_second"] = images / metrics["step_seconds"]
    metrics["samples_seen"] = float(run.state.samples_seen)
    metrics["training_hours"] = run.state.seconds / 3600
    metrics["training_flops"] = run.state.flops
    metrics["skipped_steps"] = float(run.state.skipped_in_all)
    for line in slow_ranks if run.rank_info.is_main else []:
        print(f"warning: step {run.state.step}: {line}", flush=True)
    run.last_metrics = metrics
    run.tracker.log(run.state.step, metrics)
    progress.report(run.state.step, metrics)
    _let_the_doctor_look(run, metrics)


def _let_the_doctor_look(run: Run, metrics: dict[str, float]) -> None:
    """At the first steps and at each health check; the main rank prints, since all ranks have the same numbers."""
    if run.watch is None:
        return
    step = run.state.step
    run.watch.observe(step, metrics)
    if step <= FIRST_STEPS or _has_health(run, step):
        for warning in run.watch.warnings():
            print(f"warning: step {step}: doctor: {warning}", flush=True)


def _has_health(run: Run, step: int) -> bool:
    """Whether logits, gradients and projections are looked at; such a step is logged."""
    return step in (1, run.total_steps) or _is_due(step, run.settings.train.health_every_steps)


def _is_logged(run: Run, step: int) -> bool:
    return _has_health(run, step) or _is_due(step, run.settings.train.log_every_steps)


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
