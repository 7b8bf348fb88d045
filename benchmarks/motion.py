"""What the temporal transformer brings: phrases that differ only in motion, and anomalies, on clips of moving shapes.

examples:
  python -m benchmarks.motion --json motion.json
  python -m benchmarks.motion --train-clips 1000 --stage1-steps 100 --stage2-steps 100 --out runs/motion-small
  python -m benchmarks.motion --stage1 runs/motion/stage1 --seeds 3 --out runs/motion

Draws the clips, trains a tokenizer and one stage 1, and from it a stage 2 with model.region_frames=mean and one with
transformer (each with every seed); what is there already is not made again. Prints the accuracy on test rows of eleven
phrases: those that differ in the motion alone (the motion backwards is among them), in both, in looks; and the areas
under the ROC curve over the frames of the anomaly set, by the tracked boxes; all also of one frame alone. Expected: on
motion the transformer is at least 25 points above the masked mean, and its frame AUC at least 0.80 where a single
frame has about 0.5.
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
from typing import Any

from benchmarks.reporting import Row, report
from data_tools.scenes.clips.layout import NUM_FRAMES

ROOT = Path(__file__).resolve().parents[1]
MODES = ("mean", "transformer")
SETS = ("motion", "mixed", "looks")
SNIPPET_STEP = 2  # frames from one snippet of the anomaly set to the next
MARKS = {"motion": 25.0, "auc": 0.80}  # points above the mean; of the transformer


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.motion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, default=Path("runs/motion"))
    made.add_argument("--data", type=Path, help="clips that are there (default: OUT/data, drawn where it is not)")
    made.add_argument("--stage1", type=Path, help="a stage 1 that is there (default: OUT/stage1, trained)")
    made.add_argument("--train-clips", type=int, default=4000)
    made.add_argument("--test-clips", type=int, default=300)
    made.add_argument("--anomaly-videos", type=int, default=60)
    made.add_argument("--stage1-steps", type=int, default=200)
    made.add_argument("--stage2-steps", type=int, default=1500, help="of each stage 2 (default: %(default)s)")
    made.add_argument("--seeds", type=int, default=1)
    made.add_argument("--processes", type=int, default=2)
    made.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="of both stages, further")
    made.add_argument("--json", type=Path)
    return made


def main() -> int:
    arguments = parser().parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    data = arguments.data or out / "data"
    counts = ["--train-clips", arguments.train_clips, "--test-clips", arguments.test_clips]
    counts += ["--anomaly-videos", arguments.anomaly_videos]
    if not (data / "scenes.json").is_file():
        _run(["-m", "data_tools", "scenes", "--clips", "--out", data, *counts], out / "data.log")
    tokenizer = out / "tokenizer"
    if not (tokenizer / "tokenizer.model").is_file():
        words = ["-m", "data_tools", "tokenizer", "--shards", data / "train", "--out", tokenizer, "--vocab-size", 400]
        _run(words, out / "tokenizer.log")
    stage1 = arguments.stage1 or out / "stage1"
    if not (stage1 / "final" / "config.json").is_file():
        train("stage1", stage1, [f"train.max_steps={arguments.stage1_steps}"], data, arguments)
    scores: dict[str, dict[str, list[float]]] = {mode: {} for mode in MODES}
    for seed in range(arguments.seeds):  # seeds outermost: an interrupted programme has both modes
        for mode in MODES:
            run = out / f"{mode}-seed{seed}"
            if not (run / "final" / "config.json").is_file():
                settings = [f"model.region_frames={mode}", f"model.start_from={stage1}", f"train.seed={seed}",
                            f"train.max_steps={arguments.stage2_steps}", f"tracking.continues={stage1}"]  # fmt: skip
                train("stage2", run, settings, data, arguments)
            found = evaluated(run, data)
            for name, value in found.items():
                scores[mode].setdefault(name, []).append(value)
            told = ", ".join(f"{name} {found[name]:.3g}" for name in ("motion", "looks", "auc") if name in found)
            print(f"motion: {run.name}: {told}", flush=True)
    rows = table(scores)
    report(rows, arguments.json)
    print("\n".join(verdicts(scores)))
    return 0


def train(stage: str, run: Path, settings: Sequence[str], data: Path, arguments: argparse.Namespace) -> None:
    """One run by its script; its output goes to a log beside it."""
    command = ["bash", "launch/stage.sh", stage, "--config", f"launch/demo/{stage}.yaml", "--config",
               "launch/demo/motion.yaml", f"train.run_folder={run}", f"data.shards=[{data / 'train'}]",
               f"tokenizer.path={arguments.out / 'tokenizer'}", "evaluation.pictures_every_steps=null",
               *settings, *arguments.setting]  # fmt: skip
    environment = {**os.environ, "PYTHON": sys.executable, "PROCESSES": str(arguments.processes)}
    _call(command, run.with_suffix(".log"), environment)


def evaluated(run: Path, data: Path) -> dict[str, float]:
    """Per cent of hits by set, and areas; ``… (one frame)`` of a single frame. Kept in the run's folder."""
    kept = run / "motion.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    found: dict[str, float] = {}
    for single in (False, True):
        more, note = (["--single-frame"], " (one frame)") if single else ([], "")
        regions = _scores("clip-regions", run, data / "test", more)
        found |= {f"{name}{note}": 100 * float(regions[name]) for name in SETS}
        if not (data / "anomaly").is_dir():
            continue
        snippets = [] if single else ["--snippet-frames", NUM_FRAMES, "--snippet-step", SNIPPET_STEP]
        areas = _scores("anomaly", run, data / "anomaly", [*more, *snippets])
        found |= {f"{name}{note}": float(areas[name]) for name in ("auc", "ap")}
        found |= {f"auc, {event}{note}": float(of["auc"]) for event, of in areas["by_event"].items()}
    kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _scores(task: str, run: Path, data: Path, more: Sequence[object]) -> dict[str, Any]:
    file = run / f"{task}.json"
    words = ["-m", "pipeline.evaluation", task, run, "--data", data, "--no-tracking", "--json", file, *more]
    _run(words, run.with_suffix(".log"))
    return dict(json.loads(file.read_text(encoding="utf-8"))["results"][task]["scores"])


def table(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Row]:
    """A row a mode and score, the mean's as the baseline; spread over the seeds where there are several."""
    rows = []
    for mode in MODES:
        for name, values in scores[mode].items():
            unit = "%" if name.partition(" ")[0] in SETS else ""
            baseline = None if mode == "mean" else statistics.mean(scores["mean"][name])
            rows.append(Row(f"{mode}: {name}", statistics.mean(values), unit, baseline))
            if len(values) > 1:
                rows.append(Row(f"{mode}: {name}, spread", statistics.stdev(values), unit))
    return rows


def verdicts(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """What the marks ask for, and whether it is there."""
    value = {mode: {name: statistics.mean(values) for name, values in found.items()} for mode, found in scores.items()}
    lead = value["transformer"]["motion"] - value["mean"]["motion"]
    told = "reached" if lead >= MARKS["motion"] else "missed"
    lines = [f"motion: {lead:.1f} points above the masked mean; the mark of {MARKS['motion']:g} is {told}"]
    if "auc" in value["transformer"]:
        auc, single = value["transformer"]["auc"], value["transformer"]["auc (one frame)"]
        told = "reached" if auc >= MARKS["auc"] else "missed"
        lines.append(f"anomaly: AUC {auc:.3f}, one frame {single:.3f}; the mark of {MARKS['auc']:.2f} is {told}")
    return lines


def _run(words: Sequence[object], log: Path) -> None:
    _call([sys.executable, *map(str, words)], log, dict(os.environ))


def _call(command: list[str], log: Path, environment: dict[str, str]) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=False)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command[:6])} … ended with status {done.returncode}; {log} says why")


if __name__ == "__main__":
    sys.exit(main())
