"""Write a folder's data card: what the shards hold, how they were made, and what was left out.

examples:
  python -m data_tools card shards/train
  python -m data_tools card shards/train --out card.md

data_card.md is for people, data_card.json beside it holds the same numbers. Both say nothing about times or machines:
the same shards give the same card.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_tools.report.command import write_aside
from data_tools.report.statistics import Histogram, Statistics, collect

LANGUAGE_NAMES = {"en": "English", "zh": "Chinese"}
NAME = "data_card.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help=f"(default: {NAME} in the folder)")


def run(arguments: argparse.Namespace) -> int:
    path = write_data_card(arguments.folder, arguments.out)
    print(f"wrote {path} and {path.with_suffix('.json')}")
    return 0


def write_data_card(folder: Path, out: Path | None = None) -> Path:
    """Write the card and its JSON; returns the card's path.

    Raises:
        ValueError: there are no shards in ``folder``. OSError: a shard is damaged or the disk is full.
    """
    path = out if out is not None else folder / NAME
    if path.suffix == ".json":
        raise ValueError(f"--out is {path}; the card is Markdown and its JSON gets the same name, give a name in .md")
    statistics = collect(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path.with_suffix(".json"), json.dumps(statistics.to_json(), ensure_ascii=False, indent=1) + "\n")
    write_aside(path, card_text(statistics))
    return path


def card_text(statistics: Statistics) -> str:
    """The card in Markdown."""
    fields = statistics.fields
    parts = [f"# Data card of {Path(statistics.folder).name}", "", "## Counts", ""]
    counts = [("shards", statistics.shards), ("images", statistics.samples)]
    counts += [(f"in {LANGUAGE_NAMES[name]}", number) for name, number in sorted(statistics.languages.items())]
    names = ("short_captions", "long_captions", "phrases in captions", "regions", "long phrases")
    counts += [(name.replace("_", " "), fields[name]) for name in (*names, "regions with negatives", "negatives")]
    counts.append(("categories", len(statistics.categories)))
    parts += _table(("what", "number"), counts)
    parts += ["", "## What the negatives change", ""]
    if statistics.attributes:
        total = statistics.attributes.total()
        rows = [(name, number, f"{100 * number / total:.1f} %") for name, number in statistics.attributes.most_common()]
        parts += [f"Of {total:,} negatives of {statistics.attribute_regions:,} regions.", ""]
        parts += _table(("attribute", "negatives", "share"), rows)
    else:
        parts.append("There are no negatives.")
    parts += ["", "## Distributions", ""]
    distributions = [_quartiles(histogram) for histogram in statistics.histograms.values() if histogram.total]
    parts += _table(("what", "number", "half lie below", "nine tenths lie below"), distributions)
    parts += ["", "## How it was made", ""]
    for number, step in enumerate(statistics.made_by, start=1):
        parts += _step(number, step)
    if not statistics.made_by:
        parts += ["The folder holds no reports of steps; other tools made it.", ""]
    if statistics.faults:
        parts += ["## Unreadable records", "", *_table(("reason", "number"), sorted(statistics.faults.items())), ""]
    return "\n".join(parts).rstrip() + "\n"


def _step(number: int, step: dict[str, Any]) -> list[str]:
    parts = [f"### {number}. {step['step']}, version {step['version']}", ""]
    parts += [f"{step['samples_in']:,} samples in, {step['samples_out']:,} out. Settings:", "", "```json"]
    parts += [json.dumps(step["settings"], ensure_ascii=False, indent=1), "```", ""]
    for title, name in (("Dropped", "dropped"), ("Failed", "failed"), ("Counted", "counts")):
        if step[name]:
            parts += [f"{title}:", "", *_table(("reason", "number"), sorted(step[name].items())), ""]
    return parts


def _quartiles(histogram: Histogram) -> tuple[str, int, str, str]:
    """Upper bounds from the bins: nothing finer was kept."""
    bounds = []
    for share in (0.5, 0.9):
        seen = 0
        for number, count in enumerate(histogram.counts):
            seen += count
            if seen >= share * histogram.total:
                last = number + 1 == len(histogram.edges)
                bounds.append("above the last bin" if last else f"{histogram.edges[number + 1]:g}")
                break
    return (f"{histogram.title} ({histogram.unit})", histogram.total, *bounds)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return lines
