"""FG-OVD: a region against one true phrase and K altered ones; top-1 is a hit of the true phrase.

A wrong phrase can score exactly as the true one (the same text after lower-casing and cutting to the model's length).
Such ties are reported, and count as misses unless the options say otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.features import EncodeSettings, encode_set, encode_texts, usable_rows
from pipeline.evaluation.formats.fgovd import read_fgovd
from pipeline.evaluation.formats.items import ImageItem, RegionRow, RegionSet
from pipeline.evaluation.formats.paths import ImageFinder, expecting
from pipeline.evaluation.formats.regions import shard_phrases
from pipeline.evaluation.measures import Facts, share_fact
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.fgovd import FGOVDOptions
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import EvaluationError
from pipeline.tracking.score_table import DIFFICULTIES

TIES = {"miss": "ties_counted_as_misses", "hit": "ties_counted_as_hits"}


def row_hits(
    rows: Sequence[RegionRow], regions: Tensor, texts: Tensor, row_of: dict[str, int]
) -> tuple[Tensor, Tensor]:
    """Per row: is the true phrase first, and did a wrong one tie with it.

    Args:
        regions: [R, D], one a row; texts: [U, D]; row_of: text -> row of ``texts``.
    Returns:
        two bool tensors [R].
    """
    width = max(len(row.texts) for row in rows)
    index = torch.zeros(len(rows), width, dtype=torch.long)
    filled = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        index[number, : len(row.texts)] = torch.tensor([row_of[text] for text in row.texts])
        filled[number, : len(row.texts)] = True
    hits, ties = [], []
    for start in range(0, len(rows), 4096):
        part = slice(start, start + 4096)
        scores = torch.einsum("rd,rkd->rk", regions[part], texts[index[part]])
        scores = scores.masked_fill(~filled[part], -torch.inf)
        best_wrong = scores[:, 1:].amax(1)
        hits.append(scores[:, 0] > best_wrong)
        ties.append(scores[:, 0] == best_wrong)
    return torch.cat(hits), torch.cat(ties)


def chances(rows: Sequence[RegionRow]) -> list[float]:
    """What guessing gives for each row."""
    return [1 / len(row.texts) for row in rows]


def attribute_scores(
    rows: Sequence[RegionRow], regions: Tensor, texts: Tensor, row_of: dict[str, int], tie_is_hit: bool = False
) -> dict[str, tuple[float, dict[str, Any]]]:
    """Score and facts by attribute: rows against those of their wrong phrases alone that change it.

    Empty where the file does not say what its phrases change (``neg_attribute``).
    """
    names = sorted({name for row in rows for name in row.tags.get("changed", ())})
    found = {}
    for name in names:
        keep, part = [], []
        for number, row in enumerate(rows):
            wrong = [text for text, of in zip(row.texts[1:], row.tags.get("changed", ()), strict=False) if of == name]
            if wrong:
                keep.append(number)
                part.append(replace(row, texts=(row.texts[0], *wrong)))
        hits, ties = row_hits(part, regions[keep], texts, row_of)
        hits = hits | ties if tie_is_hit else hits
        found[name] = (hits.double().mean().item(), share_fact(hits, chances(part)))
    return found


def run(model: EvaluationModel, options: FGOVDOptions, settings: EncodeSettings, ranks: Ranks) -> dict[str, Any]:
    """The task on FG-OVD files (one score a file, by its name), or on regions with negatives of a folder of shards."""
    sets = _sets(options)
    rows: list[RegionRow] = []
    spans: dict[str, tuple[range, RegionSet]] = {}
    images: dict[str, int] = {}
    items: list[ImageItem] = []
    for name, regions in sets.items():
        start = len(rows)
        for row in regions.rows:
            item = regions.images[row.image]
            if images.setdefault(item.key, len(items)) == len(items):
                items.append(item)
            rows.append(replace(row, image=images[item.key]))
        spans[name] = (range(start, len(rows)), regions)
    features = encode_set(model, items, rows, settings=settings, ranks=ranks, label="FG-OVD images")
    embeds, row_of = encode_texts(model, [text for row in rows for text in row.texts], "region", ranks)
    scores: dict[str, Any] = {}
    facts: Facts = {}
    for name, (span, regions) in spans.items():
        keep = usable_rows(rows, span, features, items, regions.accounting)
        regions.accounting.unit = f"FG-OVD rows ({name})"
        regions.accounting.check(options.max_skipped_share)
        part = [rows[number] for number in keep]
        hits, ties = row_hits(part, features.regions[keep], embeds, row_of)
        if options.ties == "hit":
            hits = hits | ties
        regions.accounting.note(TIES[options.ties], name, int(ties.sum()))
        scores[name] = hits.double().mean().item()
        facts[name] = share_fact(hits, chances(part))
        by_attribute = attribute_scores(part, features.regions[keep], embeds, row_of, options.ties == "hit")
        for attribute, (value, known) in by_attribute.items():
            scores.setdefault("by_attribute", {}).setdefault(attribute, {})[name] = value
            facts[f"by_attribute/{attribute}/{name}"] = known
    return {
        "scores": scores,
        "facts": facts,
        "settings": {
            "data": [str(path) for path in options.data],
            "text_path": model.text_path("region"),
            "region_path": model.region_path(),
            "ties": TIES[options.ties],
        },
        "accounting": [regions.accounting.to_json() for _, regions in spans.values()],
    }


def _difficulty(file: Path) -> tuple[int, str]:
    """Hard before easy, then by name."""
    known = DIFFICULTIES.index(file.stem) if file.stem in DIFFICULTIES else len(DIFFICULTIES)
    return known, file.stem


def _sets(options: FGOVDOptions) -> dict[str, RegionSet]:
    """Name -> rows: of each JSONL given, of every JSONL of a folder, or of shards."""
    files: list[Path] = []
    for path in options.data:
        if path.is_dir() and any(path.glob("*.tar")):
            return {"shards": shard_phrases(path, options.language)}
        here = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not here:
            raise EvaluationError(f"{path} holds neither *.jsonl nor *.tar; give FG-OVD files or a folder of shards")
        files += sorted(here, key=_difficulty)
    sets = {}
    for file in files:
        with expecting(file, "FG-OVD"):
            sets[file.stem] = read_fgovd(file, ImageFinder(options.images, file))
    return sets
