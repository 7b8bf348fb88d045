"""Make a folder of a run that others read.

--as fgclip2: a Hugging Face folder with the names and tables of the public FG-CLIP 2 checkpoints; it carries the
    model's own source, so that plain transformers loads it.
--as siglip2: the global half as transformers' own Siglip2Model; no code of this project, no regions.
--as onnx: images, patch features, regions and texts for onnxruntime, the grid of an image as an input.

Every folder has the tokenizer, an AutoProcessor and a model card. It is written aside, read back, compared with the
run's model, and only then takes its name.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline.base.commands import command_parser, run_command
from pipeline.base.defects import ask_for_reports

FORMS = ("fgclip2", "siglip2", "onnx")
WEIGHTS = ("float32", "float16", "int8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = command_parser(
        "python -m pipeline.export",
        __doc__,
        "examples:\n"
        "  python -m pipeline.export runs/stage2 --out exported\n"
        "  python -m pipeline.export runs/stage2 --out exported-2000 --checkpoint 2000\n"
        "  python -m pipeline.export runs/stage2 --out plain --as siglip2\n"
        "  python -m pipeline.export runs/stage2 --out small --as onnx --weights int8\n"
        "  python -m pipeline.export runs/lora --out adapter --adapter",
    )
    parser.add_argument("run", help="a run's folder, with settings.yaml and checkpoints")
    parser.add_argument("--out", required=True, help="the folder to make; an earlier export there is replaced")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="its optimizer step (default: the newest)")
    parser.add_argument("--as", dest="form", choices=FORMS, default="fgclip2", help="who reads it (default: fgclip2)")
    parser.add_argument("--weights", choices=WEIGHTS, help="how an ONNX folder stores them (default: float32)")
    parser.add_argument(
        "--adapter", action="store_true", help="only what a run with low-rank additions trained, as peft reads it"
    )
    arguments = parser.parse_args(argv)
    if arguments.weights and arguments.form != "onnx":
        parser.error(f"--weights {arguments.weights} is read with --as onnx alone; other folders hold float32")
    if arguments.adapter and arguments.form != "fgclip2":
        parser.error(f"--adapter is a form of its own; leave --as {arguments.form} out")
    ask_for_reports()
    # It imports torch and transformers, which --help must not wait for.
    from pipeline.checkpoint.record import CheckpointError
    from pipeline.export.folder import ExportError

    return run_command(lambda: _export(arguments), (ExportError, CheckpointError, ValueError, OSError))


def _export(arguments: argparse.Namespace) -> int:
    print(_made(arguments))
    return 0


def _made(arguments: argparse.Namespace) -> str:
    """Make the folder; what to tell of it."""
    run, out, step = arguments.run, arguments.out, arguments.checkpoint
    # Each imports what only it needs: peft, transformers' own model, onnxruntime.
    if arguments.adapter:
        from pipeline.export.adapter import export_adapter

        return f"{export_adapter(run, out, step)}: the embeddings of a probe batch equal the checkpoint's"
    if arguments.form == "siglip2":
        from pipeline.export.siglip2 import export_siglip2

        return f"{export_siglip2(run, out, step)}: transformers gives the checkpoint's images, short texts and logits"
    if arguments.form == "onnx":
        from pipeline.export.onnx_folder import export_onnx

        folder, worst = export_onnx(run, out, step, arguments.weights or "float32")
        told = ", ".join(f"{name} {difference:.2g}" for name, difference in worst.items())
        return f"{folder}: largest differences of onnxruntime's embeddings from the checkpoint's: {told}"
    from pipeline.export.run import export_run

    return f"{export_run(run, out, step)}: every key and the embeddings of a probe batch equal the checkpoint's"
