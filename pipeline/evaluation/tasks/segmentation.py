"""Segmentation without training: patch features against class names, upsampled; mean intersection over union.

Large images go through a sliding window (``windows.py``). A class may have several names, of which the best counts.
Sets with a background class follow a rule: ``class`` (words for background are a class of their own), ``threshold`` (a
pixel whose best class has a probability below it is background), ``class-and-threshold`` (both, as SC-CLIP does) or
``none`` (background pixels of the truth are left out).

Letters: C classes, Q names of all classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.base.files import write_aside
from pipeline.evaluation.class_names import class_embeddings
from pipeline.evaluation.features import EncodeSettings, encode_texts, read_image
from pipeline.evaluation.finite import not_finite
from pipeline.evaluation.formats.scenes import is_scene_folder, scene_masks
from pipeline.evaluation.formats.segmentation import IGNORE, SegmentationSet, read_segmentation
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.segmentation import SegmentationOptions
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.result_cache import ResultCache
from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.scclip import Calibration
from pipeline.evaluation.templates import templates_of
from pipeline.evaluation.windows import Windows, segment

# Words that stand for background where it is a class and the list of names has none; this project's own choice.
BACKGROUND_WORDS = {
    "en": ("background", "sky", "wall", "ground", "floor", "grass", "water", "plain backdrop"),
    "zh": ("背景", "天空", "墙", "地面", "地板", "草地", "水面", "纯色背景"),
}
CHUNK = 16  # images whose windows are batched together
WITH_WORDS = ("class", "class-and-threshold")
WITH_THRESHOLD = ("threshold", "class-and-threshold")


def run(model: EvaluationModel, options: SegmentationOptions, settings: EncodeSettings, ranks: Ranks) -> dict[str, Any]:
    """The task on a folder in one of the layouts, or on scenes."""
    folder = options.one_data()
    templates: dict[str, list[str]] = {}
    if is_scene_folder(folder):  # scenes bring their own prompts, whose mean says nothing but the class
        dataset, templates = scene_masks(folder, options.format)
    else:
        dataset = read_segmentation(folder, options.format, options.split, options.language, options.class_names)
    if options.template or options.templates or not templates:
        templates = {language: templates_of(options, "region", language) for language in dataset.classes}
    dataset = dataset.limited(options.max_images)
    job = _Job(model, dataset, templates, options, settings, ranks)
    confusion, faults = job.confusion()
    for number, reason in faults.items():
        dataset.accounting.retract(reason, dataset.images[number].key, 1)
    dataset.accounting.check(options.max_skipped_share)
    names = next(iter(dataset.classes.values())) + (["background"] if job.rule != "none" else [])
    scores, by_class = intersection_over_union(confusion, names)
    return {
        "scores": scores | {"iou": by_class},
        "settings": job.settings_shown(),
        "accounting": [dataset.accounting.to_json()],
    }


def background_rule(options: SegmentationOptions, dataset: SegmentationSet) -> str:
    """The rule in force.

    Raises:
        EvaluationError: a rule for a background that the set does not have.
    """
    if options.background == "auto":
        return "threshold" if dataset.has_background else "none"
    if options.background != "none" and not dataset.has_background:
        raise EvaluationError(f"background is {options.background!r}, but this set has no background; use none")
    return options.background


def intersection_over_union(confusion: Tensor, names: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """mIoU and pixel accuracy, and IoU by class, of a confusion matrix [truth, prediction].

    Classes that neither the truth nor the prediction holds are left out of the mean.
    """
    confusion = confusion.double()
    hit = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hit
    seen = union > 0
    iou = hit / union.clamp(min=1)
    scores = {"miou": iou[seen].mean().item(), "pixel_accuracy": (hit.sum() / confusion.sum().clamp(min=1)).item()}
    return scores, {name: iou[number].item() for number, name in enumerate(names) if seen[number]}


@dataclass(frozen=True)
class Queries:
    """The names of all classes, Q of them: their vectors and the class each stands for (C: background)."""

    embeds: Tensor  # [Q, D]
    class_of: Tensor  # [Q]


def decide(logits: Tensor, queries: Queries, num_classes: int, rule: str, options: SegmentationOptions) -> Tensor:
    """[Q, H, W] cosines -> [H, W] class numbers, background as ``num_classes``.

    The probabilities are a softmax over all Q names; a class has that of its best one. Where ``area_threshold`` is
    given, a class that covers no more than that share of all that is not background is dropped.
    """
    probabilities = (logits * options.logit_scale).softmax(0)
    # Background first: of two equal ones the first wins, as in the published code
    order = [*([num_classes] if rule in WITH_WORDS else []), *range(num_classes)]
    of_class = torch.stack([probabilities[queries.class_of == number].amax(0) for number in order])
    numbers = torch.tensor(order)
    if options.area_threshold is not None:
        foreground = numbers[of_class.argmax(0)].flatten()
        area = torch.bincount(foreground[foreground < num_classes], minlength=num_classes)
        large = torch.cat([area > options.area_threshold * area.sum(), torch.tensor([True])])
        of_class = of_class * large[numbers][:, None, None]
    best, position = of_class.max(0)
    predicted = numbers[position]
    if rule not in WITH_THRESHOLD:
        return predicted
    return torch.where(best < options.background_threshold, num_classes, predicted)


class _Job:
    """One segmentation of one set: texts once, then chunks of images, each to a confusion matrix."""

    def __init__(
        self,
        model: EvaluationModel,
        dataset: SegmentationSet,
        templates: dict[str, list[str]],
        options: SegmentationOptions,
        settings: EncodeSettings,
        ranks: Ranks,
    ) -> None:
        self.model, self.dataset, self.templates = model, dataset, templates
        self.options, self.settings, self.ranks = options, settings, ranks
        self.rule = background_rule(options, dataset)
        self.windows, self.calibration = Windows.of(options, model), Calibration.of(options)
        self.words = {language: dataset.background_words or BACKGROUND_WORDS[language] for language in dataset.classes}
        self.queries = {language: self._queries(language) for language in dataset.classes}

    def _queries(self, language: str) -> Queries:
        names = self.dataset.names(language)
        flat = [name for synonyms in names for name in synonyms]
        class_of = [number for number, synonyms in enumerate(names) for _ in synonyms]
        templates = self.templates[language]
        embeds = class_embeddings(self.model, flat, templates, "region", self.ranks)
        if self.rule in WITH_WORDS:
            words = self.words[language]
            if self.dataset.background_words:  # the list's own are prompted as its other names are
                embeds = torch.cat([embeds, class_embeddings(self.model, words, templates, "region", self.ranks)])
            else:
                own, row_of = encode_texts(self.model, words, "region", self.ranks)
                embeds = torch.cat([embeds, own[[row_of[word] for word in words]]])
            class_of += [self.dataset.num_classes] * len(words)
        return Queries(embeds, torch.tensor(class_of))

    def settings_shown(self) -> dict[str, Any]:
        """All that influences a score."""
        options, calibration = self.options, self.calibration
        shown = {
            "data": str(options.one_data()),
            "format": options.format,
            "classes": self.dataset.num_classes,
            "class_names": {language: self.dataset.names(language) for language in self.dataset.classes},
            "templates": self.templates,
            "window": self.windows.window,
            "stride": self.windows.stride if self.windows.window else None,
            "short_side": self.windows.short_side,
            "resampling": self.windows.resampling if self.windows.short_side else None,
            "background": self.rule,
            "logit_scale": options.logit_scale,
            "area_threshold": options.area_threshold,
            "calibration": None if calibration is None else calibration.to_json(self.model.has_class_token),
        }
        if self.rule in WITH_THRESHOLD:
            shown["background_threshold"] = options.background_threshold
        if self.rule in WITH_WORDS:
            shown["background_words"] = self.words
        return shown

    def confusion(self) -> tuple[Tensor, dict[int, str]]:
        """The whole set's confusion matrix and the images that could not be used, on every rank."""
        size = self.dataset.num_classes + (self.rule != "none")
        total = torch.zeros(size, size, dtype=torch.long)
        faults: dict[int, str] = {}
        images = self.dataset.images
        starts = range(0, len(images), CHUNK)
        # A chunk of the cache would write no predictions
        folder = None if self.options.predictions else self.settings.cache_folder
        cache = ResultCache(folder, self.model, self.settings_shown())
        mine = []
        for chunk in self.ranks.share(len(starts)):
            numbers = range(starts[chunk], min(starts[chunk] + CHUNK, len(images)))
            files = [images[number].identity + self.dataset.labels[number].identity for number in numbers]
            mine.append(cache.get([numbers.start, files], partial(self._chunk, numbers, size)))
        parts = [part for share in self.ranks.gather(mine) for part in share]
        if bad := [key for part in parts for key in part["not_finite"]]:
            raise not_finite(f"patch features of {len(bad)} of {len(images)} images (first: {bad[0]!r})")
        for part in parts:
            total += torch.tensor(part["confusion"])
            faults.update({int(number): reason for number, reason in part["faults"].items()})
        return total, faults

    def _chunk(self, numbers: range, size: int) -> dict[str, Any]:
        confusion, faults = torch.zeros(size, size, dtype=torch.long), {}
        bad: list[str] = []
        truths: dict[int, np.ndarray] = {}
        loaded: dict[int, Image.Image] = {}
        for number in numbers:
            label = self.dataset.read_label(number)
            image = read_image(self.dataset.images[number], self.settings.max_megapixels)
            if isinstance(image, str) or isinstance(label, str):
                faults[number] = image if isinstance(image, str) else str(label)
            else:
                loaded[number], truths[number] = image, label
        queries = {number: self.queries[self.dataset.languages[number]] for number in loaded}
        texts = {number: one.embeds for number, one in queries.items()}
        sizes = {number: (truth.shape[0], truth.shape[1]) for number, truth in truths.items()}
        for number, logits in segment(
            self.model, loaded, texts, self.windows, self.calibration, sizes, self.settings.batch_size
        ):
            if not logits.isfinite().all():
                bad.append(self.dataset.images[number].key)
                continue
            predicted = decide(logits, queries[number], self.dataset.num_classes, self.rule, self.options)
            if self.options.predictions is not None:
                self._write(number, predicted, self.options.predictions)
            truth = torch.from_numpy(truths[number])
            known = (truth != IGNORE) & (truth < size)
            pairs = truth[known] * size + predicted[known]
            confusion += torch.bincount(pairs, minlength=size * size).view(size, size)
        return {"confusion": confusion.tolist(), "faults": faults, "not_finite": bad}

    def _write(self, number: int, predicted: Tensor, folder: Path) -> None:
        """A PNG with the values that the set's own label files have."""
        values = torch.tensor(self.dataset.file_values())[predicted].numpy().astype(np.uint8)
        with write_aside(folder / f"{self.dataset.images[number].key}.png") as partial_file:
            Image.fromarray(values).save(partial_file, format="PNG")
