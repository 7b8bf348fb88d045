"""One optimizer step: read micro-batches, forward, losses, backward, update.

Every collective runs on every rank at every step, and every rank makes the same number of forward and backward calls.

The host waits for the device at one place, the update: DeepSpeed reads the gradient's norm there, and leaves the update
out on every rank where it is not finite. Everything before runs ahead of the device:

- ranks tell each other their numbers of rows, and with them a stop request or a due checkpoint, on the host;
- whether a loss is not finite on any rank is known on the devices only. There it makes every gradient NaN, so that the
  update is left out by all ranks; the host learns of it because no update was made, and fails then;
- figures stay on the device until they are logged.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.data.facts import facts_of
from pipeline.model import Embeddings
from pipeline.objectives.collectives import gather_numbers
from pipeline.training.bundle import write_rank_bundle
from pipeline.training.cached import SliceLosses, backward_of_slice, every_scale, losses_of_slice
from pipeline.training.failure import NonFiniteStep, bundle_folder
from pipeline.training.health import embedding_health, gradient_norms
from pipeline.training.losses import LossOutput
from pipeline.training.master import refresh_scalars
from pipeline.training.optimizer import learning_rate, set_learning_rates
from pipeline.training.run import Run, StepResult
from pipeline.training.teacher import joined


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
    started = time.monotonic()
    first = run.feed.upcoming()
    separate = run.settings.train.accumulation == "separate" and first.parts > 1
    step = _Step(run, first.parts, wants_stop, wants_save, with_health)
    step.result.wait_seconds = time.monotonic() - started
    computed = step.separate() if separate else step.cached()
    result = step.result
    if with_health:
        result.health = {**computed.output.health, **step.health, **gradient_norms(run.engine)}
    if with_health or with_norms:
        result.health.update(embedding_health(computed.embeddings))
    run.heartbeat.beat(state.step, "update")
    run.engine.step()
    refresh_scalars(run.engine, run.rank_info)
    if run.engine.was_step_applied():
        state.skipped_in_a_row = 0
    else:
        step.explain_skip()
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
        self.taught: list[Embeddings] = []  # by the teacher, of the micro-batches whose losses come next
        self.health: dict[str, float] = {}
        self.taken: list[_Taken] = []

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
            batch = next(self.run.feed)
            self.result.wait_seconds += time.monotonic() - started
            if self.run.teacher is not None:
                self.run.heartbeat.beat(self.run.state.step, "teacher")
                self.taught.append(self.run.teacher(batch))
            self.result.flops += self.run.speed.count(batch)
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
        taught, self.taught = joined(self.taught), []
        return self.run.losses(embeddings, batch, counts=self.counts_of(batch), with_health=with_health, taught=taught)

    def counts_of(self, batch: Batch) -> list[tuple[int, ...]]:
        """Every rank's numbers of rows. With them ranks tell each other whether to stop or to save; collective."""
        own = batch.facts.counts if batch.facts is not None else facts_of(batch).counts
        everyone = gather_numbers((*own, int(self.wants_stop), int(self.wants_save)), self.run.losses.host_group)
        self.result.stop = any(numbers[-2] for numbers in everyone)
        self.result.save = any(numbers[-1] for numbers in everyone)
        return [numbers[:-2] for numbers in everyone]

    def backward(self, total: Tensor, is_last: bool) -> None:
        """Gradients are averaged over ranks, and the engine knows which backward of the step is the last."""
        self.run.heartbeat.beat(self.run.state.step, "backward")
        self.run.engine.set_gradient_accumulation_boundary(is_last)
        held_back = torch.where(self.taken[-1].is_bad > 0, torch.nan, 1.0)  # on the device: NaN spoils every gradient
        self.run.engine.backward(total * held_back)

    def take(self, computed: SliceLosses, share: float = 1.0) -> None:
        """Record losses, and tell the other devices whether they are finite; the host does not wait for that."""
        self.result.batches = computed.batches
        self.result.add(computed.output, share)
        is_bad = (~computed.output.total.detach().isfinite()).float()
        dist.all_reduce(is_bad, op=dist.ReduceOp.MAX)
        self.taken.append(_Taken(is_bad, computed.batches, computed.output))

    def explain_skip(self) -> None:
        """No update was made: for a loss, or for a gradient, that is not finite.

        Raises:
            NonFiniteStep: on every rank; for a loss at once, for gradients when the settings say so.
        """
        run, state, settings = self.run, self.run.state, self.run.settings.train
        for taken in self.taken:
            if taken.is_bad > 0:  # a read; the host has waited for the update already
                self.result.batches, self.result.health = taken.batches, dict(taken.output.health)
                _fail(run, self.result, "a loss is not finite")
        state.skipped_in_a_row += 1
        state.skipped_in_all += 1
        if settings.precision == "fp32" or state.skipped_in_a_row >= settings.max_skipped_steps_in_a_row:
            _fail(run, self.result, f"the gradient is not finite, {state.skipped_in_a_row} step(s) in a row")


@dataclass(frozen=True)
class _Taken:
    """Losses that were computed, until it is known whether they are finite."""

    is_bad: Tensor  # [] above 0 where a loss of any rank is not finite
    batches: list[Batch]
    output: LossOutput


def _fail(run: Run, result: StepResult, reason: str) -> None:
    """Leave a bundle on every rank, then raise on every rank."""
    folder = bundle_folder(run.settings.train.run_folder, run.state.step)
    circumstances = {
        "reason": reason,
        "step": run.state.step,
        "last_metrics": run.last_metrics,
        "health": result.health,
    }
    losses, _ = result.read()
    losses = {"total": losses.pop("loss"), **losses}
    write_rank_bundle(folder, run.rank_info, result.batches, losses, circumstances)
    run.saver.save_failed_step(run, folder / "checkpoint")
    raise NonFiniteStep(
        f"step {run.state.step}, rank {run.rank_info.rank}: {reason}; nothing was updated. "
        f"Replay: python -m pipeline.training.failure {folder}"
    )
