"""What each exit of a run costs in score: the run itself, its ONNX files in float32, float16 and int8, and its siglip2.

Every folder is exported and scored on the same scenes by the same code; siglip2 has no regions, so it has retrieval
with short texts alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reporting import benchmark_parser
from pipeline.base.files import write_json
from pipeline.evaluation.models.load import load_model
from pipeline.evaluation.run import evaluate
from pipeline.export.onnx_folder import export_onnx
from pipeline.export.run import export_run
from pipeline.export.siglip2 import export_siglip2

SCORES = ("hard", "medium", "easy", "trivial", "boxes_top1", "i2t_r1", "t2i_r1")
SHORT = "short t2i_r1, en"
WEIGHTS = ("float32", "float16", "int8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    example = "  python -m benchmarks.exits --run runs/demo/stage2 --data runs/demo/data/test"
    parser = benchmark_parser("benchmarks.exits", __doc__, example)
    parser.add_argument("--run", type=Path, required=True, help="a run of stage 2 on scenes")
    parser.add_argument("--data", type=Path, required=True, help="test scenes")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/exits"), help="folder for the exports (default: runs/exits)"
    )
    arguments = parser.parse_args(argv)
    folders = {"transformers": export_run(arguments.run, arguments.out / "fgclip2")}
    for weights in WEIGHTS:
        name = f"onnx, {weights}"
        folders[name] = export_onnx(arguments.run, arguments.out / f"onnx-{weights}", weights=weights)[0]
    folders["siglip2"] = export_siglip2(arguments.run, arguments.out / "siglip2")
    found = {name: _scores(name, folder, arguments.data) for name, folder in folders.items()}
    _table(found)
    if arguments.json:
        write_json(arguments.json, found)
    return 0


def _scores(name: str, folder: Path, data: Path) -> dict[str, float]:
    """Scores in 0..1, and the folder's weights in megabytes."""
    model = load_model(folder)
    files = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".onnx")]
    found = {"megabytes": sum(file.stat().st_size for file in files) / 1e6}
    if name != "siglip2":
        scores = evaluate(model, "scenes", data)["scores"]
        found |= {score: scores[score] for score in SCORES}
    found[SHORT] = evaluate(model, "retrieval", data, text_kind="short", short_prefix="", language="en")["scores"][
        "t2i_r1"
    ]
    print(f"{name}: {found}", file=sys.stderr, flush=True)
    return found


def _table(found: dict[str, dict[str, float]]) -> None:
    """Per cent; in brackets the difference to transformers in float32."""
    columns = (*SCORES, SHORT)
    print("| exit | MB | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    whole = found["transformers"]
    for name, scores in found.items():
        cells = [_cell(scores[column], whole[column]) if column in scores else "" for column in columns]
        print(f"| {name} | {scores['megabytes']:.1f} | " + " | ".join(cells) + " |")


def _cell(score: float, whole: float) -> str:
    return f"{100 * score:.1f}" + (f" ({100 * (score - whole):+.1f})" if score != whole else "")


if __name__ == "__main__":
    sys.exit(main())
