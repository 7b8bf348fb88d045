"""How much of a machine's matrix rate a training step uses, and where the rest of its time goes.

The limit: the step's own products, each shape measured alone in the same run, and attention's operations at the mean
rate of those. A step that did nothing else would take that long; the share is that time divided by the step's.
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.reporting import Row, benchmark_parser, report, write_rows
from benchmarks.step_counts import Shape, count_calls, flops_of_products, products_of
from benchmarks.step_material import Case, Step, make_step
from pipeline.estimate.use import this_device

# Operators and kernels of torch's profiler by what they are; what is in none of these is pointwise or moves memory.
KINDS = {
    "attention": (
        "scaled_dot_product",
        "flash_attention",
        "flash_fwd",
        "flash_bwd",
        "pytorch_flash",
        "fmha",
        "efficient_attention",
        "cudnn_attention",
        "sdpa",
    ),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "gemm", "cutlass", "cublas", "nvjet"),
    "optimizer": ("adam", "_foreach", "multi_tensor"),
}


def main(argv: list[str] | None = None) -> int:
    """The command; 0, or 2 for a wrong argument."""
    arguments = _parser().parse_args(argv)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: --device is cuda, and torch sees no CUDA device; leave it out or give cpu", file=sys.stderr)
        return 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    for stage in arguments.stage:
        for patches in arguments.patches:
            images = arguments.images or max(1, 8192 // patches)
            for weights in arguments.weights:
                types = (arguments.precision, weights)
                case = Case(stage, patches, images, arguments.preset, *types, recomputed=arguments.recompute)
                rows += measure_what_fits(case, device, arguments)
                write_rows(rows, arguments.json)
    report(rows, arguments.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(
        "benchmarks.step",
        __doc__.splitlines()[0],
        "  python -m benchmarks.step --stage 2 --patches 1024 --images 8     # the size of the public comparison\n"
        "  python -m benchmarks.step --preset base --images 384 --device cuda --compile --profile trace.json",
    )
    parser.add_argument("--stage", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--patches", type=int, nargs="+", default=[256, 1024], help="an image (default: 256 1024)")
    parser.add_argument("--images", type=int, help="a batch (default: 8192 divided by the patches)")
    parser.add_argument(
        "--preset", default="small", help="tiny, base, large, so400m, or small: width 384, 6 + 6 layers"
    )
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--weights", nargs="+", choices=("fp32", "bf16"), default=["fp32"],
                        help="fp32: autocast; bf16: with a float32 master; both: one after the other")  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--recompute", action="store_true", help="recompute every layer in the backward")
    parser.add_argument("--compile", action="store_true", help="compile the layers, as model.compile does")
    parser.add_argument("--threads", type=int, help="on CPUs (default: torch's own)")
    parser.add_argument("--repeats", type=int, default=5, help="steps that are measured (default: 5)")
    parser.add_argument("--clock", choices=("wall", "cores"), default="wall",
                        help="cores: processor seconds of this process; the machine may be shared")  # fmt: skip
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a trace for chrome://tracing")
    return parser


def measure_what_fits(case: Case, device: torch.device, arguments: argparse.Namespace) -> list[Row]:
    """The rows of a case, or of one with half as many images where they do not fit into the device's memory."""
    try:
        return measure_case(case, device, arguments)
    except torch.OutOfMemoryError:
        if case.images == 1:
            raise
    smaller = replace(case, images=case.images // 2)
    print(f"{case.name} does not fit; taking {smaller.images} images", file=sys.stderr, flush=True)
    gc.collect()  # the step that did not fit
    torch.cuda.empty_cache()
    return measure_what_fits(smaller, device, arguments)


def measure_case(case: Case, device: torch.device, arguments: argparse.Namespace) -> list[Row]:
    """The rows of one case."""
    print(f"measuring {case.name} on {device.type}", file=sys.stderr, flush=True)
    products, attention_flops = products_of(case)
    step = make_step(case, device)
    if arguments.compile:
        from pipeline.training.compilation import compile_layers

        print(compile_layers(step.model, device, zero_stage=0), file=sys.stderr, flush=True)
    clock = time.process_time if arguments.clock == "cores" and device.type == "cpu" else time.perf_counter
    for _ in range(2):
        step.run()
    shapes = _Shapes(products, case.precision, device)
    step_seconds, product_seconds = [], []
    for _ in range(arguments.repeats):  # in turn, so that both meet the same machine
        step_seconds.append(_seconds(step.run, clock, device))
        product_seconds.append(shapes.seconds(clock))
    seconds, matrix_seconds = statistics.median(step_seconds), statistics.median(product_seconds)
    plain_flops = flops_of_products(products)
    rate = plain_flops / matrix_seconds
    flops = plain_flops + attention_flops
    name = case.name
    rows = [
        Row(f"{name}: images", case.images / seconds, "1/s"),
        Row(f"{name}: step", seconds, "s"),
        Row(f"{name}: model FLOPs a step", flops / 1e12, "TFLOP"),
        Row(f"{name}: matrix rate with the step's shapes", rate / 1e12, "TFLOP/s"),
        Row(f"{name}: share of the matrix limit", flops / rate / seconds, "of 1"),
    ]
    del shapes  # no part of a step's memory
    known = this_device(device) if device.type == "cuda" else None
    if known is not None:
        peak = known.flops_per_second(case.precision)
        rows.append(Row(f"{name}: model FLOPs used, of {known.name}'s {peak / 1e12:g} TFLOP/s", flops / seconds / peak,
                        "of 1"))  # fmt: skip
    rows += [Row(f"{name}: time in {kind}", share, "of 1") for kind, share in _where(step, device, arguments).items()]
    return rows + _facts(step, name, device)


class _Shapes:
    """Operands for every product of a step."""

    def __init__(self, products: Counter[Shape], precision: str, device: torch.device) -> None:
        self.products, self.device = products, device
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        largest = max(max(r * i, i * c) for r, i, c in products)
        self.pool = torch.randn(largest, device=device, dtype=dtype)

    def seconds(self, clock: Callable[[], float]) -> float:
        """How long all of the products take, one after another."""
        total = 0.0
        for (rows, inner, columns), times in self.products.items():
            first = self.pool[: rows * inner].view(rows, inner)
            second = self.pool[: inner * columns].view(columns, inner).T
            repeats = min(times, 3)
            work = lambda a=first, b=second, n=repeats: [torch.mm(a, b) for _ in range(n)]  # noqa: E731
            torch.mm(first, second)
            total += _seconds(work, clock, self.device) / repeats * times
        return total


def _seconds(work: Callable[[], object], clock: Callable[[], float], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = clock() - start
    return seconds / torch.get_num_threads() if clock is time.process_time else seconds


def _where(step: Step, device: torch.device, arguments: argparse.Namespace) -> dict[str, float]:
    """Shares of a profiled step by kind of work; ``host``: the device had nothing to do."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        whole = 1e6 * _seconds(step.run, time.perf_counter, device)
    if arguments.profile:
        case = step.case
        file = arguments.profile.with_stem(f"{arguments.profile.stem}-stage{case.stage}-{case.patches}")
        profiler.export_chrome_trace(str(file))
    found = dict.fromkeys((*KINDS, "pointwise and copies"), 0.0)
    for event in profiler.key_averages():
        if device.type == "cuda":
            own = event.self_device_time_total if event.device_type.name == "CUDA" else 0.0
        else:
            own = event.self_cpu_time_total
        name = event.key.lower()
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), None)
        found[kind or "pointwise and copies"] += own
    shares = {kind: microseconds / whole for kind, microseconds in found.items()}
    return shares | {"host": max(0.0, 1 - sum(shares.values()))}


def _facts(step: Step, name: str, device: torch.device) -> list[Row]:
    """Reads, bytes, memory and padding."""
    batch, images = step.host_batch, step.case.images
    on_device = batch.to(step.device)
    calls = count_calls(lambda: step.forward(on_device).backward())
    sent = sum(tensor.numel() * tensor.element_size() for tensor in batch.every_tensor())
    rows = [
        Row(f"{name}: host reads in forward, losses and backward", calls.reads.total(), "reads"),
        Row(f"{name}: operators that compute, forward to backward", calls.kernels, "calls"),
        Row(f"{name}: matrix products among them", calls.products, "calls"),
        Row(f"{name}: casts and copies among them", calls.copies, "calls"),
        Row(
            f"{name}: bytes to the device",
            sent / images / 1e3,
            "kB/image",
        ),
        Row(f"{name}: kept for the backward", _kept_bytes(step) / 1e9, "GB"),
    ]
    if calls.reads:
        print(f"reads: {dict(calls.reads)}", file=sys.stderr)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step.run()
        rows.append(Row(f"{name}: peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB"))
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rows.append(Row(f"{name}: largest resident memory so far", peak / 1e9, "GB"))
    real = int(batch.pixel_attention_mask.sum())
    rows.append(Row(f"{name}: padding among the patches", 1 - real / batch.pixel_attention_mask.numel(), "of 1"))
    if batch.facts is not None and len(batch.region_ids):
        padding = 1 - batch.facts.num_region_texts / len(batch.region_ids)
        rows.append(Row(f"{name}: padding among the region texts", padding, "of 1"))
    return rows


def _kept_bytes(step: Step) -> int:
    """What the forward keeps for the backward, weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in step.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step.forward(step.host_batch.to(step.device))
    return sum(storage.nbytes() for storage in kept.values())


if __name__ == "__main__":
    sys.exit(main())
