"""One optimizer step: read micro-batches, forward, losses, backward, update.

Every collective runs on every rank at every step, and every rank makes the same number of forward and backward calls.
Before any backward of the losses at hand, one all-reduce carries three flags: a loss that is not finite, a stop
request, a due checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.model import Embeddings
from pipeline.training.bundle import write_rank_bundle
from pipeline.training.cached import SliceLosses, backward_of_slice, every_scale, losses_of_slice
from pipeline.training.failure import NonFiniteStep, bundle_folder
from pipeline.training.flops import step_flops
from pipeline.training.health import embedding_health, gradient_norms
from pipeline.training.losses import LossOutput
from pipeline.training.optimizer import learning_rate, set_learning_rates
from pipeline.training.run import Run, StepResult


def run_step(run: Run, wants_stop: bool, wants_save: bool, *, with_health: bool, with_norms: bool) -> StepResult:
    """One optimizer step; advances the state.

    Args:
        wants_stop, wants_save: of this rank; the result's are those of any rank.
        with_health: look at logits and gradients, too (costs a little). with_norms: at the embeddings' norms.

    Raises:
        NonFiniteStep: on every rank, before the update.
    """
    state = run.state
    rates = set_learning_rates(run.engine.optimizer, learning_rate(state.step, run.total_steps, run.settings.optimizer))
    first = run.loader.upcoming()
    separate = run.settings.train.accumulation == "separate" and first.parts > 1
    step = _Step(run, first.parts, wants_stop, wants_save, with_health)
    computed = step.separate() if separate else step.cached()
    result = step.result
    if with_health:
        result.health = {**computed.output.health, **step.health, **gradient_norms(run.engine)}
    if with_health or with_norms:
        result.health.update(embedding_health(computed.embeddings))
    run.heartbeat.beat(state.step, "update")
    run.engine.step()
    _count_skips(run, result)
    run.losses.state.advance(state.step + 1)
    state.step += 1
    state.samples_seen += first.size
    state.flops += result.flops * run.rank_info.world_size  # the ranks' slices differ by one image at most
    result.health.update({f"learning_rate/{name}": rate for name, rate in rates.items()})
    return result


class _Step:
    """The micro-batches of one step, through the engine."""

    def __init__(self, run: Run, parts: int, wants_stop: bool, wants_save: bool, with_health: bool) -> None:
        self.run, self.parts, self.with_health = run, parts, with_health
        self.wants_stop, self.wants_save = wants_stop, wants_save
        self.result = StepResult([])
        self.health: dict[str, float] = {}

    def cached(self) -> SliceLosses:
        """The losses of the whole global batch, once; then its gradients."""
        computed = losses_of_slice(
            self.forward, self.read(self.parts), self.parts, self.losses, with_health=self.with_health
        )
        self.take(computed)
        difference = backward_of_slice(computed, self.forward, self.backward)
        if self.with_health and self.parts > 1:
            self.health["cached/difference"] = float(difference)
        return computed

    def separate(self) -> SliceLosses:
        """Each micro-batch is a batch of its own; losses and gradients are the mean over them."""
        share = 1 / self.parts
        for part in range(self.parts):

            def forward(batch: Batch, number: int, part: int = part) -> Embeddings:
                return self.forward(batch, part)

            computed = losses_of_slice(forward, self.read(1), 1, self.losses, with_health=self.with_health)
            self.take(computed, share)
            total = share * computed.output.total + every_scale(computed.embeddings)
            self.backward(total, part + 1 == self.parts)
        return computed

    def read(self, count: int) -> Iterator[Batch]:
        """The next micro-batches of the loader."""
        for _ in range(count):
            self.run.heartbeat.beat(self.run.state.step, "data")
            started = time.monotonic()
            batch = next(self.run.loader)
            self.result.wait_seconds += time.monotonic() - started
            self.run.speed.count(batch)
            self.result.flops += step_flops(self.run.engine.module.config, batch, self.run.settings.trains_regions)
            yield batch

    def forward(self, batch: Batch, number: int) -> Embeddings:
        """Embeddings of micro-batch ``number``, which draws the same random numbers in both passes."""
        run = self.run
        run.heartbeat.beat(run.state.step, "forward")
        # Seeds are a function of step, rank and micro-batch, so no generator's state has to survive a resume.
        seed = (run.settings.train.seed * 1_000_003 + run.state.step) * 4096 + run.rank_info.rank
        torch.manual_seed((seed + number * 2**48) % 2**63)
        return run.engine(batch.to(run.device), regions=run.settings.trains_regions)

    def losses(self, embeddings: Embeddings, batch: Batch, *, with_health: bool) -> LossOutput:
        """The losses of all micro-batches that were embedded."""
        self.run.heartbeat.beat(self.run.state.step, "losses")
        return self.run.losses(embeddings, batch, with_health=with_health)

    def backward(self, total: Tensor, is_last: bool) -> None:
        """Gradients are averaged over ranks, and the engine knows which backward of the step is the last."""
        self.run.heartbeat.beat(self.run.state.step, "backward")
        self.run.engine.set_gradient_accumulation_boundary(is_last)
        self.run.engine.backward(total)

    def take(self, computed: SliceLosses, share: float = 1.0) -> None:
        """Record losses and tell the ranks' flags to each other.

        Raises:
            NonFiniteStep: on every rank, if a loss is not finite on any.
        """
        result, output = self.result, computed.output
        result.batches = computed.batches
        result.add(output, share)
        is_bad = not bool(output.total.detach().isfinite())
        bad, result.stop, result.save = _any_rank([is_bad, self.wants_stop, self.wants_save], self.run.device)
        if bad:
            result.health = dict(output.health)
            _fail(self.run, result, "a loss is not finite")


def _count_skips(run: Run, result: StepResult) -> None:
    """Without a loss scale DeepSpeed leaves a step out for one reason only: the gradient's norm is not finite."""
    if run.engine.was_step_applied():
        run.state.skipped_in_a_row = 0
        return
    run.state.skipped_in_a_row += 1
    run.state.skipped_in_all += 1
    if run.settings.train.precision == "fp32" or (
        run.state.skipped_in_a_row >= run.settings.train.max_skipped_steps_in_a_row
    ):
        _fail(run, result, f"the gradient is not finite, {run.state.skipped_in_a_row} step(s) in a row")


def _fail(run: Run, result: StepResult, reason: str) -> None:
    """Leave a bundle on every rank, then raise on every rank."""
    folder = bundle_folder(run.settings.train.run_folder, run.state.step)
    circumstances = {
        "reason": reason,
        "step": run.state.step,
        "last_metrics": run.last_metrics,
        "health": result.health,
    }
    write_rank_bundle(folder, run.rank_info, result.batches, {"total": result.total, **result.parts}, circumstances)
    run.saver.save_failed_step(run, folder / "checkpoint")
    raise NonFiniteStep(
        f"step {run.state.step}, rank {run.rank_info.rank}: {reason}; nothing was updated. "
        f"Replay: python -m pipeline.training.failure {folder}"
    )


def _any_rank(flags: list[bool], device: torch.device) -> list[bool]:
    """Each flag, true if it is true on any rank; collective."""
    values: Tensor = torch.tensor([float(flag) for flag in flags], device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return [bool(value) for value in values.tolist()]
