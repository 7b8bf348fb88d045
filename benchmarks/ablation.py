"""What each region loss buys: stage 2 from one stage-1 model with all losses and without some, several seeds each.

examples:
  python -m benchmarks.ablation --demo runs/demo --json ablation.json
  python -m benchmarks.ablation --demo runs/demo --steps 150 --seeds 3 --out runs/ablation

Needs a finished demo (bash launch/demo.sh). Prints one row a variant: mean and spread (standard deviation over the
seeds) of the scores on the scenes' test set, in percent, and of the difference to all losses with the same seed. Runs
that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.reporting import Row, report

ROOT = Path(__file__).resolve().parents[1]
PAPER_WEIGHTS = ("region_loss.fgv_weight=0.1", "region_loss.fgt_weight=0.5")  # the demo's own are larger
VARIANTS = {
    "all": (),
    "without CMR": ("region_loss.cmr_weight=0",),
    "without TIC": ("region_loss.tic_weight=0",),
    "without CMR, TIC": ("region_loss.cmr_weight=0", "region_loss.tic_weight=0"),
    "without FGT": ("region_loss.fgt_weight=0",),
}
SCORES = ("hard", "medium", "easy", "trivial", "boxes_top1", "t2i_r1", "i2t_r1")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo (default runs/demo)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=300, help="of each stage 2 (default 300)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not (arguments.demo / "stage1" / "final" / "config.json").is_file():
        print(f"error: {arguments.demo} holds no finished stage 1; run bash launch/demo.sh first", file=sys.stderr)
        return 2
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.seeds):  # seeds outermost: an interrupted programme has every variant
        for name, settings in VARIANTS.items():
            run = arguments.out / f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
            found.setdefault(name, []).append(score(run, settings, seed, arguments))
            print(
                f"ablation: {run.name}: " + " ".join(f"{k}={100 * found[name][-1][k]:.1f}" for k in SCORES), flush=True
            )
    rows = []
    print("\n| losses | " + " | ".join(SCORES) + " | hard, less that of all |\n|" + "---|" * (len(SCORES) + 2))
    for name, runs in found.items():
        cells = []
        for score_name in SCORES:
            values = [100 * one[score_name] for one in runs]
            rows.append(Row(f"{name}: {score_name}", statistics.mean(values), "%"))
            rows.append(Row(f"{name}: {score_name}, spread", spread(values), "%"))
            cells.append(f"{statistics.mean(values):.1f} ± {spread(values):.1f}")
        # Runs of one seed see the same batches from the same start, so their difference spreads less than either.
        less = [100 * (one["hard"] - all_losses["hard"]) for one, all_losses in zip(runs, found["all"], strict=True)]
        rows.append(Row(f"{name}: hard, less that of all", statistics.mean(less), "points"))
        rows.append(Row(f"{name}: hard, less that of all, spread", spread(less), "points"))
        print(f"| {name} | " + " | ".join(cells) + f" | {statistics.mean(less):+.2f} ± {spread(less):.2f} |")
    if arguments.json:
        report(rows, arguments.json)
    return 0


def spread(values: list[float]) -> float:
    """Standard deviation over the seeds; 0 of a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def score(run: Path, settings: tuple[str, ...], seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Train and evaluate one variant, unless its scores are there."""
    demo, scores = arguments.demo, run / "evaluation.json"
    if not scores.is_file():
        environment = {**os.environ, "PYTHON": sys.executable, "PROCESSES": str(arguments.processes)}
        train = ["bash", "launch/stage.sh", "stage2", "--config", "launch/demo/stage2.yaml", *PAPER_WEIGHTS, *settings,
                 f"train.seed={seed}", f"train.max_steps={arguments.steps}", f"train.run_folder={run}",
                 f"data.shards=[{demo / 'data' / 'train'}]", f"tokenizer.path={demo / 'tokenizer'}",
                 f"model.start_from={demo / 'stage1'}", f"tracking.continues={demo / 'stage1'}",
                 "evaluation.pictures_every_steps=null"]  # fmt: skip
        evaluate = [sys.executable, "-m", "pipeline.evaluation", "scenes", str(run),
                    "--data", str(demo / "data" / "test"), "--json", str(scores)]  # fmt: skip
        log = run.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            for command in (train, evaluate):
                subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=output, stderr=output)
    return json.loads(scores.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
