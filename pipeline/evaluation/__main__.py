"""Score a model.

examples:
  python -m pipeline.evaluation runs/demo/stage2 --task fgovd --task retrieval --task boxes --data data/scenes/test
  python -m pipeline.evaluation retrieval runs/my/stage2 --data captions_val2017.json --images val2017 --json out.json
  python -m pipeline.evaluation fgovd DIR --data fgovd/hard.jsonl --data fgovd/easy.jsonl --images coco
  python -m pipeline.evaluation boxes DIR --data instances_val2017.json --images val2017 --cache features
  python -m pipeline.evaluation segmentation DIR --data VOC2012 --format voc --calibrate
  python -m pipeline.evaluation dense-maps DIR --data photo.jpg --phrase "a red circle" --phrase 红色的圆 --out maps
  torchrun --nproc_per_node 8 -m pipeline.evaluation retrieval DIR --data captions.json --images val2017 --device cuda

MODEL is a run's folder, a Hugging Face folder of FG-CLIP 2 (ours or public), or a siglip2 or clip folder of
transformers. The table goes to the terminal; --json writes scores, settings and the account of every annotation row.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline.evaluation.results import EvaluationError, flat_scores, table, write_json
from pipeline.evaluation.run import TASKS


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluation",
        usage="python -m pipeline.evaluation [TASK] MODEL [--task TASK ...] --data SET [options]",
        description=__doc__.partition("\n\n")[0],
        epilog=__doc__.partition("\n\n")[2] + "\ntasks:\n" + "\n".join(f"  {n:<15} {t}" for n, (_, t) in TASKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not given keeps the default of Options
    )
    parser.add_argument("positional", nargs="+", metavar="[TASK] MODEL", help="a task may stand first, or use --task")
    parser.add_argument(
        "--task", action="append", choices=list(TASKS), default=[], metavar="TASK", help="may be given several times"
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", action="append", type=Path, default=[], help="shards, an annotation file or a folder")
    data.add_argument("--images", type=Path, help="folder of the images (default: that of the annotation file)")
    data.add_argument("--format", help="format of --data (default: by its form); see docs/inference.md")
    data.add_argument("--language", choices=("en", "zh"), help="of captions, templates and shards (default en)")
    data.add_argument("--split", help="of files that hold several (default test)")
    data.add_argument("--image-ids", type=Path, help="text file of image names: only these are evaluated")
    data.add_argument("--max-images", type=int)
    data.add_argument("--max-skipped-share", type=float, help="stop when more rows cannot be used (default 0.01)")
    model = parser.add_argument_group("model and work")
    model.add_argument("--levels", type=int, nargs="+", default=None, help="patches (default: those of the run)")
    model.add_argument("--device", default="cpu")
    model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    model.add_argument("--batch-size", type=int, default=32, help="images")
    model.add_argument("--threads", type=int, default=2, help="that decode images")
    model.add_argument("--cache", type=Path, default=None, help="folder for features, to go on after an interruption")
    model.add_argument("--json", type=Path, default=None, help="write the result here")
    model.add_argument("--no-tracking", action="store_true", default=False, help="do not log to the run's MLflow")
    _add_task_arguments(parser)
    return parser


def _add_task_arguments(parser: argparse.ArgumentParser) -> None:
    texts = parser.add_argument_group("texts")
    texts.add_argument("--text-kind", choices=("auto", "short", "long"), help="text path of retrieval (default auto)")
    texts.add_argument("--short-prefix", help="read before short captions (default: the run's)")
    texts.add_argument("--retrieval-images", type=int, help="of scenes, a language (default 200)")
    texts.add_argument("--class-names", type=Path, help="names by class: text (one a line, or ID<tab>NAME) or JSON")
    texts.add_argument(
        "--template", action="append", dest="templates", metavar="TEXT", help="with {} for the class name"
    )
    boxes = parser.add_argument_group("detection")
    boxes.add_argument("--detector", type=Path, help="folder of a zero-shot detector of transformers")
    boxes.add_argument("--proposals", type=Path, help="boxes and confidences as COCO results JSON instead")
    boxes.add_argument("--alpha", type=float, help="exponent of the confidence (default 0.5)")
    boxes.add_argument("--beta", type=float, help="exponent of the model's probability (default 0.5)")
    boxes.add_argument("--temperature", type=float, help="of the softmax over classes (default: the task's)")
    boxes.add_argument("--box-threshold", type=float, help="least confidence of a proposal (default 0)")
    boxes.add_argument("--max-detections", type=int, help="an image (default 300)")
    boxes.add_argument("--seed", type=int, help="of the scenes' made proposals (default 0)")
    dense = parser.add_argument_group("segmentation and dense maps")
    dense.add_argument("--calibrate", action="store_true", help="SC-CLIP calibration of the patch features")
    dense.add_argument("--switch-off", action="append", metavar="PART", help="a part of SC-CLIP, see docs/inference.md")
    dense.add_argument(
        "--class-token-weight", type=float, help="SC-CLIP's, of the class token or what stands for it (default 0.3)"
    )
    dense.add_argument("--stand-in", metavar="patch|mean", help="for a class token that is not there (default patch)")
    dense.add_argument("--window", type=int, help="side of the sliding window in pixels")
    dense.add_argument("--stride", type=int, help="of the window in pixels")
    dense.add_argument("--short-side", type=int, help="images are resized to it first, in pixels")
    dense.add_argument("--background", choices=("auto", "class", "threshold", "none"), help="rule (default auto)")
    dense.add_argument("--background-threshold", type=float)
    dense.add_argument(
        "--phrase", action="append", dest="phrases", metavar="TEXT", help="for dense maps; may be given several times"
    )
    dense.add_argument("--out", type=Path, help="folder for pictures")


OWN = ("positional", "task", "levels", "device", "dtype", "batch_size", "threads", "cache", "json", "no_tracking")


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        tasks, checkpoint = _what(arguments)
        return _run(tasks, checkpoint, arguments)
    except KeyboardInterrupt:
        print("interrupted; with --cache the same command goes on where it was", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, OSError) as error:  # bad input: one line instead of a trace
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _what(arguments: argparse.Namespace) -> tuple[list[str], str]:
    """Tasks and model of both forms, TASK MODEL and MODEL --task TASK."""
    tasks, positional = list(arguments.task), list(arguments.positional)
    if len(positional) == 2 and positional[0] in TASKS:
        tasks.insert(0, positional.pop(0))
    if len(positional) != 1:
        raise EvaluationError(f"{' '.join(positional)!r} should be one model; write TASK MODEL, or MODEL --task TASK")
    if not tasks:
        raise EvaluationError(f"no task was given; choose from {', '.join(TASKS)}")
    if not arguments.data:
        raise EvaluationError("no --data was given; name shards, an annotation file or a folder")
    return list(dict.fromkeys(tasks)), positional[0]


def _run(tasks: list[str], checkpoint: str, arguments: argparse.Namespace) -> int:
    from pipeline.evaluation.features import EncodeSettings
    from pipeline.evaluation.models import load_model, run_folder_of
    from pipeline.evaluation.ranks import Ranks
    from pipeline.evaluation.run import evaluate_tasks

    options = {name: value for name, value in vars(arguments).items() if name not in OWN}
    for name in ("templates", "phrases", "switch_off"):
        if name in options:
            options[name] = tuple(options[name])
    settings = EncodeSettings(
        batch_size=arguments.batch_size, num_threads=arguments.threads, cache_folder=arguments.cache
    )
    ranks = Ranks.from_environment()
    model = load_model(checkpoint, levels=arguments.levels, device=arguments.device, dtype=arguments.dtype)
    results = evaluate_tasks(model, tasks, options.pop("data"), settings=settings, ranks=ranks, **options)
    ranks.close()
    if not ranks.is_first:
        return 0
    for name, result in results.items():
        print(f"{name}  ({checkpoint})")
        print(table(flat_scores(result["scores"]).items()))
        for account in result["accounting"]:
            print(_account_line(account))
    content: dict[str, Any] = {"checkpoint": str(checkpoint), "results": results}
    if "scenes" in results:  # the demo's programs read these names at the top
        content |= results["scenes"]["scores"]
    if arguments.json:
        write_json(arguments.json, content)
    run_folder = run_folder_of(checkpoint)
    if run_folder is not None and not arguments.no_tracking:
        from pipeline.tracking.scores import log_scores

        log_scores(checkpoint, {name: result["scores"] for name, result in results.items()})
    return 0


def _account_line(account: dict[str, Any]) -> str:
    parts = [f"{account['evaluated']} of {account['rows']} {account['unit']} evaluated"]
    parts += [f"{count} skipped: {reason}" for reason, count in account["skipped"].items()]
    parts += [f"{count} noted: {what}" for what, count in account["notes"].items()]
    return "  " + "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
