"""L_global with texts passed round a ring and with texts gathered, on several processes of this machine (gloo, CPU)."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.objectives.collectives import Rows
from pipeline.objectives.global_sigmoid import global_sigmoid_loss

WIDTH = 768


def main(argv: list[str] | None = None) -> int:
    """The command; 0."""
    parser = benchmark_parser("benchmarks.exchange", __doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 512], help="pairs a rank (default: 64 512)")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args(argv)
    rows = []
    for ranks in arguments.ranks:
        with tempfile.TemporaryDirectory() as folder:
            words = (ranks, folder, arguments.rows, arguments.repeats)
            mp.start_processes(_measure, words, nprocs=ranks, start_method="fork")
            found = torch.load(Path(folder) / "seconds.pt", weights_only=True)
        for count, (ring, gather) in found.items():
            rows.append(Row(f"{ranks} ranks, {count} pairs each: gather", gather, "s", ring))
    report(rows, arguments.json)
    return 0


def _measure(rank: int, ranks: int, folder: str, counts: list[int], repeats: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    found = {}
    for count in counts:
        seconds: dict[str, list[float]] = {"ring": [], "gather": []}
        image, text = (torch.nn.functional.normalize(torch.randn(count, WIDTH), dim=1) for _ in range(2))
        scale, bias, rows = torch.tensor(10.0), torch.tensor(-10.0), Rows.known([count] * ranks)
        for repeat in range(repeats + 1):  # in turn, so that both meet the same machine; the first does not count
            for exchange, times in seconds.items():
                dist.barrier()
                begun = time.perf_counter()
                global_sigmoid_loss(image.requires_grad_(), text, scale, bias, exchange=exchange, rows=rows)
                dist.barrier()
                if repeat:
                    times.append(time.perf_counter() - begun)
        found[count] = tuple(statistics.median(times) for times in seconds.values())
    if rank == 0:
        torch.save(found, Path(folder) / "seconds.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
