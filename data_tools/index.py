"""Write the index and manifest that training plans from.

Reads every *.tar of the folder once, checks each record and image header, and writes SHARD.index.parquet beside each
shard and one manifest.json. Samples with a fault are left out, counted by kind and listed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from pipeline.base.constants import PATCH_BUDGETS

EPILOG = """examples:
  python -m data_tools index shards/train
  python -m data_tools index shards/train --workers 16      # one process a core
  python -m data_tools index shards/train --force           # after shards were changed in place
"""
MAX_LISTED_FAULTS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("folder", help="folder with *.tar shards")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument(
        "--patch-budgets",
        type=int,
        nargs="+",
        default=list(PATCH_BUDGETS),
        help="patch counts that samples are counted by; as data.patch_budgets in training (default: %(default)s)",
    )
    parser.add_argument("--max-megapixels", type=float, default=100.0, help="larger images are left out (default: 100)")
    parser.add_argument("--force", action="store_true", help="read shards again whose index looks up to date")


def run(arguments: argparse.Namespace) -> int:
    from pipeline.data.index import index_folder  # arrow, which --help does without

    def show(name: str, done: int, total: int) -> None:
        print(f"indexed {done}/{total} {name}", file=sys.stderr, flush=True)

    manifest, faults = index_folder(
        arguments.folder,
        arguments.workers,
        patch_budgets=sorted(set(arguments.patch_budgets)),
        force=arguments.force,
        on_shard=show,
        max_megapixels=arguments.max_megapixels,
    )
    for fault in faults[:MAX_LISTED_FAULTS]:
        print(f"left out: {fault}", file=sys.stderr)
    if len(faults) > MAX_LISTED_FAULTS:
        print(f"left out: {len(faults) - MAX_LISTED_FAULTS} more", file=sys.stderr)
    kinds = Counter(fault.kind for fault in faults)
    counted = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "none"
    print(
        f"{manifest.folder}: {len(manifest.shards)} shards, {int(manifest.samples.sum())} samples, "
        f"{int(manifest.regions.sum())} regions, {int(manifest.negatives.sum())} negatives; faults: {counted}"
    )
    return 0
