"""Regions of clips against one true phrase and K altered ones; top-1 is a hit of the true phrase.

A region's vector is made of the frames where it is there, by the model's temporal transformer or as their mean. Where
the rows say what their phrases change, ``by_attribute/motion`` is the score against those that change the motion alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.clips import encode_clips, frame_choice
from pipeline.evaluation.features import EncodeSettings, encode_texts, usable_rows
from pipeline.evaluation.formats.clips import ClipFolder, ClipSet, clip_phrases, read_clip_rows, read_clips
from pipeline.evaluation.formats.items import ClipRow
from pipeline.evaluation.measures import Facts, share_fact
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.clip_regions import ClipRegionOptions
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.tasks.fgovd import TIES, attribute_scores, chances, row_hits

ROWS_FOLDER = "phrases"  # that data_tools scenes --clips writes beside the test shards
TAGS = {"language": "by_language", "combination": "by_combination", "motion": "by_motion"}


def run(model: EvaluationModel, options: ClipRegionOptions, settings: EncodeSettings, ranks: Ranks) -> dict[str, Any]:
    """The task on a folder of shards with clips."""
    path = options.one_data()
    folder = read_clips(path)
    sets = _sets(options, path, folder)
    rows: list[ClipRow] = []
    spans: dict[str, range] = {}
    for name, found in sets.items():
        mine = [row for row in found.rows if options.language in ("auto", row.tags.get("language"))]
        found.accounting.leave_out("rows_of_other_languages", name, len(found.rows) - len(mine))
        spans[name] = range(len(rows), len(rows) + len(mine))
        rows += mine
    needed = sorted({row.image for row in rows})  # clips that no row speaks of are not encoded
    place = {clip: number for number, clip in enumerate(needed)}
    items = [folder.items[clip] for clip in needed]
    rows = [replace(row, image=place[row.image]) for row in rows]
    choice = frame_choice(model, options.frames, options.single_frame)
    features = encode_clips(model, items, rows, choice=choice, settings=settings, ranks=ranks)
    embeds, row_of = encode_texts(model, [text for row in rows for text in row.texts], "region", ranks)
    scores: dict[str, Any] = {}
    facts: Facts = {}
    for name, span in spans.items():
        accounting = sets[name].accounting
        keep = usable_rows(rows, span, features, items, accounting)
        accounting.unit = f"rows ({name})"
        accounting.check(options.max_skipped_share)
        part, regions = [rows[number] for number in keep], features.regions[keep]
        hits, ties = row_hits(part, regions, embeds, row_of)
        hits = hits | ties if options.ties == "hit" else hits
        accounting.note(TIES[options.ties], name, int(ties.sum()))
        scores[name] = hits.double().mean().item()
        facts[name] = share_fact(hits, chances(part))
        by_attribute = attribute_scores(part, regions, embeds, row_of, options.ties == "hit")
        for attribute, (value, known) in by_attribute.items():
            scores.setdefault("by_attribute", {}).setdefault(attribute, {})[name] = value
            facts[f"by_attribute/{attribute}/{name}"] = known
        _by_tags(name, part, hits, scores, facts)
    return {
        "scores": scores,
        "facts": facts,
        "settings": {
            "data": str(path),
            "rows": [str(file) for file in options.rows],
            "language": options.language,
            "text_path": model.text_path("region"),
            "region_path": model.region_path(),
            "frames": "the middle one" if options.single_frame else choice.most or "all",
            "frames_path": model.frames_path(),
            "ties": TIES[options.ties],
        },
        "accounting": [found.accounting.to_json() for found in sets.values()],
    }


def _by_tags(name: str, rows: list[ClipRow], hits: Tensor, scores: dict[str, Any], facts: Facts) -> None:
    """The same by language, by seen and unseen looks, and by the true motion."""
    for tag, group in TAGS.items():
        for value in sorted({row.tags[tag] for row in rows if tag in row.tags}):
            chosen = torch.tensor([row.tags.get(tag) == value for row in rows])
            scores.setdefault(group, {}).setdefault(value, {})[name] = hits[chosen].double().mean().item()
            of_these = [row for row, is_chosen in zip(rows, chosen.tolist(), strict=True) if is_chosen]
            facts[f"{group}/{value}/{name}"] = share_fact(hits[chosen], chances(of_these))


def _sets(options: ClipRegionOptions, path: Path, folder: ClipFolder) -> dict[str, ClipSet]:
    """Name -> rows: of each file that was given, of the folder beside the shards, or of the records."""
    files: list[Path] = []
    for given in options.rows or ([path / ROWS_FOLDER] if (path / ROWS_FOLDER).is_dir() else []):
        here = sorted(given.glob("*.jsonl")) if given.is_dir() else [given]
        if not here or not all(file.is_file() for file in here):
            raise EvaluationError(f"{given} holds no rows; give --rows JSONL files or a folder of some")
        files += here
    if not files:
        return {"shards": clip_phrases(folder)}
    return {file.stem: read_clip_rows(file, folder.items) for file in files}
