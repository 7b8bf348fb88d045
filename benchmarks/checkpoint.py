"""How long a checkpoint keeps training waiting, against the time that it took when training waited for all of it.

Ranks under DeepSpeed on this machine's CPU and disk. The baseline is the way of revision 19454ef, kept here for this
comparison: every rank gathers every tensor, keeps those that it writes, writes, flushes and reads them back while
training waits. Both ways are taken in turn, in one run, on one disk; the median counts.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.estimate import SIZES, Case, config_of, make_material, settings_of
from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.base.host_memory import peak_resident, resident_and_reset

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.base.ranks import RankInfo
    from pipeline.training.run import Engine


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser("benchmarks.checkpoint", __doc__ or "", "  python -m benchmarks.checkpoint --size base\n")
    parser.add_argument("--size", choices=list(SIZES), default="medium")
    parser.add_argument("--zero", type=int, nargs="+", choices=(1, 2, 3), default=[2, 3])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5, help="the median counts")
    parser.add_argument("--folder", type=Path, help="on the disk that is measured (default: the temporary one)")
    arguments = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=arguments.folder))
    rows: list[Row] = []
    try:
        make_material(folder)
        for zero in arguments.zero:
            for ranks in arguments.ranks:
                found = start(Case(arguments.size, 1, zero, ranks), folder, arguments.repeats)
                name = f"{arguments.size}_zero{zero}_ranks{ranks}"
                rows += [
                    Row(f"wait_{name}", found["wait"], "s", found["before"]),
                    Row(f"written_behind_{name}", found["write"], "s", found["before"]),
                    Row(f"host_memory_{name}", found["memory"] / 1e6, "MB", found["share"] / 1e6),
                ]
                print(*rows[-3:], sep="\n", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder)
    report(rows, arguments.json)
    return 0


def start(case: Case, folder: Path, repeats: int) -> dict[str, float]:
    """Medians of the slowest rank; ``share``: bytes that a rank writes, ``memory``: what its copy adds."""
    import torch.multiprocessing as mp

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.start_processes(measure, (case, folder, repeats, port), nprocs=case.ranks, start_method="spawn")
    return json.loads((folder / "found.json").read_text())


def measure(rank: int, case: Case, folder: Path, repeats: int, port: int) -> None:
    """One rank; the main one writes ``found.json``."""
    import os
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
    from pipeline.training.state import TrainState
    from pipeline.tuning.parts import choose_trained

    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    rank_info = RankInfo(rank, case.ranks, rank, case.ranks)
    device = join_process_group(rank_info, 600)
    settings = settings_of(case, folder)
    torch.manual_seed(0)
    model = FGCLIP2.from_scratch(config_of(case))
    choose_trained(model, settings.tune, with_regions=False)
    engine = build_engine(model.train(), settings, rank_info, device)
    prepare_moments(engine)
    objective = StageLosses(settings).state.state_dict()
    times: dict[str, list[float]] = {"before": [], "wait": [], "write": [], "memory": []}
    kept: dict[str, torch.Tensor] = {}
    for step in range(1, repeats + 1):
        target = folder / CHECKPOINTS / f"step-{step:08d}"
        dist.barrier()
        began = time.perf_counter()
        save_while_training_waits(engine, rank_info, folder / "before")
        times["before"].append(time.perf_counter() - began)
        dist.barrier()
        before = resident_and_reset()
        began = time.perf_counter()
        snapshot = take_snapshot(engine, TrainState(step=step), objective, rank_info, reuse=kept)
        times["wait"].append(time.perf_counter() - began)
        write_snapshot(snapshot, target, rank_info)
        times["write"].append(time.perf_counter() - began)
        times["memory"].append(peak_resident() - before)
        kept = snapshot.tensors
        dist.barrier()
        if rank_info.is_main:
            shutil.rmtree(target)
            shutil.rmtree(folder / "before")
    found = {name: statistics.median(values) for name, values in times.items()}
    found["memory"] = max(times["memory"])  # the first copy makes it, the others use it again
    found["share"] = float(sum(tensor.numel() * tensor.element_size() for tensor in kept.values()))
    everyone: list[Any] = [None] * case.ranks
    dist.all_gather_object(everyone, found)
    if rank_info.is_main:
        highest = {name: max(one[name] for one in everyone) for name in found}
        (folder / "found.json").write_text(json.dumps(highest))
    dist.destroy_process_group()


def save_while_training_waits(engine: Engine, rank_info: RankInfo, folder: Path) -> None:
    """A checkpoint as revision 19454ef wrote it, without its record; collective."""
    import os

    import torch.distributed as dist
    from safetensors import safe_open
    from safetensors.torch import save_file

    from pipeline.checkpoint.folder import crc32

    folder.mkdir(exist_ok=True)
    path = folder / f"{rank_info.rank}.safetensors"
    mine = {
        name: tensor
        for number, (name, tensor) in enumerate(gathered_tensors(engine))
        if number % rank_info.world_size == rank_info.rank
    }
    save_file(mine, path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    with safe_open(path, framework="pt") as file:
        for name, tensor in mine.items():
            if not tensor.equal(file.get_tensor(name)):
                raise OSError(f"{path}: {name} reads back otherwise than it was written")
    crc32(path)
    dist.barrier()


def gathered_tensors(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and its moments, on every rank; collective."""
    import deepspeed
    from deepspeed.utils import safe_get_full_optimizer_state

    from pipeline.training.full_state import MOMENTS

    for name, parameter in engine.module.named_parameters():
        sharded = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter]) if sharded else nullcontext():
            yield f"weight/{name}", parameter.detach().float().cpu().clone().contiguous()
        for moment in MOMENTS if parameter.requires_grad else ():
            yield f"{moment}/{name}", safe_get_full_optimizer_state(parameter, moment).detach().cpu().contiguous()


if __name__ == "__main__":
    sys.exit(main())
