"""How long a checkpoint keeps training waiting, against the time that it takes to be written, and its host memory.

One rank under DeepSpeed on this machine's CPU and disk. The baseline of the wait is the whole of a checkpoint: the
copy, and the writing, flushing, reading back and renaming, which training does not wait for.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.estimate import SIZES, Case, config_of, make_material, peak_resident, resident_and_reset, settings_of
from benchmarks.reporting import Row, benchmark_parser, report


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser("benchmarks.checkpoint", __doc__ or "", "  python -m benchmarks.checkpoint --size base\n")
    parser.add_argument("--size", choices=list(SIZES), default="medium")
    parser.add_argument("--zero", type=int, choices=(1, 2, 3), default=2)
    parser.add_argument("--repeats", type=int, default=5, help="the median counts")
    parser.add_argument("--folder", type=Path, help="on the disk that is measured (default: the temporary one)")
    arguments = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=arguments.folder))
    try:
        rows = measure(Case(arguments.size, 1, arguments.zero), make_material(folder), arguments.repeats)
    finally:
        shutil.rmtree(folder)
    report(rows, arguments.json)
    return 0


def measure(case: Case, folder: Path, repeats: int) -> list[Row]:
    """Seconds and bytes of a checkpoint."""
    import statistics

    import torch
    import torch.distributed as dist

    from pipeline.base.distributed import join_process_group
    from pipeline.base.ranks import RankInfo
    from pipeline.base.run_folder import CHECKPOINTS
    from pipeline.model import FGCLIP2
    from pipeline.training.checkpoint import take_snapshot, write_snapshot
    from pipeline.training.engine import build_engine
    from pipeline.training.full_state import prepare_moments
    from pipeline.training.losses import StageLosses
    from pipeline.training.optimizer import freeze_region_parameters
    from pipeline.training.state import TrainState

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    rank_info = RankInfo()
    device = join_process_group(rank_info, 600)
    settings = settings_of(case, folder)
    model = FGCLIP2.from_scratch(config_of(case))
    freeze_region_parameters(model)
    engine = build_engine(model.train(), settings, rank_info, device)
    prepare_moments(engine)
    objective = StageLosses(settings).state.state_dict()
    waits, writes, peaks = [], [], []
    kept: dict[str, torch.Tensor] = {}
    for step in range(1, repeats + 1):
        before = resident_and_reset()
        began = time.perf_counter()
        snapshot = take_snapshot(engine, TrainState(step=step), objective, rank_info, reuse=kept)
        copied = time.perf_counter()
        target = folder / CHECKPOINTS / f"step-{step:08d}"
        write_snapshot(snapshot, target, rank_info)
        waits.append(copied - began)
        writes.append(time.perf_counter() - began)
        peaks.append(peak_resident() - before)
        size = sum(file.stat().st_size for file in target.iterdir())
        kept = snapshot.tensors
        shutil.rmtree(target)
    dist.destroy_process_group()
    return [
        Row("checkpoint_wait", statistics.median(waits), "s", statistics.median(writes)),
        Row("checkpoint_size", size / 1e6, "MB"),
        Row("checkpoint_host_memory", max(peaks) / 1e6, "MB", size / 1e6),
    ]


if __name__ == "__main__":
    sys.exit(main())
