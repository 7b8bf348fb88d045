"""Evaluation shared by ranks: time of the same tasks on several ranks of this machine against one.

Tasks as the training loop runs them, on drawn scenes with a model of random weights; one thread a rank. One and
several ranks are taken in turn, in one run. ``processor``: time that the busiest rank spends on its core, which says
how the work is divided also where others use the machine; ``wall``: what a clock shows.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.estimate import SIZES, Case, config_of, run_tool
from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.base.distributed import join_process_group
from pipeline.base.ranks import RankInfo
from pipeline.data.tokenizer import load_tokenizer
from pipeline.evaluation.models.fgclip2 import FGCLIP2Evaluation
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.run import evaluate_several
from pipeline.model import FGCLIP2

TASKS = ("fgovd", "retrieval")


def main(argv: list[str] | None = None) -> int:
    """The command; 0."""
    parser = benchmark_parser("benchmarks.evaluation_ranks", __doc__ or "")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--patches", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="evaluation-") as name:
        folder = Path(name)
        run_tool("scenes", "--out", folder / "scenes", "--train-images", "60", "--test-images", arguments.images)
        run_tool(
            "tokenizer", "--shards", folder / "scenes/train", "--out", folder / "tokenizer", "--vocab-size", "400"
        )  # fmt: skip
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        words = (arguments.ranks, folder, arguments.size, arguments.patches, arguments.repeats, port)
        mp.start_processes(_measure, words, nprocs=arguments.ranks, start_method="spawn")
        found = json.loads((folder / "found.json").read_text())
    several = f"{arguments.ranks}_ranks"
    rows = [Row(f"evaluation_{clock}_{several}", found[clock][1], "s", found[clock][0]) for clock in found]
    report(rows, arguments.json)
    return 0


def _measure(rank: int, size: int, folder: Path, model: str, patches: int, repeats: int, port: int) -> None:
    import os

    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    info = RankInfo(rank, size, rank, size)
    join_process_group(info, 1800)
    tokenizer = load_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    config = config_of(Case(model))
    evaluated = FGCLIP2Evaluation(FGCLIP2.from_scratch(config).eval(), tokenizer, patch_budgets=[patches])
    alone, together = Ranks(), Ranks(info, dist.group.WORLD)
    seconds: dict[str, dict[str, list[float]]] = {
        clock: {"alone": [], "together": []} for clock in ("processor", "wall")
    }
    for repeat in range(repeats + 1):  # the first does not count
        for name, ranks in (("alone", alone), ("together", together)):
            dist.barrier()
            wall, processor = time.perf_counter(), time.process_time()
            if name == "together" or info.is_main:
                evaluate_several(evaluated, TASKS, folder / "scenes" / "test", ranks)
            spent = time.process_time() - processor
            dist.barrier()
            if repeat:
                seconds["processor"][name].append(spent)
                seconds["wall"][name].append(time.perf_counter() - wall)
    medians = {c: [statistics.median(times[n]) for n in ("alone", "together")] for c, times in seconds.items()}
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, medians)
    if info.is_main:
        found = {clock: [max(one[clock][n] for one in everyone) for n in range(2)] for clock in medians}
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
