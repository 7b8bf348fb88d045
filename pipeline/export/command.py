"""Make a Hugging Face folder of a run: weights, configuration, image processor, tokenizer, model card and code.

The folder has the names and tables of the public FG-CLIP 2 checkpoints, and carries the model's own source, so that
plain transformers loads it. It is written aside, read back, compared, and only then takes its name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline.base.defects import ask_for_reports


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m pipeline.export runs/stage2 --out exported\n"
        "  python -m pipeline.export runs/stage2 --out exported-2000 --checkpoint 2000\n"
        "  python -m pipeline.export runs/lora --out adapter --adapter",
    )
    parser.add_argument("run", help="a run's folder, with settings.yaml and checkpoints")
    parser.add_argument("--out", required=True, help="the folder to make; an earlier export there is replaced")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="its optimizer step (default: the newest)")
    parser.add_argument(
        "--adapter", action="store_true", help="only what a run with low-rank additions trained, as peft reads it"
    )
    arguments = parser.parse_args(argv)
    ask_for_reports()
    # These import torch and transformers, which --help must not wait for.
    from pipeline.checkpoint.record import CheckpointError
    from pipeline.export.adapter import export_adapter
    from pipeline.export.folder import ExportError
    from pipeline.export.run import export_run

    export = export_adapter if arguments.adapter else export_run
    try:
        out = export(arguments.run, arguments.out, arguments.checkpoint)
    except (ExportError, CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    compared = "the embeddings" if arguments.adapter else "every key and the embeddings"
    print(f"{out}: {compared} of a probe batch equal the checkpoint's")
    return 0
