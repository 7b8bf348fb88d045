"""Box classification: a region's vector against all class names, top-1 and top-5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.evaluation.accuracy import mean_over_classes, top_hits
from pipeline.evaluation.class_names import class_embeddings, language_of_classes, read_class_names
from pipeline.evaluation.features import EncodeSettings, encode_set, usable_rows
from pipeline.evaluation.formats.items import RegionSet
from pipeline.evaluation.formats.paths import ImageFinder, expecting
from pipeline.evaluation.formats.regions import read_instances, shard_objects
from pipeline.evaluation.measures import fact
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.boxes import BoxOptions
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.templates import templates_of


def run(model: EvaluationModel, options: BoxOptions, settings: EncodeSettings, ranks: Ranks) -> dict[str, Any]:
    """The task on COCO or LVIS instances, BoxClass-CN's JSON, or a folder of shards."""
    path = options.one_data()
    boxes = read_boxes(path, options)
    features = encode_set(model, boxes.images, boxes.rows, settings=settings, ranks=ranks, label="box images")
    keep = usable_rows(boxes.rows, range(len(boxes.rows)), features, boxes.images, boxes.accounting)
    boxes.accounting.check(options.max_skipped_share)
    templates = templates_of(options, "region", language_of_classes(options, boxes.classes))
    classes = class_embeddings(model, boxes.classes, templates, "region", ranks)
    labels = torch.tensor([boxes.rows[number].label for number in keep])
    top1, top5 = top_hits(features.regions[keep], classes, labels)
    return {
        "scores": {
            "boxes_top1": top1.double().mean().item(),
            "boxes_top5": top5.double().mean().item(),
            "boxes_top1_mean_over_classes": mean_over_classes(top1, labels),
        },
        "facts": {
            "boxes_top1": fact(len(labels), 1 / len(boxes.classes)),
            "boxes_top5": fact(len(labels), min(1.0, 5 / len(boxes.classes))),
            "boxes_top1_mean_over_classes": fact(len(labels), 1 / len(boxes.classes), "mean"),
        },
        "settings": {
            "data": str(path),
            "num_classes": len(boxes.classes),
            "classes_with_boxes": len(labels.unique()),
            "templates": templates,
            "crowds": options.crowds,
            "image_folder": options.image_folder,
            "text_path": model.text_path("region"),
            "region_path": model.region_path(),
        },
        "accounting": [boxes.accounting.to_json()],
    }


def read_boxes(path: Path, options: BoxOptions) -> RegionSet:
    """The labelled boxes of ``path``: a folder of shards, or a file of COCO's form."""
    if path.is_dir():
        return shard_objects(path, options.language)
    names = read_class_names(options.class_names) if options.class_names else None
    find = ImageFinder(options.images, path)
    with expecting(path, "COCO or LVIS instances"):
        return read_instances(path, find, names, crowds=options.crowds == "evaluate", image_folder=options.image_folder)
