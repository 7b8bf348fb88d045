"""The demo's steps, each skipped when its result is there; started by launch/demo.sh.

Everything lies under the output folder: data/, tokenizer/, stage1/, stage2/, scores.json, pictures/, mlflow.db.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.base.border import read_object
from pipeline.base.files import write_json

ROOT = Path(__file__).resolve().parents[2]
SHOWN = ("hard", "medium", "easy", "trivial", "boxes_top1", "t2i_r1", "i2t_r1")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bash launch/demo.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  bash launch/demo.sh\n  bash launch/demo.sh --out runs/long --stage1 train.max_steps=4000",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="output folder (default runs/demo)")
    parser.add_argument("--processes", type=int, default=2, help="training processes (default 2)")
    parser.add_argument("--train-images", type=int, default=8000)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--stage1", action="append", default=[], metavar="SETTING", help="further setting of stage 1")
    parser.add_argument("--stage2", action="append", default=[], metavar="SETTING", help="further setting of stage 2")
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    seconds = Seconds(out / "seconds.json")
    data, tokenizer = out / "data", out / "tokenizer"
    step(
        seconds,
        "data",
        data / "scenes.json",
        [
            "-m",
            "data_tools",
            "scenes",
            "--out",
            data,
            "--train-images",
            arguments.train_images,
            "--test-images",
            arguments.test_images,
            "--seed",
            0,
        ],
    )
    step(
        seconds,
        "tokenizer",
        tokenizer / "tokenizer.model",
        ["-m", "data_tools", "tokenizer", "--shards", data / "train", "--out", tokenizer, "--vocab-size", 512],
    )
    for stage, further in (("stage1", arguments.stage1), ("stage2", arguments.stage2)):
        run = out / stage
        command = [
            "bash",
            "launch/stage.sh",
            stage,
            "--config",
            f"launch/demo/{stage}.yaml",
            f"train.run_folder={run}",
            f"data.shards=[{data / 'train'}]",
            f"tokenizer.path={tokenizer}",
            f"evaluation.data={data / 'test'}",
        ]
        if stage == "stage2":
            command += [f"model.start_from={out / 'stage1'}", f"tracking.continues={out / 'stage1'}"]
        step(
            seconds,
            stage,
            run / "final" / "config.json",
            [*command, *further],
            python=False,
            environment={"PROCESSES": str(arguments.processes)},
        )
        step(
            seconds,
            f"{stage}_evaluation",
            run / "evaluation.json",
            [
                "-m",
                "pipeline.evaluation",
                "scenes",
                run,
                "--data",
                data / "test",
                "--json",
                run / "evaluation.json",
            ],
        )
    scores = {}
    for stage in ("stage1", "stage2"):
        scores[stage] = read_object(out / stage / "evaluation.json")
    scores = {
        stage: {name: value for name, value in found.items() if name not in ("checkpoint", "results")}
        for stage, found in scores.items()
    }
    step(
        seconds,
        "pictures",
        out / "pictures" / "regions.png",
        ["launch/demo/pictures.py", out, "--out", out / "pictures"],
    )
    write_json(out / "scores.json", {**scores, "seconds": seconds.known})
    print_table(scores, seconds.known)
    print(f"scores:    {out / 'scores.json'}")
    print(f"pictures:  {out / 'pictures'}")
    print(f"compare:   python -m pipeline.tracking.compare {out / 'stage1'} {out / 'stage2'}")
    models = f"{out / 'stage1'} {out / 'stage2'}"
    print(f"explore:   python -m pipeline.explore {models} --data {data / 'test'}")
    print(f"report:    python -m pipeline.report {out / 'stage2'}")
    print(f"MLflow:    mlflow ui --backend-store-uri sqlite:///{(out / 'mlflow.db').resolve()}")
    print("           then http://127.0.0.1:5000/?workflowType=machine_learning")
    return 0


class Seconds:
    """How long each step took, kept over restarts: a step that was interrupted adds up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, float] = read_object(path) if path.is_file() else {}

    def add(self, name: str, seconds: float) -> None:
        self.known[name] = round(self.known.get(name, 0.0) + seconds, 1)
        write_json(self.path, self.known)


def step(
    seconds: Seconds,
    name: str,
    result: Path,
    command: list[object],
    python: bool = True,
    environment: dict[str, str] | None = None,
) -> None:
    """Run a command unless its result is there; its failure ends the demo with its status."""
    if result.exists():
        print(f"demo: {name}: {result} is there", flush=True)
        return
    words = [str(word) for word in ([sys.executable, *command] if python else command)]
    print(f"demo: {name}: {shlex.join(words)}", flush=True)
    begun = time.monotonic()
    process = subprocess.Popen(words, env={**os.environ, "PYTHON": sys.executable, **(environment or {})}, cwd=ROOT)
    try:
        status = process.wait()
    except KeyboardInterrupt:  # the terminal sent it to the step too; it writes its checkpoint and ends
        process.wait()
        status = 128 + signal.SIGINT
    seconds.add(name, time.monotonic() - begun)
    if status == 0 and not result.exists():
        print(f"error: {name} ended without {result}", file=sys.stderr)
        status = 1
    if status:
        print(f"demo: {name} ended with status {status}; run the demo again to go on", file=sys.stderr)
        sys.exit(status if status > 0 else 128 - status)


def print_table(scores: dict[str, dict], seconds: dict[str, float]) -> None:
    """What the second stage bought, in percent."""
    rows: list[tuple[str, ...]] = [("", "stage 1", "stage 2", "stage 2 en", "stage 2 zh", "unseen")]
    for name in SHOWN:
        two = scores["stage2"]
        cells = [
            scores["stage1"].get(name),
            two.get(name),
            two["by_language"]["en"].get(name),
            two["by_language"]["zh"].get(name),
            two["unseen"].get(name),
        ]
        rows.append((name, *("" if value is None else f"{100 * value:.1f} %" for value in cells)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        print(
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        )
    print(
        "\nseconds:   "
        + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
        + f"; {sum(seconds.values()):.0f} in all"
    )


if __name__ == "__main__":
    sys.exit(main())
