"""FG-CLIP 1's region projection in stage 2: copied and trained, drawn at random and trained, or a frozen copy.

examples:
  python -m benchmarks.region_projection --demo runs/demo --json region_projection.json
  python -m benchmarks.region_projection --demo runs/demo --steps 150 --processes 1 --picture curves.png

Needs the data and the tokenizer of a demo (bash launch/demo.sh). Trains one stage 1 of model.family=fgclip1, then from
it every mode of model.region_projection with several seeds; runs that are there are not repeated. Prints the loss of
regions (the weighted FGV and FGT) over the last fifth of the steps, the steps until it falls to where the copied and
trained one stands half-way, and FG hard on the test scenes: mean and spread (standard deviation over the seeds). Before
them, the reason: mean and spread of pooled class tokens against pooled regions, both at the input of the projection.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from torch import Tensor

from benchmarks.reporting import Row, report
from pipeline.base.run_folder import RunFolder
from pipeline.config import Stage2Settings, read_saved_settings
from pipeline.data.images import decode_image
from pipeline.data.reader import iterate_shards
from pipeline.drawing.save import save_picture
from pipeline.evaluation.models.load import load_model
from pipeline.model import FGCLIP1
from pipeline.model.regions import pool_regions
from pipeline.tracking.local_log import read_curves

ROOT = Path(__file__).resolve().parents[1]
MODES = {"copy": "copied and trained (C)", "random": "random and trained (B)", "frozen": "copied and frozen (A)"}
COLOURS = {"copy": "tab:blue", "random": "tab:orange", "frozen": "tab:green"}
SMOOTHED = 5  # logged steps in a running mean
MOST_SCENES = 400  # of the test set, for the shift

Curve = tuple[list[int], list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.region_projection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="holds data/ and tokenizer/")
    parser.add_argument("--out", type=Path, default=Path("runs/region_projection"))
    parser.add_argument("--stage1-steps", type=int, default=900)
    parser.add_argument("--steps", type=int, default=300, help="of each stage 2 (default 300)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--picture", type=Path, help="a PNG of the curves (default OUT/curves.png)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not (arguments.demo / "tokenizer" / "tokenizer.model").is_file():
        print(f"error: {arguments.demo} holds no tokenizer; run bash launch/demo.sh first", file=sys.stderr)
        return 2
    stage1 = arguments.out / "stage1"
    if not (stage1 / "final" / "config.json").is_file():
        train("stage1", stage1, [f"train.max_steps={arguments.stage1_steps}"], arguments)
    rows = shift_rows(stage1, arguments.demo / "data" / "test")
    curves: dict[str, list[Curve]] = {mode: [] for mode in MODES}
    scores: dict[str, list[float]] = {mode: [] for mode in MODES}
    for seed in range(arguments.seeds):  # seeds outermost: an interrupted programme has every mode
        for mode in MODES:
            run = arguments.out / f"{mode}-seed{seed}"
            scores[mode].append(100 * score(run, mode, seed, arguments))
            curves[mode].append(region_loss(run))
            last = statistics.mean(last_fifth(curves[mode][-1]))
            print(f"region_projection: {run.name}: loss {last:.4f}, hard {scores[mode][-1]:.1f} %", flush=True)
    rows += mode_rows(curves, scores)
    save_picture(draw(curves), arguments.picture or arguments.out / "curves.png")
    report(rows, arguments.json)
    print("\n".join(verdicts(rows)))
    return 0


def train(stage: str, run: Path, settings: Sequence[str], arguments: argparse.Namespace) -> None:
    """One run by its script; its output goes to a log beside it."""
    demo = arguments.demo
    environment = {**os.environ, "PYTHON": sys.executable, "PROCESSES": str(arguments.processes)}
    command = ["bash", "launch/stage.sh", stage, "--config", f"launch/demo/{stage}.yaml", "--config",
               "launch/demo/clip.yaml", f"train.run_folder={run}", f"data.shards=[{demo / 'data' / 'train'}]",
               f"tokenizer.path={demo / 'tokenizer'}", "evaluation.pictures_every_steps=null", *settings]  # fmt: skip
    _run(command, run.with_suffix(".log"), environment)


def score(run: Path, mode: str, seed: int, arguments: argparse.Namespace) -> float:
    """FG hard of one stage 2, which is trained and evaluated unless its scores are there."""
    scores = run / "evaluation.json"
    if not scores.is_file():
        start = arguments.out / "stage1"
        settings = [f"model.region_projection={mode}", f"train.seed={seed}", f"train.max_steps={arguments.steps}",
                    f"model.start_from={start}", f"tracking.continues={start}", "train.log_every_steps=5"]  # fmt: skip
        train("stage2", run, settings, arguments)
        evaluate = [sys.executable, "-m", "pipeline.evaluation", "scenes", str(run),
                    "--data", str(arguments.demo / "data" / "test"), "--json", str(scores)]  # fmt: skip
        _run(evaluate, run.with_suffix(".log"), dict(os.environ))
    return float(json.loads(scores.read_text(encoding="utf-8"))["hard"])


def _run(command: list[str], log: Path, environment: dict[str, str]) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=output, stderr=output)


def region_loss(run: Path) -> Curve:
    """The weighted FGV and FGT, which are all that trains the projection with CMR, by logged step."""
    logged, settings = read_curves(run), read_saved_settings(RunFolder.at(run).settings)
    if not isinstance(settings, Stage2Settings):
        raise SystemExit(f"error: {run} is no run of stage 2; give another --out")
    weights = settings.region_loss
    steps, fgv = logged["loss/fgv"]
    by_step = dict(zip(*logged["loss/fgt"], strict=True))
    pairs = [(step, weights.fgv_weight * value + weights.fgt_weight * by_step[step])
             for step, value in zip(steps, fgv, strict=True) if step in by_step]  # fmt: skip
    return [step for step, _ in pairs], [value for _, value in pairs]


def last_fifth(curve: Curve) -> list[float]:
    """The values of the last fifth of the logged steps."""
    return curve[1][-max(1, len(curve[1]) // 5) :]


def smoothed(curve: Curve) -> Curve:
    """A running mean of ``SMOOTHED`` values, each at the last of its steps."""
    steps, values = curve
    kernel = min(SMOOTHED, len(values))
    return steps[kernel - 1 :], np.convolve(values, np.ones(kernel) / kernel, mode="valid").tolist()


def first_step_at(curve: Curve, level: float) -> float:
    """The first step whose smoothed loss is at ``level`` or below; NaN where there is none."""
    return next((float(step) for step, value in zip(*smoothed(curve), strict=True) if value <= level), float("nan"))


def mode_rows(curves: Mapping[str, Sequence[Curve]], scores: Mapping[str, Sequence[float]]) -> list[Row]:
    """What each mode came to, the copied and trained one as the baseline."""
    rows: list[Row] = []
    ends = {mode: [statistics.mean(last_fifth(curve)) for curve in found] for mode, found in curves.items()}
    half = [smoothed(curve)[1][len(smoothed(curve)[1]) // 2] for curve in curves["copy"]]  # a level for each seed
    steps = {
        mode: [first_step_at(curve, level) for curve, level in zip(found, half, strict=True)]
        for mode, found in curves.items()
    }
    for mode in MODES:
        for name, found, unit in (
            ("loss of regions, last fifth", ends, ""),
            ("steps to the copy's half-way loss", steps, "steps"),
            ("FG hard", scores, "%"),
        ):
            baseline = None if mode == "copy" else statistics.mean(found["copy"])
            rows.append(Row(f"{mode}: {name}", statistics.mean(found[mode]), unit, baseline))
            rows.append(Row(f"{mode}: {name}, spread", spread(found[mode]), unit))
    return rows


def spread(values: Sequence[float]) -> float:
    """Standard deviation over the seeds; 0 of a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


@torch.no_grad()
def shift_rows(stage1: Path, scenes: Path) -> list[Row]:
    """Class tokens and pooled regions of test scenes at the projection's input: where they lie, and how wide."""
    model = load_model(stage1)
    module = model.module
    if not isinstance(module, FGCLIP1):
        raise SystemExit(f"error: {stage1} holds a {model.kind}; give another --out")
    tokens, regions = [], []
    for number, (_, image, sample, _) in enumerate(iterate_shards(scenes)):
        if number == MOST_SCENES:
            break
        pixels = model.prepare(decode_image(image)).pixels[None]
        patches, token = module.vision_model(pixels)
        boxes = torch.tensor([region.image_box for region in sample.regions]).reshape(-1, 4)
        grid = torch.full((1, 2), module.config.vision_config.grid_side)
        pooled, valid = pool_regions(patches, grid, boxes, torch.zeros(len(boxes), dtype=torch.int64))
        tokens.append(token)
        regions.append(pooled[valid])
    return compare(torch.cat(tokens), torch.cat(regions))


def compare(tokens: Tensor, regions: Tensor) -> list[Row]:
    """Two clouds of vectors [N, D] and [R, D]: distance of their means in spreads, and their spreads."""
    means = [cloud.mean(dim=0) for cloud in (tokens, regions)]
    spreads = [float((cloud - cloud.mean(dim=0)).square().sum(dim=1).mean().sqrt()) for cloud in (tokens, regions)]
    apart = float((means[0] - means[1]).norm())
    cosine = float(torch.nn.functional.cosine_similarity(means[0], means[1], dim=0))
    return [
        Row("class tokens: spread about their mean", spreads[0], ""),
        Row("regions: spread about their mean", spreads[1], "", spreads[0]),
        Row("distance of the two means", apart, "", spreads[0]),
        Row("cosine of the two means", cosine, ""),
    ]


def draw(curves: Mapping[str, Sequence[Curve]]) -> Figure:
    """The loss of regions over the steps: the mean of the seeds, and one standard deviation on either side."""
    figure = Figure(figsize=(7.0, 4.2), layout="constrained", dpi=110)
    panel = figure.subplots()
    for mode, found in curves.items():
        lines = [smoothed(curve) for curve in found]
        values = np.array([line[1] for line in lines])
        middle, wide = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0.0
        panel.plot(lines[0][0], middle, label=MODES[mode], color=COLOURS[mode])
        panel.fill_between(lines[0][0], middle - wide, middle + wide, color=COLOURS[mode], alpha=0.2, linewidth=0)
    panel.set_yscale("log")  # the first steps are several times the others
    panel.yaxis.set_major_formatter(ScalarFormatter())
    panel.yaxis.set_minor_formatter(ScalarFormatter())
    panel.set_xlabel("optimizer step of stage 2")
    panel.set_ylabel("weighted loss of regions (FGV and FGT)")
    panel.grid(alpha=0.3)
    panel.legend()
    return figure


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What the numbers say of each expectation; a difference within both spreads together is called none."""
    value = {row.name: row.value for row in rows}

    def differs(name: str, mode: str) -> str:
        ours, theirs = value[f"{mode}: {name}"], value[f"copy: {name}"]
        noise = value[f"{mode}: {name}, spread"] + value[f"copy: {name}, spread"]
        word = "not told apart from" if not abs(ours - theirs) > noise else "above" if ours > theirs else "below"
        if noise == 0:
            word = "by one seed, which says little, beside"
        return f"{ours:.4g}, {word} {theirs:.4g} of the copy that trains (spreads together {noise:.2g})"

    loss, steps = "loss of regions, last fifth", "steps to the copy's half-way loss"
    return [
        f"A settles at a worse loss: {differs(loss, 'frozen')}",
        f"B arrives later: {value[f'random: {steps}']:.0f} steps against {value[f'copy: {steps}']:.0f}; its last loss "
        f"is {differs(loss, 'random')}",
        f"FG hard: A {differs('FG hard', 'frozen')}; B {differs('FG hard', 'random')}",
    ]


if __name__ == "__main__":
    sys.exit(main())
