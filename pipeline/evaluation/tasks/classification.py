"""Zero-shot classification: an image against all class names, each the mean of its prompts; top-1 and top-5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from pipeline.evaluation.accuracy import mean_over_classes, top_hits
from pipeline.evaluation.class_names import class_embeddings, language_of_classes
from pipeline.evaluation.features import EncodeSettings, encode_set
from pipeline.evaluation.formats.classification import LabelledSet, read_class_folders, read_clip_benchmark
from pipeline.evaluation.formats.paths import read_typed_json, text_lines
from pipeline.evaluation.measures import fact
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.classification import ClassificationOptions
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.templates import PACKAGE, open_clip_metadata, templates_of


def run(
    model: EvaluationModel, options: ClassificationOptions, settings: EncodeSettings, ranks: Ranks
) -> dict[str, Any]:
    """The task on a folder of class folders or on CLIP_benchmark's WebDataset layout."""
    images = read_set(options)
    features = encode_set(model, images.images, settings=settings, ranks=ranks, label="images")
    keep = []
    for number, item in enumerate(images.images):
        if number in features.faults:
            images.accounting.retract(features.faults[number], item.key, 1)
        else:
            keep.append(number)
    images.accounting.check(options.max_skipped_share)
    language = language_of_classes(options, images.classes)
    chosen = options.template or options.templates or language != "en"
    templates = images.templates if images.templates and not chosen else templates_of(options, "short", language)
    classes = class_embeddings(model, images.classes, templates, "short", ranks)
    labels = torch.tensor([images.labels[number] for number in keep])
    top1, top5 = top_hits(features.embeds[keep], classes, labels)
    return {
        "scores": {
            "top1": top1.double().mean().item(),
            "top5": top5.double().mean().item(),
            "top1_mean_over_classes": mean_over_classes(top1, labels),
        },
        "facts": {
            "top1": fact(len(labels), 1 / len(images.classes)),
            "top5": fact(len(labels), min(1.0, 5 / len(images.classes))),
            "top1_mean_over_classes": fact(len(labels), 1 / len(images.classes), "mean"),
        },
        "settings": {
            "data": str(options.one_data()),
            "num_classes": len(images.classes),
            "language": language,
            "templates": templates,
            "split": options.split,
        },
        "accounting": [images.accounting.to_json()],
    }


def read_set(options: ClassificationOptions) -> LabelledSet:
    """The set in the format that the options name or that the folder's form shows."""
    folder = options.one_data()
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is no folder; give one folder a class, or CLIP_benchmark's layout")
    form = options.format
    if form == "auto":
        form = "clip-benchmark" if (folder / "classnames.txt").is_file() else "folders"
    if form == "folders":
        return read_class_folders(folder, _folder_names(options.class_names, folder) if options.class_names else None)
    if form != "clip-benchmark":
        raise EvaluationError(f"format is {form!r}; for classification it must be folders or clip-benchmark")
    images = read_clip_benchmark(folder, options.split)
    if options.class_names:
        names = _names_in_order(options.class_names)
        if len(names) != len(images.classes):
            raise EvaluationError(
                f"{options.class_names} has {len(names)} names; give one for each of the {len(images.classes)} classes"
            )
        images.classes = names
    return images


def _names_in_order(path: Path) -> list[str]:
    """ImageNet's of open_clip, or a file's lines."""
    if str(path) == PACKAGE:
        return list(open_clip_metadata().IMAGENET_CLASSNAMES)
    return [line.strip() for line in text_lines(path)]


_FOLDER_NAMES: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


def _folder_names(path: Path, images: Path) -> dict[str, str]:
    """Names by folder: a JSON object, or lines ``FOLDER<tab>NAME`` (ImageNet's ``n01440764<tab>tench``).

    open_clip's names of ImageNet stand in the order of the class folders, which ImageNet-V2 names by their numbers.
    """
    if str(path) == PACKAGE:
        in_order = _names_in_order(path)
        folders = sorted(folder.name for folder in images.iterdir() if folder.is_dir())
        if len(folders) != len(in_order):
            raise EvaluationError(
                f"{images} has {len(folders)} class folders; open_clip names ImageNet's {len(in_order)}; give "
                "--class-names a file for another set"
            )
        if all(folder.isdecimal() for folder in folders):
            folders.sort(key=int)
        return dict(zip(folders, in_order, strict=True))
    if path.suffix.lower() == ".json":
        return read_typed_json(path, _FOLDER_NAMES, "an object of folder -> name")
    names = {}
    for line in text_lines(path):
        folder, tab, name = line.partition("\t")
        if not tab:
            raise EvaluationError(f"{path}: {line!r:.80} has no tab; write FOLDER<tab>NAME a line")
        names[folder.strip()] = name.strip()
    return names
