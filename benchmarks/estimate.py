"""The estimate against what is measured: peak memory of a training step by DeepSpeed, and torch's count of products.

Every case runs two optimizer steps of a real stage on gloo ranks of this machine, on drawn scenes. Measured is the
growth of a rank's resident memory (VmHWM) over what the process holds before the model is made, with malloc told to
give memory back at once; of several ranks the highest. Products are counted on one more step, whose attention runs in
its plain form, because torch counts none of the fused one on CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.base.host_memory import peak_resident, resident_and_reset

if TYPE_CHECKING:  # imported where they are used, so that memory is measured before torch is loaded
    import torch

    from pipeline.base.ranks import RankInfo
    from pipeline.config import Stage1Settings
    from pipeline.data.batch import Batch
    from pipeline.model import FGCLIP2Config

ROOT = Path(__file__).resolve().parents[1]
# name -> width, MLP width, layers of each tower, heads, rows of the token table, images of a micro-batch
SIZES: dict[str, tuple[int, int, int, int, int, int]] = {
    "tiny": (128, 512, 2, 4, 4_000, 24),
    "small": (256, 1024, 4, 4, 16_000, 24),
    "medium": (384, 1536, 6, 6, 24_000, 12),
    "base": (768, 3072, 12, 12, 16_000, 3),
}
SHORT_TOKENS, KEPT_TOKENS = 64, 20
SHARED_CODE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Case:
    """One run. ``size`` is a name in SIZES."""

    size: str = "small"
    stage: int = 1
    zero: int = 2
    ranks: int = 1
    patches: int = 128
    precision: str = "fp32"
    weights: str = "fp32"  # as train.weights
    checkpointed: bool = False

    @property
    def name(self) -> str:
        marks = [f"stage{self.stage}", self.size, f"zero{self.zero}", f"ranks{self.ranks}"]
        marks += [self.precision] * (self.precision != "fp32") + ["bf16-weights"] * (self.weights == "bf16")
        marks += ["recomputed"] * self.checkpointed
        return "_".join(marks)


@dataclass(frozen=True)
class Measured:
    """What a rank found."""

    peak_bytes: int
    flops: float
    images_with_regions: int
    regions: int
    most_regions: int
    region_texts: int
    hard_rows: int
    texts_a_hard_row: int
    moments: dict[str, int] = field(default_factory=dict)


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser(
        "benchmarks.estimate", __doc__, "  python -m benchmarks.estimate --sizes small --zero 2 3 --ranks 1 2\n"
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["small", "medium", "base"])
    parser.add_argument("--stages", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--zero", nargs="+", type=int, choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--weights", choices=("fp32", "bf16"), default="fp32", help="bf16: with --precision bf16")
    parser.add_argument("--recomputed", action="store_true", help="with activation checkpointing")
    parser.add_argument("--one-rank", nargs=2, metavar=("CASE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one_rank:
        measure_here(Case(**json.loads(arguments.one_rank[0])), Path(arguments.one_rank[1]))
        return 0
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="estimate-") as folder:
        material = make_material(Path(folder))
        for size in arguments.sizes:
            for stage in arguments.stages:
                for zero in arguments.zero:
                    for ranks in arguments.ranks:
                        case = Case(
                            size, stage, zero, ranks, 128, arguments.precision, arguments.weights, arguments.recomputed
                        )
                        rows += compare(case, material)
                        print(rows[-2], rows[-1], sep="\n", file=sys.stderr, flush=True)
    report(rows, arguments.json)
    worst = max(abs((row.ratio or 0) - 1) for row in rows if "memory" in row.name)
    print(f"memory: at most {worst:.1%} from the measured peak, {len(rows) // 2} cases")
    worst = max(abs((row.ratio or 0) - 1) for row in rows if "products" in row.name)
    print(f"products: at most {worst:.2%} from torch's count")
    return 0


def make_material(folder: Path) -> Path:
    """Scenes and a tokenizer."""
    run_tool("scenes", "--out", folder / "scenes", "--train-images", "240", "--test-images", "8")
    run_tool("tokenizer", "--shards", folder / "scenes/train", "--out", folder / "tokenizer", "--vocab-size", "400")
    return folder


def run_tool(*words: object) -> None:
    """A command of data_tools."""
    command = [sys.executable, "-m", "data_tools", *map(str, words)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def compare(case: Case, material: Path) -> list[Row]:
    """Estimated over measured, memory and products."""
    measured = measure(case, material)
    memory, flops = predict(case, measured, material)
    return [
        Row(f"memory_{case.name}", memory / 2**20, "MiB, estimated", measured.peak_bytes / 2**20),
        Row(f"products_{case.name}", flops / 1e9, "GFLOP, estimated", measured.flops / 1e9),
    ]


def measure(case: Case, material: Path) -> Measured:
    """The rank with the highest peak."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    processes = []
    for rank in range(case.ranks):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.ranks, "LOCAL_WORLD_SIZE": case.ranks}
        environment = {name: str(value) for name, value in variables.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", **SHARED_CODE}
        out = material / f"rank-{rank}.json"
        command = [sys.executable, "-m", "benchmarks.estimate", "--one-rank", json.dumps(asdict(case)), str(out)]
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        )
    told = [process.communicate()[1] for process in processes]
    for process, text in zip(processes, told, strict=True):
        if process.returncode:
            raise RuntimeError(f"{case.name}: a rank ended with {process.returncode}: {text.decode()[-2000:]}")
    found = [json.loads((material / f"rank-{rank}.json").read_text()) for rank in range(case.ranks)]
    return Measured(**max(found, key=lambda one: one["peak_bytes"]))


def predict(case: Case, measured: Measured, material: Path) -> tuple[float, float]:
    """Bytes at the peak and products of a step, with the region numbers of the measured batch."""
    from pipeline.estimate.estimate import flops_of, memory_of
    from pipeline.estimate.inputs import keeps_activations, sharding_of
    from pipeline.estimate.memory import Work
    from pipeline.estimate.pieces import trace_pieces

    settings, config = settings_of(case, material), config_of(case)
    settings = settings.model_copy(
        update={"data": settings.data.model_copy(update={"max_negatives": max(measured.texts_a_hard_row - 1, 1)})}
    )
    sharding = sharding_of(settings, config, case.ranks, case.zero, on_cpu=True)
    regions = settings.trains_regions
    trains = keeps_activations(settings, config)
    pieces = trace_pieces(config, case.patches, case.precision, regions, trains, weights=case.weights)
    text = config.text_config
    work = Work(SIZES[case.size][5], case.patches, text.max_position_embeddings, text.longtext_len)
    if regions:
        work = replace(
            work,
            regions=measured.regions,
            region_texts=measured.region_texts,
            hard_rows=measured.hard_rows,
            boxed_images=measured.images_with_regions,
        )
    memory = memory_of(settings, pieces, work, sharding, config)
    flops = flops_of(settings, pieces, work, case.ranks, config, measured.most_regions)
    return memory.total, flops.total


def settings_of(case: Case, material: Path) -> Stage1Settings:
    """Settings of the measured stage."""
    from pipeline.config import Stage1Settings, Stage2Settings, load_settings

    overrides = [
        f"data.shards=[{material / 'scenes/train'}]", f"tokenizer.path={material / 'tokenizer'}", "data.num_workers=0",
        f"data.patch_budgets=[{case.patches}]", f"train.global_batch_size={case.ranks * SIZES[case.size][5]}",
        f"train.precision={case.precision}", f"train.weights={case.weights}",
        f"train.deepspeed_config={ROOT / 'launch'}/zero{case.zero}.json",
        f"model.gradient_checkpointing={str(case.checkpointed).lower()}", "global_loss.exchange=gather",
        "data.window_shards=64",
    ]  # fmt: skip
    return load_settings(Stage2Settings if case.stage == 2 else Stage1Settings, None, overrides)


def config_of(case: Case) -> FGCLIP2Config:
    """The model's configuration."""
    from pipeline.model import FGCLIP2Config
    from pipeline.model.configuration import stretched_length

    width, mlp, layers, heads, rows, _ = SIZES[case.size]
    tower = {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    text = {
        "vocab_size": rows,
        "projection_size": width,
        "max_position_embeddings": SHORT_TOKENS,
        "keep_len": KEPT_TOKENS,
        "longtext_len": stretched_length(SHORT_TOKENS, KEPT_TOKENS),
    }
    return FGCLIP2Config(text_config=tower | text, vision_config=tower)


def measure_here(case: Case, out: Path) -> None:
    """One rank: two steps under DeepSpeed, then one that is counted."""
    import torch
    import torch.distributed as dist

    from pipeline.base.distributed import device_of, join_process_group
    from pipeline.base.ranks import read_rank_info
    from pipeline.data.loader import Reading, make_loader
    from pipeline.data.slices import Division
    from pipeline.data.tokenizer import load_tokenizer
    from pipeline.model import FGCLIP2
    from pipeline.training.cached import every_scale
    from pipeline.training.engine import build_engine
    from pipeline.training.full_state import prepare_moments
    from pipeline.training.losses import StageLosses
    from pipeline.tuning.parts import choose_trained

    torch.set_num_threads(1)
    settings, config, rank_info = settings_of(case, out.parent), config_of(case), read_rank_info()
    device = join_process_group(rank_info, 300)
    loader = make_loader(Reading(
        settings.data, load_tokenizer(settings.tokenizer.path),
        (config.text_config.max_position_embeddings, config.text_config.longtext_len), seed=0,
        global_batch_size=settings.train.global_batch_size, rank=rank_info.rank,
        division=Division(rank_info.world_size), with_regions=case.stage == 2,
    ))  # fmt: skip
    next(loader)
    _load_code(build_engine, settings, rank_info, device_of(rank_info))
    dist.barrier()
    before = resident_and_reset()  # the peak is counted from here
    moments: dict[str, int] = {}
    model = FGCLIP2.from_scratch(config)
    if case.checkpointed:
        model.checkpoint_activations()
    if case.stage == 1:
        choose_trained(model, settings.tune, with_regions=False)
    engine = build_engine(model.train(), settings, rank_info, device)
    prepare_moments(engine)
    losses = StageLosses(settings)

    def step(batch: Batch, named: Callable[[str], None]) -> None:
        embeddings = engine(batch, regions=case.stage == 2)
        named("forward")
        output = losses(embeddings, batch)
        total = output.total + every_scale(embeddings)
        named("losses")
        engine.backward(total)
        del embeddings, output, total
        named("backward")

    def note(name: str) -> None:
        moments[name] = max(moments.get(name, 0), peak_resident() - before)
        resident_and_reset()

    note("start")
    for _ in range(2):
        batch = next(loader).to(device)
        step(batch, note)
        engine.step()
        note("update")
    flops = _count(lambda: step(batch, lambda name: None))
    dist.barrier()
    measured = Measured(
        peak_bytes=max(value for name, value in moments.items() if name != "start"),
        flops=flops,
        images_with_regions=len(batch.region_image.unique()),
        regions=len(batch.boxes),
        most_regions=int(batch.region_image.bincount().max()) if len(batch.boxes) else 0,
        region_texts=len(batch.region_ids),
        hard_rows=len(batch.hard_region),
        texts_a_hard_row=batch.hard_index.shape[1] if batch.hard_index.ndim == 2 else 1,
        moments=moments,
    )
    out.write_text(json.dumps(asdict(measured)))
    dist.destroy_process_group()


def _load_code(
    build_engine: Callable[..., Any], settings: Stage1Settings, rank_info: RankInfo, device: torch.device
) -> None:
    """Have DeepSpeed import what it imports at its first engine: code is no memory of a model."""
    import torch

    from pipeline.training.full_state import prepare_moments

    engine = build_engine(torch.nn.Linear(64, 64), settings, rank_info, device)
    prepare_moments(engine)
    engine.backward(engine(torch.ones(4, 64)).sum())
    engine.step()


def _count(work: Callable[[], None]) -> float:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel([SDPBackend.MATH]), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


if __name__ == "__main__":
    sys.exit(main())
