"""Speed of the pieces: L_global on several processes, region pooling, and the text tower's last layer.

L_global: forward and backward at 2 and 4 processes, global batch 4,096 and 16,384, width 768, against the three public
formulations (sigmoid_formulations.py). Peak memory is the growth of a process's resident memory over its inputs.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import SimpleQueue

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reporting import Row, benchmark_parser, report
from benchmarks.sigmoid_formulations import FORMULATIONS
from pipeline.base.host_memory import peak_resident, resident_and_reset
from pipeline.objectives.global_sigmoid import global_sigmoid_loss

Measured = dict[int, dict[str, tuple[float, ...]]]  # global batch -> way -> seconds, processor seconds, MiB

MEBIBYTE = 2**20
WHAT = ("time", "processor time of all", "peak memory")


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser(
        "benchmarks.objectives", __doc__, "  python -m benchmarks.objectives --only regions text\n"
    )
    parser.add_argument(
        "--only", nargs="+", choices=("global", "regions", "text"), default=["global", "regions", "text"]
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--global-batches", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument(
        "--chunks", type=int, nargs="+", default=[512, 2048], help="chunk sizes whose memory is compared"
    )
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3, help="of batches up to 8,192; the least counts")
    arguments = parser.parse_args(argv)
    rows: list[Row] = []
    if "global" in arguments.only:
        for processes in arguments.processes:
            rows += _global_rows(processes, arguments)
    if "regions" in arguments.only:
        from benchmarks.model_pieces import region_pooling_rows

        rows += region_pooling_rows()
    if "text" in arguments.only:
        from benchmarks.model_pieces import text_tower_rows

        rows += text_tower_rows()
    report(rows, arguments.json)
    return 0


def _global_rows(processes: int, arguments: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="objectives-") as folder:
        results = multiprocessing.get_context("spawn").SimpleQueue()
        multiprocessing.spawn(_measure_global, (processes, folder, arguments, results), nprocs=processes)
        measured: dict[int, dict[str, tuple[float, float, float]]] = results.get()
    rows = []
    for batch, found in measured.items():
        where = f"{processes} processes, {batch:,} pairs"
        best = [min(found[name][number] for name in FORMULATIONS) for number in range(3)]
        for name, numbers in found.items():
            for what, unit, value, least in zip(WHAT, ("s", "s", "MiB"), numbers, best, strict=True):
                rows.append(
                    Row(f"L_global, {where}, {name}: {what}", value, unit, None if name in FORMULATIONS else least)
                )
    return rows


def _measure_global(
    rank: int, processes: int, folder: str, arguments: argparse.Namespace, results: SimpleQueue[Measured]
) -> None:
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    measured: Measured = {}
    for batch in arguments.global_batches:
        ways: dict[str, Callable[..., Tensor]] = dict(FORMULATIONS)
        for chunk in arguments.chunks:
            ways[f"ours, ring, chunk {chunk}"] = partial(_ours, exchange="ring", chunk_size=chunk)
        ways[f"ours, gather, chunk {chunk}"] = partial(_ours, exchange="gather", chunk_size=chunk)
        measured[batch] = {}
        inputs = _inputs(batch // processes, arguments.width, seed=rank)
        values = []
        for name, way in ways.items():
            *numbers, value = _measure(way, inputs, arguments.repeats if batch <= 8192 else 1)
            measured[batch][name] = tuple(numbers)
            values.append(value)
            if rank == 0:  # one line a measurement, since all of them take minutes
                shown = "{:.3f} s, {:.3f} processor seconds, {:.0f} MiB".format(*numbers)
                print(f"{processes} processes, {batch} pairs, {name}: {shown}", file=sys.stderr, flush=True)
        if max(values) - min(values) > 1e-4 * abs(values[0]):
            raise AssertionError(f"the formulations disagree: {values}")
    if rank == 0:
        results.put(measured)
    dist.barrier()
    dist.destroy_process_group()


def _ours(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, *, exchange: str, chunk_size: int) -> Tensor:
    return global_sigmoid_loss(image, text, scale, bias, exchange=exchange, chunk_size=chunk_size)[0]


def _inputs(count: int, width: int, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    rows = [F.normalize(torch.randn(count, width), dim=-1) for _ in range(2)]
    return [tensor.requires_grad_() for tensor in (*rows, torch.tensor(10.0), torch.tensor(-10.0))]


def _measure(way: Callable[..., Tensor], inputs: list[Tensor], repeats: int) -> tuple[float, float, float, float]:
    """Forward and backward, the least of ``repeats``: seconds; processor seconds of all ranks; MiB of peak memory over
    the inputs on the worst rank; the loss. Processor seconds tell more where others use the machine."""
    seconds = processor_seconds = float("inf")
    peak = 0
    for _ in range(repeats):
        for tensor in inputs:
            tensor.grad = None
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps would hide what is allocated
        dist.barrier()
        before, start, processor_start = resident_and_reset(), time.perf_counter(), time.process_time()
        loss = way(*inputs)
        loss.backward()
        used = torch.tensor([time.process_time() - processor_start, loss.item()])
        dist.all_reduce(used)
        seconds = min(seconds, time.perf_counter() - start)
        processor_seconds = min(processor_seconds, used[0].item())
        peak = max(peak, peak_resident() - before)
    worst = torch.tensor([seconds, peak / MEBIBYTE], dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return worst[0].item(), processor_seconds, worst[1].item(), used[1].item() / dist.get_world_size()


if __name__ == "__main__":
    sys.exit(main())
