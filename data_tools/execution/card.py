"""The data card of a folder of shards: what is in it, which steps made it with which settings, what was left out.

Made of the manifest and the shards' reports alone, so it depends on nothing but them: DATA_CARD.md for people,
data_card.json for programs.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from data_tools.execution.shard_work import REPORTS

CARD, CARD_JSON = "DATA_CARD.md", "data_card.json"


def write_card(folder: Path) -> Path:
    """Write both files and return the path of the one for people. The folder must have its manifest."""
    card = collect(folder)
    for name, text in ((CARD_JSON, json.dumps(card, ensure_ascii=False, indent=1)), (CARD, _markdown(card))):
        aside = folder / f".{name}.aside"
        aside.write_text(text, encoding="utf-8")
        aside.replace(folder / name)
    return folder / CARD


def collect(folder: Path) -> dict[str, Any]:
    """Totals of the manifest, and for each step, in order, what went in and out and why not."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    languages: Counter[str] = Counter()
    levels: Counter[str] = Counter()
    for group, numbers in manifest["counts"].items():
        language, _, level = group.partition("/")
        languages[language] += sum(numbers)
        levels[level] += sum(numbers)
    steps: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / REPORTS).glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        for number, entry in enumerate([*report["earlier"], report]):
            made = {key: value for key, value in entry["made_by"].items() if key != "input"}
            # Shards of one folder share their steps; where some were made by another version, both are listed.
            name = f"{number:02d} {json.dumps(made, sort_keys=True, ensure_ascii=False)}"
            step = steps.setdefault(name, {**made, **_empty()})
            step["shards"] += 1
            for field in ("samples_in", "samples_out"):
                step[field] += entry[field]
            step["dropped"].update(drop["reason"] for drop in entry["dropped"])
            step["failed"].update(failure["why"].partition(":")[0] for failure in entry["failed"])
            step["counts"].update(entry["counts"])
    return {
        "shards": len(manifest["shards"]),
        "bytes": sum(manifest["bytes"]),
        "samples": sum(manifest["samples"]),
        "regions": sum(manifest["regions"]),
        "negatives": sum(manifest["negatives"]),
        "languages": dict(sorted(languages.items())),
        "levels": dict(sorted(levels.items(), key=lambda pair: int(pair[0]))),
        "faults": manifest["faults"],
        "steps": [
            {k: dict(sorted(v.items())) if isinstance(v, Counter) else v for k, v in step.items()}
            for _, step in sorted(steps.items())
        ],
    }


def _empty() -> dict[str, Any]:
    counters = {name: Counter() for name in ("dropped", "failed", "counts")}
    return {"shards": 0, "samples_in": 0, "samples_out": 0, **counters}


def _markdown(card: dict[str, Any]) -> str:
    lines = ["# Data card", "", "| what | number |", "|---|---|"]
    for name in ("shards", "bytes", "samples", "regions", "negatives"):
        lines.append(f"| {name} | {card[name]:,} |")
    lines += [f"| samples in {language} | {number:,} |" for language, number in card["languages"].items()]
    lines += [f"| samples of up to {level} patches | {number:,} |" for level, number in card["levels"].items()]
    lines += [f"| left out of the index: {kind} | {number:,} |" for kind, number in card["faults"].items()]
    for step in card["steps"]:
        title = f"{step.get('step', 'read')}, version {step.get('version', '-')}"
        lines += ["", f"## {title}", "", f"{step['samples_in']:,} samples in, {step['samples_out']:,} out."]
        for heading, field in (("Dropped", "dropped"), ("Failed", "failed"), ("Counted", "counts")):
            if step[field]:
                listed = ", ".join(f"{what} {number:,}" for what, number in step[field].items())
                lines += ["", f"{heading}: {listed}."]
        if step.get("settings"):
            lines += ["", "| setting | value |", "|---|---|"]
            lines += [f"| {name} | {_cell(value)} |" for name, value in step["settings"].items()]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")
