"""Embed images or boxes with a trained model: Parquet files with keys and unit vectors, and a manifest.

Data are folders of shards, folders of images, single images, or lists of boxes (.jsonl, a line as
{"image": "a/b.jpg", "boxes": [[x1, y1, x2, y2]]}, fractions of the image; paths from the list's folder).
Started again, it goes on from the files that are there. Under torchrun, deepspeed or srun, or with RANK and WORLD_SIZE
set by hand, every process takes its share of the parts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.base.commands import command_parser, run_command
from pipeline.base.ranks import read_rank_info

EXAMPLES = """examples:
  python -m pipeline.embed runs/stage2 --data shards/coco --out embeddings/coco
  python -m pipeline.embed my-model --data 照片 more/photos --dtype float16 --out embeddings/photos
  python -m pipeline.embed runs/stage2 --data shards/coco --regions --out embeddings/regions
  torchrun --nproc-per-node 8 -m pipeline.embed my-model --data images --device cuda --out embeddings/images
"""


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    return run_command(
        lambda: _embed(arguments),
        (ValueError, OSError),
        interrupted=f"stopped; what is written in {arguments.out} is kept, and the same command goes on",
    )


def _embed(arguments: argparse.Namespace) -> int:
    from pipeline.embed.embed import EmbedSettings, embed  # torch takes seconds to import, and --help needs none
    from pipeline.embed.sources import parts_of
    from pipeline.evaluation.models.load import load_model

    if arguments.rows_per_file < 1 or arguments.batch_size < 1:
        raise ValueError("--rows-per-file and --batch-size must be 1 or more")
    ranks = read_rank_info()
    parts = parts_of(arguments.data, arguments.rows_per_file, arguments.regions)
    device = f"cuda:{ranks.local_rank}" if arguments.device == "cuda" else arguments.device
    model = load_model(arguments.model, device=device, dtype=arguments.precision)
    settings = EmbedSettings(arguments.dtype, arguments.batch_size, arguments.threads)
    done = embed(model, parts, arguments.out, settings, ranks)
    missing = "" if done.is_whole else f"; {done.of_parts - done.parts} parts are with other processes"
    print(f"{arguments.out}: {done.rows} embeddings in {done.parts} files{missing}")
    for reason, count in sorted(done.left_out.items()):
        print(f"left out: {count} for {reason}", file=sys.stderr)
    return 1 if done.left_out else 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m pipeline.embed", __doc__, EXAMPLES)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run's folder, a checkpoint's export, or a Hugging Face model folder")
    add("--data", nargs="+", required=True, type=Path, metavar="PATH", help="shards, folders, images or lists")
    add("--out", required=True, type=Path, metavar="FOLDER", help="for the Parquet files")
    add("--regions", action="store_true", help="of shards: one row a region, not one an image")
    add("--dtype", choices=("float32", "float16"), default="float32", help="of the written vectors (default: float32)")
    add("--precision", choices=("float32", "bfloat16", "float16"), default="float32", help="of the model")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--batch-size", type=int, default=32, help="images (default: 32)")
    add("--threads", type=int, default=2, help="that decode (default: 2)")
    add("--rows-per-file", type=int, default=4096, help="images or lines a file; a shard is one (default: 4096)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
