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
from dataclasses import fields

from data_tools.boxes.choose import BoxLimits
from data_tools.boxes.detectors import Detector
from data_tools.boxes.step import BoxStep, RegionTextFilter
from data_tools.execution.command import add_execution_arguments, run_step_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", help="folder of shards with phrases")
    parser.add_argument("--out", required=True, help="folder for the shards with boxes")
    parser.add_argument("--detector", required=True, metavar="FOLDER", help="of a saved zero-shot detector")
    add_box_arguments(parser)
    add_execution_arguments(parser)


def add_box_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("boxes")
    group.add_argument("--box-batch-size", type=int, default=8, help="images a forward pass (default: 8)")
    group.add_argument("--box-precision", choices=["float32", "bfloat16", "float16"], default="float32")
    group.add_argument("--similarity-model", metavar="FOLDER", help="an FG-CLIP 2 or SigLIP 2 checkpoint, or a run")
    group.add_argument("--min-similarity", type=float, default=0.15, help="of region and phrase (default: 0.15)")
    group.add_argument("--replace-regions", action="store_true", help="also where a sample has regions already")
    for field in fields(BoxLimits):
        name = "--" + field.name.replace("_", "-")
        group.add_argument(name, type=type(field.default), default=field.default, help=f"(default: {field.default})")


def box_step(arguments: argparse.Namespace, detector: str) -> BoxStep:
    """The step that the options describe, with the detector in the folder ``detector``."""
    limits = BoxLimits(**{field.name: getattr(arguments, field.name) for field in fields(BoxLimits)})
    similarity = None
    if arguments.similarity_model is not None:
        similarity = RegionTextFilter(arguments.similarity_model, arguments.min_similarity)
    return BoxStep(
        Detector(detector, precision=arguments.box_precision),
        limits,
        batch_size=arguments.box_batch_size,
        similarity=similarity,
        replace_existing=arguments.replace_regions,
    )


def run(arguments: argparse.Namespace) -> int:
    return run_step_command(box_step(arguments, arguments.detector), arguments, index=False)
