"""Find the phrases of each sample in its image with a zero-shot detector of transformers.

examples:
  python -m data_tools boxes shards/phrases --out shards/boxes --detector models/grounding-dino-base
  python -m data_tools boxes a --out b --detector models/owlv2-base --min-score 0.3 --box-batch-size 16
  python -m data_tools boxes a --out b --detector models/llmdet --similarity-model runs/stage2 \\
      --min-similarity 0.15

The phrases are those that `python -m data_tools phrases` left in the samples. Grounding DINO, MM Grounding DINO
(LLMDet) and OWLv2 read English; Chinese phrases need a detector that was trained on them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from data_tools.boxes.choose import BoxLimits
from data_tools.boxes.step import BoxStep
from data_tools.execution.command import run_step_command
from data_tools.execution.options import add_execution_arguments, options_from

INDEX = False  # a sample may still be without a caption


@dataclass(frozen=True)
class BoxOptions:
    """The detector's folder, how it runs, and which of its boxes become regions."""

    detector: str
    limits: BoxLimits
    box_batch_size: int = 8
    box_precision: str = "float32"
    similarity_model: str | None = None
    min_similarity: float = 0.15
    replace_regions: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, help="folder of shards with phrases")
    parser.add_argument("--out", required=True, type=Path, help="folder for the shards with boxes")
    add_step_arguments(parser)
    add_execution_arguments(parser)


def add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `BoxOptions`."""
    parser.add_argument("--detector", required=True, metavar="FOLDER", help="of a saved zero-shot detector")
    group = parser.add_argument_group("boxes")
    group.add_argument("--box-batch-size", type=int, default=8, help="images a forward pass (default: 8)")
    group.add_argument("--box-precision", choices=["float32", "bfloat16", "float16"], default="float32")
    group.add_argument("--similarity-model", metavar="FOLDER", help="an FG-CLIP 2 or SigLIP 2 checkpoint, or a run")
    group.add_argument("--min-similarity", type=float, default=0.15, help="of region and phrase (default: 0.15)")
    group.add_argument("--replace-regions", action="store_true", help="also where a sample has regions already")
    for field in fields(BoxLimits):
        name = "--" + field.name.replace("_", "-")
        group.add_argument(name, type=type(field.default), default=field.default, help=f"(default: {field.default})")


def read_options(arguments: argparse.Namespace) -> BoxOptions:
    """The parsed options as a record.

    Raises:
        ValueError: a limit is out of its range.
    """
    return options_from(arguments, BoxOptions, limits=options_from(arguments, BoxLimits))


def make_step(options: BoxOptions, out: Path) -> BoxStep:
    """The step that the options describe.

    Raises:
        ValueError: the folder of the detector holds none.
    """
    from data_tools.boxes.detectors import Detector  # torch, which --help does without
    from data_tools.boxes.similarity import RegionTextFilter

    similarity = None
    if options.similarity_model is not None:
        similarity = RegionTextFilter(options.similarity_model, options.min_similarity)
    return BoxStep(
        Detector(options.detector, precision=options.box_precision),
        options.limits,
        batch_size=options.box_batch_size,
        similarity=similarity,
        replace_existing=options.replace_regions,
    )


def run(arguments: argparse.Namespace) -> int:
    step = make_step(read_options(arguments), arguments.out)
    return run_step_command(step, arguments, index=INDEX)
