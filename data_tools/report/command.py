"""Write an HTML report about a folder of shards, to look at before spending a month of accelerators.

examples:
  python -m data_tools report shards/train --out report.html
  python -m data_tools report shards/train --out report.html --samples 2000 --per-page 100

It shows images with their boxes drawn, phrases and negatives with the changed words marked, histograms, languages,
how the shards were made, and what was left out and why. The files are self-contained: they can be mailed. Many samples
go into several pages (report-2.html, …), so that a browser opens each at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.report.page import page_names, pages
from data_tools.report.statistics import collect
from pipeline.base.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.html", help="the page")
    parser.add_argument("--samples", type=int, default=24, help="shown with their images (default: 24)")
    parser.add_argument("--per-page", type=int, default=200, help="samples on one page (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of samples (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.samples < 0:
        raise ValueError(f"--samples is {arguments.samples}; it must be 0 or more")
    if arguments.per_page < 1:
        raise ValueError(f"--per-page is {arguments.per_page}; it must be 1 or more")
    statistics = collect(arguments.folder, arguments.samples, arguments.seed)
    names = page_names(arguments.out.name, len(statistics.chosen), arguments.per_page)
    size = 0
    for name, text in zip(names, pages(statistics, names, arguments.per_page), strict=True):
        write_text(arguments.out.with_name(name), text)
        size += len(text)
    more = f" on {len(names)} pages" if len(names) > 1 else ""
    print(f"{arguments.out}: {statistics.samples} images, {len(statistics.chosen)} shown{more}, {size / 1e6:.1f} MB")
    return 0
