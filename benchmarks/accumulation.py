"""What exact large batches cost: memory and time of a step of stage 1 from many micro-batches, cached and separate.

Every case is a process of its own with DeepSpeed's ZeRO 2 on one CPU rank and one thread. Memory is the growth of its
peak resident memory (VmHWM) during one step, over what it holds between steps; the micro-batches themselves are in
memory before, in every case, and their size is a row of its own. Time is the processor time of whole steps, cached and
separate in turn, so that other work on the machine meets both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.base.host_memory import peak_resident, resident_and_reset

if TYPE_CHECKING:
    from pipeline.data.batch import Batch

ROOT = Path(__file__).resolve().parents[1]
# malloc gives memory back at once, or the peak would be that of an earlier moment
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1",
               "OMP_NUM_THREADS": "1"}  # fmt: skip
VOCABULARY, SHORT, KEEP = 4000, 64, 20
MEMORY_TARGET, TIME_TARGET = 1.10, 1.45


@dataclass(frozen=True)
class Case:
    """One process: ``parts`` micro-batches of ``images`` each in memory, of which a step takes all or the first."""

    width: int
    layers: int
    patches: int
    images: int
    parts: int
    steps: int
    what: str  # "one", "cached": memory of a step; "time": of both kinds of step


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser(
        "benchmarks.accumulation", __doc__ or "", "  python -m benchmarks.accumulation --parts 4\n"
    )
    parser.add_argument("--parts", type=int, default=16, help="micro-batches of a step (default 16)")
    parser.add_argument("--images", type=int, default=32, help="of a micro-batch (default 32)")
    parser.add_argument("--patches", type=int, default=128, help="of an image (default 128)")
    parser.add_argument("--width", type=int, default=256, help="of both towers (default 256)")
    parser.add_argument("--layers", type=int, default=4, help="of each tower (default 4)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each kind (default 3)")
    parser.add_argument("--one-case", nargs=2, metavar=("CASE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one_case:
        case, out = Case(**json.loads(arguments.one_case[0])), Path(arguments.one_case[1])
        out.write_text(json.dumps(_time_of(case) if case.what == "time" else _memory_of(case)), encoding="utf-8")
        return 0

    def run(what: str) -> dict[str, float]:
        sizes = {name: getattr(arguments, name) for name in ("width", "layers", "patches", "images", "parts", "steps")}
        return _in_process(Case(**sizes, what=what))

    rows = [*_memory_rows(run("one"), run("cached"), arguments.parts), *_time_rows(run("time"), arguments.parts)]
    report(rows, arguments.json)
    return 0


def _memory_rows(one: dict[str, float], cached: dict[str, float], parts: int) -> list[Row]:
    allowed = one["growth"] + cached["embeddings"]
    return [
        Row("growth in a step of 1 micro-batch", one["growth"] / 1e6, "MB"),
        Row(f"embeddings of {parts} micro-batches and their gradients", cached["embeddings"] / 1e6, "MB"),
        Row(
            f"growth in a step of {parts}, cached; baseline: the two above; target {MEMORY_TARGET:g} x",
            cached["growth"] / 1e6,
            "MB",
            allowed / 1e6,
        ),
        Row(f"the {parts} micro-batches as read, beside that", cached["inputs"] / 1e6, "MB"),
    ]


def _time_rows(seconds: dict[str, float], parts: int) -> list[Row]:
    return [
        Row(f"processor time of a step of {parts}, separate", seconds["separate"], "s"),
        Row(
            f"processor time of a step of {parts}, cached; target {TIME_TARGET:g} x",
            seconds["cached"],
            "s",
            seconds["separate"],
        ),
    ]


def _in_process(case: Case) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = ["-m", "benchmarks.accumulation", "--one-case", json.dumps(asdict(case)), str(out)]
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{case} failed:\n{done.stderr[-3000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


def _memory_of(case: Case) -> dict[str, float]:
    """Growth of the peak in the second step; bytes of the embeddings with their gradients, and of the inputs."""
    steps = _Steps(case)
    parts = 1 if case.what == "one" else case.parts
    steps.cached(parts)
    before = resident_and_reset()  # the peak is counted from here
    steps.cached(parts)
    rows = parts * case.images
    return {
        "growth": float(peak_resident() - before),
        "embeddings": 2.0 * 4 * 3 * rows * case.width,  # image, short, long; float32
        "inputs": float(sum(t.nbytes for batch in steps.batches[:parts] for t in batch.tensors().values())),
    }


def _time_of(case: Case) -> dict[str, float]:
    """Median seconds of processor time of both kinds of step, measured in turn."""
    steps = _Steps(case)
    seconds: dict[str, list[float]] = {"cached": [], "separate": []}
    for number in range(1 + case.steps):
        for name in seconds:
            started = time.process_time()
            getattr(steps, name)(case.parts)
            if number:  # the first of each is a warm-up
                seconds[name].append(time.process_time() - started)
    return {name: median(values) for name, values in seconds.items()}


class _Steps:
    """A model under DeepSpeed, micro-batches in memory, and both kinds of step."""

    def __init__(self, case: Case) -> None:
        # Here, not at the top: --help must not wait for torch and DeepSpeed.
        import torch

        from pipeline.base.distributed import join_process_group
        from pipeline.base.ranks import RankInfo
        from pipeline.config import Stage1Settings, TuneSettings
        from pipeline.model import FGCLIP2, FGCLIP2Config
        from pipeline.model.configuration import stretched_length
        from pipeline.training.engine import build_engine
        from pipeline.training.full_state import prepare_moments
        from pipeline.training.losses import StageLosses
        from pipeline.tuning.parts import choose_trained

        torch.set_num_threads(1)
        device = join_process_group(RankInfo(), 60)
        tower = {"hidden_size": case.width, "intermediate_size": 4 * case.width, "num_hidden_layers": case.layers,
                 "num_attention_heads": 4}  # fmt: skip
        text = {"vocab_size": VOCABULARY, "projection_size": case.width, "max_position_embeddings": SHORT,
                "keep_len": KEEP, "longtext_len": stretched_length(SHORT, KEEP)}  # fmt: skip
        torch.manual_seed(0)
        model = FGCLIP2.from_scratch(FGCLIP2Config(text_config=tower | text, vision_config=tower))
        choose_trained(model, TuneSettings(), with_regions=False)
        self.settings = Stage1Settings.model_validate(
            {"train": {"precision": "fp32", "deepspeed_config": str(ROOT / "launch/zero2.json")}}
        )
        self.engine: Any = build_engine(model.train(), self.settings, RankInfo(), device)
        prepare_moments(self.engine)
        self.losses = StageLosses(self.settings)
        self.batches = [_batch(case, part) for part in range(case.parts)]

    def forward(self, batch: Batch, number: int) -> Any:
        return self.engine(batch, regions=False)

    def backward(self, total: Any, is_last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(total)

    def cached(self, parts: int) -> None:
        """One step of ``parts`` micro-batches as one batch."""
        from pipeline.training.cached import backward_of_slice, losses_of_slice

        computed = losses_of_slice(self.forward, self.batches[:parts], parts, self.losses)
        backward_of_slice(computed, self.forward, self.backward)
        self.engine.step()

    def separate(self, parts: int) -> None:
        """One step of ``parts`` micro-batches, each a batch of its own."""
        from pipeline.training.cached import every_scale, losses_of_slice

        for part in range(parts):
            computed = losses_of_slice(self.forward, [self.batches[part]], 1, self.losses)
            total = computed.output.total / parts + every_scale(computed.embeddings)
            self.backward(total, part + 1 == parts)
        self.engine.step()


def _batch(case: Case, part: int) -> Batch:
    """Images of random pixels with random texts."""
    import torch

    from pipeline.data.batch import Batch
    from pipeline.model.configuration import stretched_length

    generator, count = torch.Generator().manual_seed(part), case.images
    height = max(n for n in range(1, int(case.patches**0.5) + 1) if case.patches % n == 0)
    present, nothing = torch.ones(count, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)

    def ids(length: int) -> Any:
        return torch.randint(0, VOCABULARY, (count, length), generator=generator)

    return Batch(
        keys=[f"{part}-{n}" for n in range(count)],
        language="en",
        pixel_values=torch.rand(count, case.patches, 768, generator=generator),
        pixel_attention_mask=torch.ones(count, case.patches, dtype=torch.int32),
        spatial_shapes=torch.tensor([[height, case.patches // height]] * count),
        short_ids=ids(SHORT),
        short_valid=present,
        long_ids=ids(stretched_length(SHORT, KEEP)),
        long_valid=present,
        boxes=torch.zeros(0, 4),
        region_image=nothing,
        region_ids=nothing.reshape(0, SHORT),
        region_text_hash=nothing,
        phrase_index=nothing,
        hard_region=nothing,
        hard_index=nothing.reshape(0, 11),
        hard_mask=torch.zeros(0, 11, dtype=torch.bool),
    )


if __name__ == "__main__":
    sys.exit(main())
