"""Write a folder's data card: what the shards hold, how they were made, and what was left out.

examples:
  python -m data_tools card shards/train
  python -m data_tools card shards/train --out card.md

DATA_CARD.md is for people, data_card.json beside it holds the same numbers. Both say nothing about times or machines:
the same shards give the same card. A build writes it at its end.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_tools.report.statistics import Histogram, Statistics, collect
from pipeline.base.constants import DATA_CARD, DATA_CARD_JSON
from pipeline.base.files import write_json, write_text
from pipeline.data.manifest import MANIFEST_NAME, load_manifest

LANGUAGE_NAMES = {"en": "English", "zh": "Chinese"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help=f"(default: {DATA_CARD} in the folder)")


def run(arguments: argparse.Namespace) -> int:
    path = write_card(arguments.folder, arguments.out)
    print(f"wrote {path} and {_json_beside(path)}")
    return 0


def write_card(folder: Path, out: Path | None = None) -> Path:
    """Write the card and its JSON; returns the card's path.

    Raises:
        ValueError: there are no shards in ``folder``. OSError: a shard is damaged or the disk is full.
    """
    path = out if out is not None else folder / DATA_CARD
    if path.suffix == ".json":
        raise ValueError(f"--out is {path}; the card is Markdown and its JSON gets the same name, give a name in .md")
    statistics, indexed = collect(folder), _indexed(folder)
    write_json(_json_beside(path), {**statistics.to_json(), **indexed})
    write_text(path, card_text(statistics, indexed))
    return path


def _json_beside(path: Path) -> Path:
    return path.with_name(DATA_CARD_JSON) if path.name == DATA_CARD else path.with_suffix(".json")


def _indexed(folder: Path) -> dict[str, Any]:
    """What the manifest adds: bytes, samples by patch budget, and what the index left out; nothing without one."""
    if not (folder / MANIFEST_NAME).is_file():
        return {}
    manifest = load_manifest(folder)
    by_budget = manifest.by_budget().tolist()
    budgets = {str(budget): count for budget, count in zip(manifest.patch_budgets, by_budget, strict=True) if count}
    return {
        "bytes": int(manifest.sizes.sum()),
        "patch_budgets": budgets,
        "left_out_of_the_index": dict(sorted(manifest.faults.items())),
    }


def card_text(statistics: Statistics, indexed: dict[str, Any]) -> str:
    """The card in Markdown."""
    fields = statistics.fields
    parts = [f"# Data card of {Path(statistics.folder).name}", "", "## Counts", ""]
    counts = [("shards", statistics.shards), ("images", statistics.samples)]
    counts += [
        (f"in {LANGUAGE_NAMES.get(name, name)}", number) for name, number in sorted(statistics.languages.items())
    ]
    if fields["clips"]:
        counts += [(f"of these {name}", fields[name]) for name in ("clips", "frames of clips")]
    names = ("short_captions", "long_captions", "phrases in captions", "regions", "long phrases")
    counts += [(name.replace("_", " "), fields[name]) for name in (*names, "regions with negatives", "negatives")]
    counts.append(("categories", len(statistics.categories)))
    counts += [(f"of up to {budget} patches", number) for budget, number in indexed.get("patch_budgets", {}).items()]
    counts += [("bytes", indexed["bytes"])] if indexed else []
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
    left_out = Counter(indexed.get("left_out_of_the_index", {})) | statistics.faults
    if left_out:
        parts += ["## Left out of the index", "", *_table(("reason", "number"), sorted(left_out.items())), ""]
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
    bounds: list[str] = []
    for share in (0.5, 0.9):
        seen = 0
        for number, count in enumerate(histogram.counts):
            seen += count
            if seen >= share * histogram.total:
                last = number + 1 == len(histogram.edges)
                bounds.append("above the last bin" if last else f"{histogram.edges[number + 1]:g}")
                break
    return (f"{histogram.title} ({histogram.unit})", histogram.total, bounds[0], bounds[1])


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return lines
