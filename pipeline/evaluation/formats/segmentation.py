"""Folders of images and class masks: VOC, Pascal Context, ADE20K, COCO-Stuff and -Object, Cityscapes, and scenes.

The layouts are those that segmentation toolboxes prepare, named in LAYOUTS. Class names are the sets' own, in English;
``--class-names`` replaces them (one a line), for other wordings and for Chinese.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.evaluation.formats.items import ImageItem
from pipeline.evaluation.formats.language import language_of
from pipeline.evaluation.formats.paths import read_json, text_lines
from pipeline.evaluation.results import Accounting, EvaluationError

IGNORE = 65535  # of a label map as read here; no set has so many classes
FILE_IGNORE = 255  # what all these sets write for pixels without a class
CLASS_LISTS = Path(__file__).with_name("class_lists.json")


@dataclass(frozen=True)
class Layout:
    """Where a set keeps things. ``zero``: what label 0 means, ``background``, ``ignore``, or ``class`` (the first)."""

    images: str
    image_ending: str
    labels: str
    label_ending: str
    names: str
    zero: str
    listing: str | None = None  # file of image names; None: all images that have labels


LAYOUTS = {
    "voc": Layout("JPEGImages", ".jpg", "SegmentationClass", ".png", "voc", "background", "Segmentation"),
    "pascal-context": Layout(
        "JPEGImages", ".jpg", "SegmentationClassContext", ".png", "pascal-context", "background", "SegmentationContext"
    ),
    "ade20k": Layout("images/validation", ".jpg", "annotations/validation", ".png", "ade20k", "ignore"),
    "coco-stuff": Layout("images/val2017", ".jpg", "annotations/val2017", "_labelTrainIds.png", "coco-stuff", "class"),
    "coco-object": Layout(
        "images/val2017", ".jpg", "annotations/val2017", "_instanceTrainIds.png", "coco-object", "background"
    ),
    "cityscapes": Layout(
        "leftImg8bit/val", "_leftImg8bit.png", "gtFine/val", "_gtFine_labelTrainIds.png", "cityscapes", "class"
    ),
}


@dataclass
class SegmentationSet:
    """Images with label maps. Classes are numbered from 0; ``has_background``: a further class, the last number."""

    images: list[ImageItem]
    labels: list[ImageItem]
    classes: dict[str, list[str]]  # by language
    languages: list[str]  # of each image
    zero: str
    accounting: Accounting
    class_of_value: tuple[int, ...] | None = None  # what the label files' values stand for; None: themselves
    synonyms: list[tuple[str, ...]] | None = None  # names by class where a class has several; None: ``classes``
    background_words: tuple[str, ...] = ()  # that the list of names gives for the background

    @property
    def num_classes(self) -> int:
        return len(next(iter(self.classes.values())))

    def names(self, language: str) -> list[tuple[str, ...]]:
        """The names of each class."""
        return self.synonyms or [(name,) for name in self.classes[language]]

    def file_values(self) -> list[int]:
        """The label files' value of each class, then that of the background."""
        if self.class_of_value is not None:
            raise EvaluationError("scenes' masks give no values for predictions; leave --predictions out")
        first = 0 if self.zero == "class" else 1
        return [number + first for number in range(self.num_classes)] + [0]

    @property
    def has_background(self) -> bool:
        return self.zero == "background"

    def limited(self, max_images: int | None) -> SegmentationSet:
        """The first ``max_images``; the others are left out and counted in the notes."""
        left_out = len(self.images) - len(self.images[:max_images])
        self.accounting.rows -= left_out
        self.accounting.evaluated -= left_out
        self.accounting.note("images_outside_the_chosen_ones", "max_images", left_out)
        return replace(
            self,
            images=self.images[:max_images],
            labels=self.labels[:max_images],
            languages=self.languages[:max_images],
        )

    def read_label(self, number: int) -> np.ndarray | str:
        """[height, width] int64: class, ``num_classes`` for background, or IGNORE; a reason where it cannot be read."""
        try:
            with Image.open(io.BytesIO(self.labels[number].read())) as opened:
                raw = np.array(opened)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
            return "unreadable_label"
        if raw.ndim != 2:
            return "label_with_colours"
        raw = raw.astype(np.int64)
        if self.class_of_value is not None:
            known = raw < len(self.class_of_value)
            if not (known | (raw == FILE_IGNORE)).all():
                return f"unknown_class_{int(raw.max())}"
            raw = np.where(known, np.array(self.class_of_value)[np.where(known, raw, 0)], raw)
        first = 0 if self.zero == "class" else 1
        result = raw - first
        if first:
            result[raw == 0] = self.num_classes if self.has_background else IGNORE
        result[raw == FILE_IGNORE] = IGNORE
        above = (result >= self.num_classes) & (result != IGNORE)
        if (above & (raw != 0)).any():
            return f"unknown_class_{int(raw[above & (raw != 0)].max())}"
        return result


def read_segmentation(folder: Path, form: str, split: str, language: str, names: Path | None) -> SegmentationSet:
    """The images of ``folder`` in layout ``form`` (``auto``: recognised).

    Raises:
        EvaluationError: unknown layout, nothing there, or another number of class names than the set has.
    """
    if form == "auto":
        fitting = [
            name for name, layout in LAYOUTS.items() if any((folder / layout.labels).rglob("*" + layout.label_ending))
        ]
        if not fitting:
            raise EvaluationError(f"{folder} has no known layout of masks; give --format one of {', '.join(LAYOUTS)}")
        form = fitting[0]
    if form not in LAYOUTS:
        raise EvaluationError(f"format is {form!r}; for segmentation it must be one of {', '.join(LAYOUTS)}")
    layout = LAYOUTS[form]
    classes = read_json(CLASS_LISTS)[layout.names]
    synonyms: list[tuple[str, ...]] | None = None
    words: tuple[str, ...] = ()
    if names is not None:
        synonyms, words = read_synonyms(names, len(classes), layout.zero == "background")
        classes = [of_class[0] for of_class in synonyms]
    if language == "auto":
        language = language_of(classes)
    account = Accounting("images with masks")
    dataset = SegmentationSet(
        [], [], {language: classes}, [], layout.zero, account, synonyms=synonyms, background_words=words
    )
    for stem in _stems(folder, layout, split):
        image = folder / layout.images / f"{stem}{layout.image_ending}"
        label = folder / layout.labels / f"{stem}{layout.label_ending}"
        if not image.is_file() or not label.is_file():
            dataset.accounting.skip("missing_mask" if image.is_file() else "missing_image", stem)
            continue
        dataset.images.append(ImageItem(stem, image))
        dataset.labels.append(ImageItem(stem, label))
        dataset.languages.append(language)
        dataset.accounting.take()
    return dataset


def read_synonyms(path: Path, num_classes: int, has_background: bool) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """``(names by class, words for the background)`` of a file with one class a line, its names between commas.

    A set with a background may have one line more, the first: words for it, as the published lists do.

    Raises:
        EvaluationError: another number of lines, or a line without a name.
    """
    lines = [tuple(name.strip() for name in re.split("[,，、]", line) if name.strip()) for line in text_lines(path)]
    if not all(lines):
        raise EvaluationError(f"{path}: line {lines.index(()) + 1} holds no name; give every class one")
    words: tuple[str, ...] = ()
    if has_background and len(lines) == num_classes + 1:
        words, lines = lines[0], lines[1:]
    if len(lines) != num_classes:
        rest = " (or one more, the first, with words for the background)" if has_background else ""
        raise EvaluationError(f"{path} has {len(lines)} lines; the set has {num_classes} classes: one a line{rest}")
    return lines, words


def _stems(folder: Path, layout: Layout, split: str) -> list[str]:
    if layout.listing is not None:
        # The published scores of these two sets are on val; "test" has no public masks.
        file = folder / "ImageSets" / layout.listing / f"{'val' if split == 'test' else split}.txt"
        if file.is_file():
            return [line.strip() for line in text_lines(file)]
    root = folder / layout.labels
    ending = layout.label_ending
    return sorted(path.relative_to(root).as_posix().removesuffix(ending) for path in root.rglob(f"*{ending}"))
