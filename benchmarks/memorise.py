"""Can a tiny model memorise a few hundred real images? A proof that images, captions and gradients meet, not a score.

example:
  python -m benchmarks.memorise --images coco/images --captions captions.json --instances instances.json \\
      --fgovd fgovd/hard.jsonl --fgovd fgovd/easy.jsonl --out runs/memorise --json memorise.json

Builds shards and a tokenizer from a COCO folder, trains the tiny preset at 128 patches with stage 1 and then stage 2,
two processes each, and evaluates text-to-image retrieval over the training images themselves, and FG-OVD.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.reporting import Row, report

ROOT = Path(__file__).resolve().parents[1]
COMMON = (
    "model.gradient_checkpointing=false", "data.patch_budgets=[128]", "data.num_workers=1", "train.precision=fp32",
    "train.log_every_steps=20", "train.checkpoint_every_steps=null", "optimizer.warmup_steps=20",
    "optimizer.weight_decay=0.01", "train.deepspeed_config=launch/zero2.json", "data.keep_last_batch=false",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memorise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--instances", type=Path, required=True)
    parser.add_argument("--fgovd", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/memorise"))
    parser.add_argument("--stage1-steps", type=int, default=400)
    parser.add_argument("--stage2-steps", type=int, default=40)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    out, python = arguments.out, (sys.executable, "-m")
    fgovd = ["--fgovd", *arguments.fgovd] if arguments.fgovd else []
    call(*python, "data_tools", "build", "coco", "--images", arguments.images, "--captions", arguments.captions,
         "--instances", arguments.instances, *fgovd, "--out", out / "shards")  # fmt: skip
    call(*python, "data_tools", "tokenizer", "--shards", out / "shards", "--out", out / "tokenizer",
         "--vocab-size", 2000)  # fmt: skip
    rows = []
    for stage, steps, batch, rate in (("stage1", arguments.stage1_steps, 64, 1e-3),
                                      ("stage2", arguments.stage2_steps, 16, 2e-4)):  # fmt: skip
        start = [] if stage == "stage1" else [f"model.start_from={out / 'stage1'}"]
        begun = time.monotonic()
        call("bash", "launch/stage.sh", stage, "model.preset=tiny", *COMMON, *start, f"train.run_folder={out / stage}",
             f"data.shards=[{out / 'shards'}]", f"tokenizer.path={out / 'tokenizer'}",
             f"train.max_steps={steps}", f"train.global_batch_size={batch}", f"optimizer.peak_learning_rate={rate}",
             processes=arguments.processes)  # fmt: skip
        rows.append(Row(f"{stage}_seconds", time.monotonic() - begun, "s"))
        scores = out / f"{stage}.json"
        data = [word for file in arguments.fgovd for word in ("--data", file)]
        call(*python, "pipeline.evaluation", "retrieval", out / stage, "--data", out / "shards", "--text-kind", "short",
             "--json", scores)  # fmt: skip
        found = json.loads(scores.read_text(encoding="utf-8"))["results"]["retrieval"]["scores"]
        rows += [Row(f"{stage}_{name}", value, "fraction") for name, value in found.items() if name.endswith("r1")]
        if data:
            call(*python, "pipeline.evaluation", "fgovd", out / stage, *data, "--images", arguments.images.parent,
                 "--json", out / f"{stage}_fgovd.json")  # fmt: skip
    report(rows, arguments.json)
    return 0


def call(*words: object, processes: int = 1) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "PROCESSES": str(processes)}
    subprocess.run([str(word) for word in words], cwd=ROOT, env=environment, check=True)


if __name__ == "__main__":
    sys.exit(main())
