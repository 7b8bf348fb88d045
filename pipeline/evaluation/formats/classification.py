"""Images with one class each: a folder a class, or WebDataset tars in the layout of CLIP_benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.records import Fault, walk_tar
from pipeline.evaluation.formats.items import ImageItem
from pipeline.evaluation.formats.paths import EXTENSIONS, text_lines
from pipeline.evaluation.formats.shards import stop_at_damage
from pipeline.evaluation.results import Accounting, EvaluationError


@dataclass
class LabelledSet:
    """``labels[i]`` counts into ``classes``. ``templates``: the set's own, with ``{}`` for the name; may be empty."""

    images: list[ImageItem]
    labels: list[int]
    classes: list[str]
    accounting: Accounting
    templates: list[str] = field(default_factory=list)


def read_class_folders(folder: Path, names: dict[str, str] | None = None) -> LabelledSet:
    """``folder/CLASS/*.jpg``; the folder's name is the class's, unless ``names`` gives another for it.

    With ``names``, a folder that it does not name is an unknown class: its images are skipped and counted.
    """
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    if not folders:
        raise EvaluationError(f"{folder} holds no folder; an image folder has one folder a class")
    labelled = LabelledSet([], [], [], Accounting("images"))
    for path in folders:
        images = sorted(image for image in path.rglob("*") if image.suffix.lower() in EXTENSIONS)
        if names is not None and path.name not in names:
            labelled.accounting.skip("unknown_class", path.name, len(images))
            continue
        labelled.classes.append(names[path.name] if names else path.name.replace("_", " "))
        labelled.images += [ImageItem(f"{path.name}/{image.name}", image) for image in images]
        labelled.labels += [len(labelled.classes) - 1] * len(images)
        labelled.accounting.take(len(images))
        labelled.accounting.note("classes_without_images", path.name, int(not images))
    return labelled


def read_clip_benchmark(folder: Path, split: str) -> LabelledSet:
    """``folder/{classnames.txt, zeroshot_classification_templates.txt, SPLIT/*.tar}``; samples are image and ``.cls``.

    Templates hold ``{c}`` for the name. Reasons of skipped rows: ``missing_image``, ``missing_class``,
    ``unknown_class``.
    """
    tars = sorted((folder / split).glob("*.tar"), key=lambda path: (len(path.stem), path.stem))
    if not tars or not (folder / "classnames.txt").is_file():
        raise EvaluationError(
            f"{folder} needs classnames.txt and {split}/*.tar; give --split, or CLIP_benchmark's folder"
        )
    classes = [line.strip() for line in text_lines(folder / "classnames.txt")]
    file = folder / "zeroshot_classification_templates.txt"
    templates = [line.strip().replace("{c}", "{}") for line in text_lines(file)] if file.is_file() else []
    labelled = LabelledSet([], [], classes, Accounting("images"), templates)
    for path in tars:
        _read_tar(path, labelled)
    return labelled


def _read_tar(path: Path, labelled: LabelledSet) -> None:
    def note(fault: Fault) -> None:
        stop_at_damage(fault, path.parent)
        labelled.accounting.skip(fault.kind, str(fault))

    for found in walk_tar(path, note):
        where = f"{path.name}: {found.key}"
        label = found.read("cls").decode("utf-8", "replace").strip() if "cls" in found.members else None
        if found.image_extension is None:
            labelled.accounting.skip("missing_image", where)
        elif label is None:
            labelled.accounting.skip("missing_class", where)
        elif not label.isdecimal() or int(label) >= len(labelled.classes):
            labelled.accounting.skip("unknown_class", f"{where}: {label!r:.40}")
        else:
            labelled.images.append(ImageItem(f"{path.name}/{found.key}", path, found.image.offset, found.image.size))
            labelled.labels.append(int(label))
            labelled.accounting.take()
