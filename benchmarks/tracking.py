"""What tracking costs a training: blocks of steps with it and without it, by turns, in one process.

"On" is the whole of it: metrics.jsonl, and MLflow by its thread (sqlite, or --uri). "Off" is nothing at all. The first
seconds of each block do not count, so that what the thread still had to send belongs to neither. Blocks come as on,
off, off, on, …, so that a machine that slows down slows both. Pairs are noisy; the seconds that the training's own
thread spends in calls of the tracker, and the processor time of the tracker's thread, are not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.base.commands import run_command

ORDER = (True, False, False, True)  # whether tracking is on in the blocks of a round
EXAMPLE = "  python -m benchmarks.tracking --log-every 1 --pairs 6      # ten times as many metrics as by default\n"


@dataclass
class Block:
    """Steps of one kind, without the first seconds."""

    is_on: bool
    seconds: float = 0.0
    steps: int = 0
    in_tracker: float = 0.0  # seconds of the training's thread
    in_thread: float = 0.0  # processor seconds of the tracker's thread

    @property
    def seconds_a_step(self) -> float:
        return self.seconds / self.steps


@dataclass
class ByTurns:
    """A tracker that hands metrics on in some blocks only, and measures; all other calls are those of the real one."""

    real: Any  # a RunTracker
    block_seconds: float
    settling_seconds: float
    blocks: list[Block] = field(default_factory=list)
    _begun: float = 0.0  # of the block
    _before: tuple[int, float, float, float] | None = None  # step, time, seconds in the tracker, of its thread
    _in_tracker: float = 0.0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The end of an interval between two logged steps, and the beginning of the next."""
        now = time.perf_counter()
        if not self.blocks or now - self._begun > self.block_seconds:
            self.blocks.append(Block(ORDER[len(self.blocks) % len(ORDER)]))
            self._begun, self._before = now, None
        block = self.blocks[-1]
        of_thread = thread_seconds(self.real)
        if self._before is not None:
            block.steps += step - self._before[0]
            block.seconds += now - self._before[1]
            block.in_tracker += self._in_tracker - self._before[2]
            block.in_thread += of_thread - self._before[3]
        if now - self._begun > self.settling_seconds:
            self._before = (step, now, self._in_tracker, of_thread)
        if block.is_on:
            self.real.log(step, values)
            self._in_tracker += time.perf_counter() - now

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def thread_seconds(tracker: Any) -> float:
    """Processor seconds that a tracker's thread has used; Linux counts them in nanoseconds."""
    try:
        schedule = Path(f"/proc/self/task/{tracker._thread.native_id}/schedstat").read_text(encoding="ascii")
    except OSError:  # it has ended
        return 0.0
    return int(schedule.split()[0]) / 1e9


def measured(blocks: list[Block]) -> Iterator[Row]:
    """The table; a block that was cut off by the end of the run is left out."""
    whole = [block for block in blocks if block.steps]
    rounds = [whole[start : start + len(ORDER)] for start in range(0, len(whole), len(ORDER))]
    pairs = [pair for one in rounds if len(one) == len(ORDER) for pair in ((one[0], one[1]), (one[3], one[2]))]
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} pairs of blocks; give more --pairs, or shorter --block-seconds")
    ratios = [off.seconds_a_step / on.seconds_a_step for on, off in pairs]
    on_blocks = [on for on, _ in pairs]
    steps, seconds = sum(b.steps for b in on_blocks), sum(b.seconds for b in on_blocks)
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    yield Row("steps_with_tracking", steps, "")
    off_seconds = statistics.median(off.seconds_a_step for _, off in pairs)
    yield Row("step_with_tracking", 1000 * statistics.median(b.seconds_a_step for b in on_blocks), "ms",
              1000 * off_seconds)  # fmt: skip
    yield Row("speed_on_by_off_median", middle, f"of {len(pairs)} pairs")
    yield Row("speed_on_by_off_quartiles_apart", high - low, "")
    yield Row("in_tracker_calls", 1e6 * sum(b.in_tracker for b in on_blocks) / steps, "us a step")
    yield Row("in_tracker_calls_share", sum(b.in_tracker for b in on_blocks) / seconds, "of the step")
    yield Row("tracker_thread_share", sum(b.in_thread for b in on_blocks) / seconds, "of one core")


def train(arguments: argparse.Namespace) -> list[Block]:
    """A run of stage 1 on drawn scenes until there are enough blocks."""
    import torch  # here and below, because torch takes seconds to import

    from pipeline.base.distributed import join_process_group
    from pipeline.base.ranks import read_rank_info
    from pipeline.config import Stage1Settings, load_settings
    from pipeline.training import assemble, loop
    from tests.end_to_end.runs import Material

    material = Material(arguments.folder.absolute() / "material")
    material.make()
    made: list[ByTurns] = []
    wanted = 2 * arguments.pairs

    def start(start_tracking: Callable[..., Any], *words: Any) -> ByTurns:
        made.append(ByTurns(start_tracking(*words), arguments.block_seconds, arguments.settling_seconds))
        return made[-1]

    def step(run_step: Callable[..., Any], run: Any, *words: Any, **named: Any) -> Any:
        run.ended_early = made[0].blocks != [] and len(made[0].blocks) > wanted
        return run_step(run, *words, **named)

    chosen = [
        "data.patch_budgets=[48]",  # steps of one length: those of several levels differ by more than tracking costs
        f"train.log_every_steps={arguments.log_every}", f"train.global_batch_size={arguments.batch}",
        "train.max_steps=1000000", "train.checkpoint_every_steps=1000000", "train.resume=never",
        "data.num_workers=0", *([f"tracking.uri={arguments.uri}"] if arguments.uri else []),
    ]  # fmt: skip
    settings = load_settings(Stage1Settings, None, material.settings(arguments.folder / "run", *chosen))
    info = read_rank_info()
    join_process_group(info, timeout_seconds=600)
    with (
        mock.patch.object(assemble, "start_tracking", partial(start, assemble.start_tracking)),
        mock.patch.object(loop, "run_step", partial(step, loop.run_step)),
    ):
        assemble.run_in_group(settings, info, torch.device("cpu"))
    return made[0].blocks[:wanted]


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser("benchmarks.tracking", __doc__ or "", EXAMPLE)
    add = parser.add_argument
    add(
        "--folder", type=Path, default=Path("runs/benchmark-tracking"), help="scenes and the run (default: %(default)s)"
    )
    add("--pairs", type=int, default=6, help="an even number of pairs of blocks (default: 6)")
    add("--block-seconds", type=float, default=15.0, help="length of a block (default: 15)")
    add("--settling-seconds", type=float, default=3.0, help="of a block's beginning that do not count (default: 3)")
    add("--log-every", type=int, default=10, metavar="STEPS", help="train.log_every_steps (default: 10, as of a run)")
    add("--batch", type=int, default=32, help="images a step (default: 32)")
    add("--uri", help="an MLflow server (default: sqlite beside the run)")
    arguments = parser.parse_args(argv)
    if arguments.pairs < 2 or arguments.pairs % 2:
        parser.error(f"--pairs is {arguments.pairs}; it must be an even number, 2 or more")
    return run_command(lambda: _measure(arguments), (ValueError, OSError))


def _measure(arguments: argparse.Namespace) -> int:
    report(list(measured(train(arguments))), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
