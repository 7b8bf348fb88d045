"""FG-OVD: a region against one true phrase and K altered ones; top-1 is a hit of the true phrase.

A phrase that scores exactly as the true one (the same text after lower-casing and cutting to the model's length) is
counted as a miss, and such rows are reported as ``ties``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.features import EncodeSettings, SetFeatures, encode_set, encode_texts
from pipeline.evaluation.formats.fgovd import read_fgovd
from pipeline.evaluation.formats.items import ImageItem, RegionRow, RegionSet
from pipeline.evaluation.formats.paths import ImageFinder
from pipeline.evaluation.formats.regions import shard_phrases
from pipeline.evaluation.models import EvaluationModel
from pipeline.evaluation.options import Options
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import Accounting, EvaluationError

READS = ("images", "language")  # options, beside those of all tasks


def row_hits(
    rows: Sequence[RegionRow], regions: Tensor, texts: Tensor, number: dict[str, int]
) -> tuple[Tensor, Tensor]:
    """Per row: is the true phrase first, and did a wrong one tie with it.

    Args:
        regions: [R, D], one a row; texts: [U, D]; number: text -> row of ``texts``.
    Returns:
        two bool tensors [R].
    """
    width = max(len(row.texts) for row in rows)
    index = torch.zeros(len(rows), width, dtype=torch.long)
    filled = torch.zeros(len(rows), width, dtype=torch.bool)
    for at, row in enumerate(rows):
        index[at, : len(row.texts)] = torch.tensor([number[text] for text in row.texts])
        filled[at, : len(row.texts)] = True
    hits, ties = [], []
    for start in range(0, len(rows), 4096):
        part = slice(start, start + 4096)
        scores = torch.einsum("rd,rkd->rk", regions[part], texts[index[part]])
        scores = scores.masked_fill(~filled[part], -torch.inf)
        best_wrong = scores[:, 1:].amax(1)
        hits.append(scores[:, 0] > best_wrong)
        ties.append(scores[:, 0] == best_wrong)
    return torch.cat(hits), torch.cat(ties)


def run(model: EvaluationModel, options: Options, settings: EncodeSettings, ranks: Ranks) -> dict[str, Any]:
    """The task on FG-OVD files (one score a file, by its name), or on regions with negatives of a folder of shards."""
    sets = _sets(options)
    rows, spans = [], {}
    images: dict[str, int] = {}
    items: list[ImageItem] = []
    for name, found in sets.items():
        start = len(rows)
        for row in found.rows:
            item = found.images[row.image]
            if images.setdefault(item.key, len(items)) == len(items):
                items.append(item)
            rows.append(replace(row, image=images[item.key]))
        spans[name] = (range(start, len(rows)), found)
    features = encode_set(model, items, rows, settings=settings, ranks=ranks, label="FG-OVD images")
    embeds, number = encode_texts(model, [text for row in rows for text in row.texts], "region", ranks)
    scores: dict[str, Any] = {}
    for name, (span, found) in spans.items():
        keep = usable_rows(rows, span, features, items, found.accounting)
        found.accounting.unit = f"FG-OVD rows ({name})"
        found.accounting.check(options.max_skipped_share)
        part = [rows[at] for at in keep]
        hits, ties = row_hits(part, features.regions[keep], embeds, number)
        found.accounting.note("ties_counted_as_misses", name, int(ties.sum()))
        scores[name] = hits.double().mean().item()
    return {
        "scores": scores,
        "settings": {
            "data": [str(path) for path in options.data],
            "text_path": model.text_path("region"),
            "region_path": model.region_path(),
            "ties": "count as misses",
        },
        "accounting": [found.accounting.to_json() for _, found in spans.values()],
    }


def _sets(options: Options) -> dict[str, RegionSet]:
    """Name -> rows: of each JSONL given, of every JSONL of a folder, or of shards."""
    files: list[Path] = []
    for path in options.data:
        if path.is_dir() and any(path.glob("*.tar")):
            return {"shards": shard_phrases(path, options.language)}
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not found:
            raise EvaluationError(f"{path} holds neither *.jsonl nor *.tar; give FG-OVD files or a folder of shards")
        files += found
    return {file.stem: read_fgovd(file, ImageFinder(options.images, file)) for file in files}


def usable_rows(
    rows: Sequence[RegionRow], span: range, features: SetFeatures, items: Sequence[ImageItem], accounting: Accounting
) -> list[int]:
    """The rows of ``span`` whose image was read and whose box gave a vector; the others are retracted and counted."""
    keep = []
    for at in span:
        image = rows[at].image
        if image in features.faults:
            accounting.retract(features.faults[image], items[image].key, 1)
        elif not features.region_valid[at]:
            accounting.retract("box_without_area", f"{items[image].key}: {rows[at].box}", 1)
        else:
            keep.append(at)
    return keep
