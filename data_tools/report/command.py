"""Write one HTML page about a folder of shards, to look at before spending a month of accelerators.

examples:
  python -m data_tools report shards/train --out report.html
  python -m data_tools report shards/train --out report.html --samples 60 --seed 7

It shows images with their boxes drawn, phrases and negatives with the changed words marked, histograms, languages,
how the shards were made, and what was left out and why. The file is self-contained: it can be mailed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.report.page import page
from data_tools.report.statistics import collect
from pipeline.base.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.html", help="the page")
    parser.add_argument("--samples", type=int, default=24, help="shown with their images (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of samples (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.samples < 0:
        raise ValueError(f"--samples is {arguments.samples}; it must be 0 or more")
    statistics = collect(arguments.folder, arguments.samples, arguments.seed)
    text = page(statistics)
    write_text(arguments.out, text)
    print(f"{arguments.out}: {statistics.samples} images, {len(statistics.chosen)} shown, {len(text) / 1e6:.1f} MB")
    return 0
