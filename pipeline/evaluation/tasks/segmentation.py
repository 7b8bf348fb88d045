"""Segmentation without training: patch features against class names, upsampled; mean intersection over union.

Large images go through a sliding window whose logits are averaged where windows overlap. Sets with a background class
follow one of three rules: ``class`` (words for background are a class of their own), ``threshold`` (a pixel whose best
class has a probability below it is background) or ``none`` (background pixels of the truth are left out).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline.evaluation.class_names import class_embeddings, templates_of
from pipeline.evaluation.features import EncodeSettings, encode_texts, read_image
from pipeline.evaluation.formats.scenes import is_scene_folder, scene_masks
from pipeline.evaluation.formats.segmentation import IGNORE, SegmentationSet, read_segmentation
from pipeline.evaluation.models.base import EvaluationModel, Prepared
from pipeline.evaluation.options.segmentation import SegmentationOptions
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.result_cache import ResultCache
from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.scclip import Calibration

# Words that stand for background where it is a class; this project's own choice.
BACKGROUND_WORDS = {
    "en": ("background", "sky", "wall", "ground", "floor", "grass", "water", "plain backdrop"),
    "zh": ("背景", "天空", "墙", "地面", "地板", "草地", "水面", "纯色背景"),
}
CHUNK = 16  # images whose windows are batched together
Place = tuple[int, int, int, int]  # of a window on the canvas: top, left, height, width, in pixels


@dataclass(frozen=True)
class Windows:
    """How an image is cut. ``window`` None: the whole image as the model's own preparation takes it."""

    window: int | None
    stride: int
    short_side: int | None

    @classmethod
    def of(cls, options: SegmentationOptions, model: EvaluationModel) -> Windows:
        """The options, else the model's habit: CLIP slides over 1.5 times its size, the others take the whole image.

        Raises:
            EvaluationError: a window that is no whole number of patches, or a stride larger than it.
        """
        window, stride, short = options.window, options.stride, options.short_side
        if window is None and model.kind == "clip" and model.image_size is not None:
            window, short = model.image_size, short or model.image_size * 3 // 2
        if window is not None and window % model.patch_size:
            raise EvaluationError(f"window is {window}; it must be a multiple of the patch size, {model.patch_size}")
        stride = stride or (window or 2) // 2
        if window is not None and stride > window:
            raise EvaluationError(f"stride is {stride}, above the window of {window}; pixels between would be left out")
        return cls(window, stride, short)

    def starts(self, length: int) -> list[int]:
        """Where windows begin along a side; the last ends at its end."""
        if self.window is None or length <= self.window:
            return [0]
        return [*range(0, length - self.window, self.stride), length - self.window]


def run(model: EvaluationModel, options: SegmentationOptions, settings: EncodeSettings, ranks: Ranks) -> dict[str, Any]:
    """The task on a folder in one of the layouts, or on scenes."""
    folder = options.one_data()
    if is_scene_folder(folder):  # scenes bring their own prompts, whose mean says nothing but the class
        dataset, templates = scene_masks(folder, options.format)
    else:
        dataset = read_segmentation(folder, options.format, options.split, options.language, options.class_names)
        templates = {}
    if options.templates or not templates:
        templates = {language: templates_of(options, "region") for language in dataset.classes}
    dataset = dataset.limited(options.max_images)
    rule = _rule(options, dataset)
    calibration = Calibration.of(options)
    windows = Windows.of(options, model)
    job = _Job(model, dataset, templates, windows, calibration, rule, options, settings, ranks)
    confusion, faults = job.confusion()
    for number, reason in faults.items():
        dataset.accounting.retract(reason, dataset.images[number].key, 1)
    dataset.accounting.check(options.max_skipped_share)
    names = next(iter(dataset.classes.values())) + (["background"] if rule in ("class", "threshold") else [])
    scores, by_class = intersection_over_union(confusion, names)
    return {
        "scores": scores | {"iou": by_class},
        "settings": job.settings_shown(),
        "accounting": [dataset.accounting.to_json()],
    }


def _rule(options: SegmentationOptions, dataset: SegmentationSet) -> str:
    if options.background == "auto":
        return "threshold" if dataset.has_background else "none"
    if options.background not in ("class", "threshold", "none"):
        raise EvaluationError(f"background is {options.background!r}; it must be auto, class, threshold or none")
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


class _Job:
    """One segmentation of one set: texts once, then chunks of images, each to a confusion matrix."""

    def __init__(
        self,
        model: EvaluationModel,
        dataset: SegmentationSet,
        templates: dict[str, list[str]],
        windows: Windows,
        calibration: Calibration | None,
        rule: str,
        options: SegmentationOptions,
        settings: EncodeSettings,
        ranks: Ranks,
    ) -> None:
        self.model, self.dataset, self.windows, self.calibration = model, dataset, windows, calibration
        self.rule, self.options, self.settings, self.ranks = rule, options, settings, ranks
        self.temperature = options.temperature
        self.threshold = options.background_threshold
        self.templates = templates
        self.texts = {language: self._texts(language, names) for language, names in dataset.classes.items()}

    def _texts(self, language: str, names: list[str]) -> Tensor:
        rows = class_embeddings(self.model, names, self.templates[language], "region", self.ranks)
        if self.rule != "class":
            return rows
        words, row_of = encode_texts(self.model, BACKGROUND_WORDS[language], "region", self.ranks)
        return torch.cat([rows, words[[row_of[word] for word in BACKGROUND_WORDS[language]]]])

    def settings_shown(self) -> dict[str, Any]:
        calibration = self.calibration
        shown = {
            "data": str(self.options.one_data()),
            "format": self.options.format,
            "classes": self.dataset.num_classes,
            "templates": self.templates,
            "window": self.windows.window,
            "stride": self.windows.stride if self.windows.window else None,
            "short_side": self.windows.short_side,
            "background": self.rule,
            "temperature": self.temperature,
            "calibration": None,
        }
        if self.rule == "threshold":
            shown["background_threshold"] = self.threshold
        if self.rule == "class":
            shown["background_words"] = {language: BACKGROUND_WORDS[language] for language in self.dataset.classes}
        if calibration is not None:
            shown["calibration"] = calibration.to_json(self.model.has_class_token)
        return shown

    def confusion(self) -> tuple[Tensor, dict[int, str]]:
        """The whole set's confusion matrix and the images that could not be used, on every rank."""
        size = self.dataset.num_classes + (self.rule in ("class", "threshold"))
        total, faults = torch.zeros(size, size, dtype=torch.long), {}
        images = self.dataset.images
        starts = range(0, len(images), CHUNK)
        cache = ResultCache(self.settings.cache_folder, self.model, self.settings_shown())
        mine = []
        for chunk in self.ranks.share(len(starts)):
            numbers = range(starts[chunk], min(starts[chunk] + CHUNK, len(images)))
            places = [images[number].identity + self.dataset.labels[number].identity for number in numbers]
            mine.append(cache.get([numbers.start, places], partial(self._chunk, numbers, size)))
        for share in self.ranks.gather(mine):
            for part in share:
                total += torch.tensor(part["confusion"])
                faults.update({int(number): reason for number, reason in part["faults"].items()})
        return total, faults

    def _chunk(self, numbers: range, size: int) -> dict[str, Any]:
        confusion, faults = torch.zeros(size, size, dtype=torch.long), {}
        truths: dict[int, np.ndarray] = {}
        loaded: dict[int, Image.Image] = {}
        for number in numbers:
            label = self.dataset.read_label(number)
            image = read_image(self.dataset.images[number], self.settings.max_megapixels)
            if isinstance(image, str) or isinstance(label, str):
                faults[number] = image if isinstance(image, str) else str(label)
            else:
                loaded[number], truths[number] = image, label
        texts = {number: self.texts[self.dataset.languages[number]] for number in loaded}
        sizes = {number: truth.shape for number, truth in truths.items()}
        for number, logits in segment(
            self.model, loaded, texts, self.windows, self.calibration, sizes, self.settings.batch_size
        ):
            predicted = self._decide(logits)
            truth = torch.from_numpy(truths[number])
            known = (truth != IGNORE) & (truth < size)
            pairs = truth[known] * size + predicted[known]
            confusion += torch.bincount(pairs, minlength=size * size).view(size, size)
        return {"confusion": confusion.tolist(), "faults": faults}

    def _decide(self, logits: Tensor) -> Tensor:
        """[C', H, W] cosines -> [H, W] class numbers, background last."""
        count = self.dataset.num_classes
        if self.rule == "class":
            return logits.argmax(0).clamp(max=count)  # all background words count as the one class
        best, predicted = (logits / self.temperature).softmax(0).max(0)
        return torch.where(best < self.threshold, count, predicted) if self.rule == "threshold" else predicted


def segment(
    model: EvaluationModel,
    images: dict[int, Image.Image],
    texts: dict[int, Tensor],
    windows: Windows,
    calibration: Calibration | None,
    sizes: dict[int, tuple[int, int]],
    batch_size: int,
) -> Iterator[tuple[int, Tensor]]:
    """``(number, logits [C, height, width])`` of each image: cosines of its texts, at ``sizes[number]`` pixels."""
    jobs: dict[tuple[int, ...], list[tuple[int, Place, Prepared]]] = {}
    canvas: dict[int, tuple[int, int]] = {}
    for number, image in images.items():
        for place, prepared in _windows(model, image, windows, canvas, number):
            jobs.setdefault(prepared.group, []).append((number, place, prepared))
    parts: dict[int, list[tuple[Place, Tensor]]] = {number: [] for number in images}
    for group in jobs.values():
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            features = model.encode_dense([prepared for _, _, prepared in batch], calibration)
            for row, (number, place, _) in enumerate(batch):
                unit = F.normalize(features.grid(row), dim=-1)  # [h, w, D]
                similarity = unit @ texts[number].to(unit.device).T
                parts[number].append((place, similarity.permute(2, 0, 1)[None].cpu()))
    for number, of_image in parts.items():
        yield number, _stitched(of_image, canvas[number], sizes[number])


def _windows(
    model: EvaluationModel, image: Image.Image, windows: Windows, canvas: dict[int, tuple[int, int]], number: int
) -> Iterator[tuple[Place, Prepared]]:
    """The image's windows as ``((top, left, height, width) on the canvas, prepared)``."""
    if windows.short_side is not None:
        scale = windows.short_side / min(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    canvas[number] = (image.height, image.width)
    if windows.window is None:
        yield (0, 0, image.height, image.width), model.prepare(image, dense=True)
        return
    side = windows.window
    for top in windows.starts(image.height):
        for left in windows.starts(image.width):
            box = (left, top, min(left + side, image.width), min(top + side, image.height))
            yield (top, left, box[3] - top, box[2] - left), model.prepare_window(image.crop(box))


def _stitched(parts: list[tuple[Place, Tensor]], canvas: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Windows' logits on one canvas, averaged where they overlap, at the label's size."""
    if len(parts) == 1:
        return _resized(parts[0][1], size)[0]
    total = torch.zeros(1, parts[0][1].shape[1], *canvas)
    count = torch.zeros(1, 1, *canvas)
    for (top, left, height, width), grid in parts:
        total[..., top : top + height, left : left + width] += _resized(grid, (height, width))
        count[..., top : top + height, left : left + width] += 1
    return _resized(total / count, size)[0]


def _resized(grid: Tensor, size: tuple[int, int]) -> Tensor:
    return grid if tuple(grid.shape[-2:]) == tuple(size) else F.interpolate(grid, size, mode="bilinear")
