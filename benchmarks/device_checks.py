"""What only a device can show: its loss curve beside the CPU's, and its memory under ZeRO 1 to 3 with one rank."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist

from benchmarks.reporting import Row, benchmark_parser, report
from benchmarks.step_material import Case, make_batch, make_step
from pipeline.base.ranks import RankInfo
from pipeline.config import Stage1Settings, Stage2Settings
from pipeline.model import FGCLIP2, preset_config
from pipeline.training.engine import build_engine
from pipeline.training.losses import StageLosses
from pipeline.tuning.parts import choose_trained

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
    rows: list[Row] = []
    if arguments.curves:
        rows += curve_rows(torch.device(arguments.device), arguments.steps)
    if arguments.zero_memory:
        rows += zero_rows(torch.device(arguments.device), arguments.preset, arguments.images)
    report(rows, arguments.json)
    return 0


def curve_rows(device: torch.device, num_steps: int) -> list[Row]:
    """Both stages in float32 and bf16 on the device, against float32 on the CPU from the same weights and batches."""
    rows = []
    for stage in (1, 2):
        curves = {}
        for name, where, precision in (
            ("CPU, fp32", torch.device("cpu"), "fp32"),
            (f"{device.type}, fp32", device, "fp32"),
            (f"{device.type}, bf16", device, "bf16"),
        ):
            curves[name] = list(_curve(Case(stage, 64, 8, "tiny", precision), where, num_steps))
        reference = curves["CPU, fp32"]
        for name, curve in curves.items():
            tail = sum(curve[-20:]) / 20
            rows.append(Row(f"stage {stage}, {name}: mean loss of the last 20 of {num_steps} steps", tail, "",
                            sum(reference[-20:]) / 20))  # fmt: skip
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
    """Peak memory of two steps of stage 2 at 256 patches under DeepSpeed's engine."""
    rows = []
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    case = Case(2, 256, images, preset, "bf16")
    batch = make_batch(case, VOCABULARY)
    for zero in (1, 2, 3):
        defaults = Stage2Settings()
        train = defaults.train.model_copy(
            update={"global_batch_size": images, "deepspeed_config": f"launch/zero{zero}.json"}
        )
        settings: Stage1Settings = defaults.model_copy(update={"train": train})
        torch.manual_seed(0)
        model = FGCLIP2.from_scratch(preset_config(preset, VOCABULARY)).train()
        if not settings.trains_regions:
            choose_trained(model, settings.tune, with_regions=False)
        engine = build_engine(model, settings, RankInfo(), device)
        losses = StageLosses(settings)
        losses.state.to(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for step in (1, 2):
            moved = batch.to(device)
            engine.backward(losses(engine(moved, regions=True), moved).total)
            engine.step()
            losses.state.advance(step)
        if device.type == "cuda":
            rows.append(Row(f"ZeRO {zero}, {case.name}: peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB"))
        else:
            rows.append(Row(f"ZeRO {zero}, {case.name}: steps done", 2, "steps"))
        del engine, model, losses
    dist.destroy_process_group()
    return rows


if __name__ == "__main__":
    sys.exit(main())
