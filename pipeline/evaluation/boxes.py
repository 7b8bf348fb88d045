"""Box classification: a region's vector against all class names, top-1 and top-5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.evaluation.class_names import class_embeddings, read_class_names, templates_of
from pipeline.evaluation.features import EncodeSettings, encode_set
from pipeline.evaluation.fgovd import usable_rows
from pipeline.evaluation.formats.items import RegionSet
from pipeline.evaluation.formats.paths import ImageFinder
from pipeline.evaluation.formats.regions import read_instances, shard_objects
from pipeline.evaluation.models import EvaluationModel
from pipeline.evaluation.options import Options
from pipeline.evaluation.ranks import Ranks

READS = ("images", "language", "class_names", "templates")  # options, beside those of all tasks


def run(model: EvaluationModel, options: Options, settings: EncodeSettings, ranks: Ranks) -> dict[str, Any]:
    """The task on COCO or LVIS instances, BoxClass-CN's JSON, or a folder of shards."""
    path = options.one_data()
    found = read_boxes(path, options)
    features = encode_set(model, found.images, found.rows, settings=settings, ranks=ranks, label="box images")
    keep = usable_rows(found.rows, range(len(found.rows)), features, found.images, found.accounting)
    found.accounting.check(options.max_skipped_share)
    templates = templates_of(options, "region")
    classes = class_embeddings(model, found.classes, templates, "region", ranks)
    labels = torch.tensor([found.rows[at].label for at in keep])
    top1, top5 = top_hits(features.regions[keep], classes, labels)
    by_class = [top1[labels == label].double().mean() for label in labels.unique()]
    return {
        "scores": {
            "boxes_top1": top1.double().mean().item(),
            "boxes_top5": top5.double().mean().item(),
            "boxes_top1_mean_over_classes": torch.stack(by_class).mean().item(),
        },
        "settings": {
            "data": str(path),
            "num_classes": len(found.classes),
            "classes_with_boxes": len(by_class),
            "templates": templates,
            "text_path": model.text_path("region"),
            "region_path": model.region_path(),
        },
        "accounting": [found.accounting.to_json()],
    }


def read_boxes(path: Path, options: Options) -> RegionSet:
    """The labelled boxes of ``path``: a folder of shards, or a file of COCO's form."""
    if path.is_dir():
        return shard_objects(path, options.language)
    names = read_class_names(options.class_names) if options.class_names else None
    return read_instances(path, ImageFinder(options.images, path), names)


def top_hits(regions: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[R, D], [C, D], [R] -> bool [R] twice: the label is first, the label is among the first five."""
    best = torch.cat([(part @ classes.T).topk(min(5, len(classes)), dim=1).indices for part in regions.split(4096)])
    found = best == labels[:, None]
    return found[:, 0], found.any(1)
