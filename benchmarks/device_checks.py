"""What only a device can show: its loss curve beside the CPU's, and its memory under ZeRO 1 to 3 with one rank."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist

from benchmarks.reporting import Row, benchmark_parser, report, write_rows
from benchmarks.step_material import Case, make_batch, make_step
from pipeline.base.ranks import RankInfo
from pipeline.config import Stage2Settings
from pipeline.data.batch import Batch
from pipeline.estimate.fitting import memory_of
from pipeline.estimate.inputs import pieces_of, sharding_of
from pipeline.estimate.memory import Work
from pipeline.model import FGCLIP2, FGCLIP2Config, preset_config
from pipeline.training.engine import build_engine
from pipeline.training.full_state import prepare_moments
from pipeline.training.losses import StageLosses
from pipeline.training.memory_count import MemoryCount

VOCABULARY = 4096
NUM_BATCHES = 8  # that a curve goes through again and again, so that the loss falls


def main(argv: list[str] | None = None) -> int:
    """The command; 0, or 2 for a wrong argument."""
    parser = benchmark_parser("benchmarks.device_checks", __doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="compared with the CPU")
    parser.add_argument("--curves", action="store_true", help="loss curves")
    parser.add_argument("--steps", type=int, default=200, help="of a curve (default: 200)")
    parser.add_argument("--zero-memory", action="store_true", help="peak memory under ZeRO 1, 2 and 3, one rank")
    parser.add_argument("--preset", default="base", help="the model of --zero-memory (default: base)")
    parser.add_argument("--images", type=int, default=64, help="of --zero-memory (default: 64)")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("error: --device is cuda, and torch sees no CUDA device; give --device cpu", file=sys.stderr)
        return 2
    device = torch.device(arguments.device)
    rows: list[Row] = []
    if arguments.curves:
        rows += curve_rows(device, arguments.steps)
        write_rows(rows, arguments.json)
    if arguments.zero_memory:
        rows += zero_rows(device, arguments.preset, arguments.images)
    report(rows, arguments.json)
    return 0


def curve_rows(device: torch.device, num_steps: int) -> list[Row]:
    """Both stages in float32 and bf16 on the device, against float32 on the CPU from the same weights and batches."""
    rows: list[Row] = []
    tail = min(20, num_steps)
    for stage in (1, 2):
        curves = {}
        for name, where, types in (
            ("CPU, fp32", torch.device("cpu"), ("fp32", "fp32")),
            (f"{device.type}, fp32", device, ("fp32", "fp32")),
            (f"{device.type}, bf16", device, ("bf16", "fp32")),
            (f"{device.type}, bf16 weights", device, ("bf16", "bf16")),
        ):
            curves[name] = list(_curve(Case(stage, 64, 8, "tiny", *types), where, num_steps))
        reference = curves["CPU, fp32"]
        for name, curve in curves.items():
            rows.append(Row(f"stage {stage}, {name}: mean loss of the last {tail} of {num_steps} steps",
                            sum(curve[-tail:]) / tail, "", sum(reference[-tail:]) / tail))  # fmt: skip
            worst = max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(curve, reference, strict=True))
            rows.append(Row(f"stage {stage}, {name}: largest relative difference from the CPU", worst, "of 1"))
    return rows


def _curve(case: Case, device: torch.device, num_steps: int) -> Iterator[float]:
    step = make_step(case, device, VOCABULARY)
    for group in step.optimizer.param_groups:
        group["lr"] = 3e-4
    batches = [make_batch(case, VOCABULARY, seed) for seed in range(NUM_BATCHES)]
    for number in range(num_steps):
        step.host_batch = batches[number % NUM_BATCHES]
        yield float(step.run())


def zero_rows(device: torch.device, preset: str, images: int) -> list[Row]:
    """Peak memory of two steps of stage 2 at 256 patches under DeepSpeed's engine; baseline: the estimate.

    On CPUs the growth of the process's resident memory, from which the first case also loads code.
    """
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")  # DeepSpeed reads these
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    config = preset_config(preset, VOCABULARY)
    rows: list[Row] = []
    try:
        for weights in ("fp32", "bf16"):
            case = Case(2, 256, images, preset, "bf16", weights)
            for zero in (1, 2, 3):
                gc.collect()  # engines hold themselves in circles
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                settings = _settings(case, zero)
                measured = _peak_of_two_steps(case, settings, config, device)
                estimated = _estimate(case, settings, config, zero, on_cpu=device.type == "cpu")
                if measured is not None:
                    name = f"ZeRO {zero}, {case.name}: peak memory; baseline: the estimate"
                    rows.append(Row(name, measured / 1e9, "GB", estimated / 1e9))
    finally:
        dist.destroy_process_group()
    return rows


def _settings(case: Case, zero: int) -> Stage2Settings:
    train = {
        "global_batch_size": case.images,
        "deepspeed_config": f"launch/zero{zero}.json",
        "precision": case.precision,
        "weights": case.weights,
    }
    return Stage2Settings.model_validate({"train": train, "model": {"preset": case.preset}})


def _peak_of_two_steps(case: Case, settings: Stage2Settings, config: FGCLIP2Config, device: torch.device) -> int | None:
    """Bytes beyond what was there before; None where nothing counts them."""
    batch: Batch = make_batch(case, VOCABULARY)
    torch.manual_seed(0)
    memory = MemoryCount(device)
    engine = build_engine(FGCLIP2.from_scratch(config).train(), settings, RankInfo(), device)
    prepare_moments(engine)
    losses = StageLosses(settings)
    losses.state.to(device)
    for step in (1, 2):
        moved = batch.to(device)
        engine.backward(losses(engine(moved, regions=True), moved).total)
        engine.step()
        losses.state.advance(step)
    return memory.peak()


def _estimate(case: Case, settings: Stage2Settings, config: FGCLIP2Config, zero: int, *, on_cpu: bool) -> float:
    """Bytes that the estimate gives for the same numbers of rows."""
    batch = make_batch(case, VOCABULARY)
    work = Work(
        case.images,
        case.patches,
        batch.short_ids.shape[1],
        batch.long_ids.shape[1],
        regions=len(batch.boxes),
        region_texts=len(batch.region_ids),
        hard_rows=len(batch.hard_region),
        boxed_images=case.images,
    )
    pieces = pieces_of(settings, config, case.patches, products=False)
    return memory_of(settings, pieces, work, sharding_of(settings, config, 1, zero, on_cpu=on_cpu), config).total


if __name__ == "__main__":
    sys.exit(main())
