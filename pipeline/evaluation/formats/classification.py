"""Images with one class each: a folder a class, or WebDataset tars in the layout of CLIP_benchmark."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.schema import IMAGE_EXTENSIONS
from pipeline.evaluation.formats.items import ImageItem
from pipeline.evaluation.formats.paths import EXTENSIONS, text_lines
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
    found = LabelledSet([], [], [], Accounting("images"))
    for path in folders:
        images = sorted(image for image in path.rglob("*") if image.suffix.lower() in EXTENSIONS)
        if names is not None and path.name not in names:
            found.accounting.skip("unknown_class", path.name, len(images))
            continue
        found.classes.append(names[path.name] if names else path.name.replace("_", " "))
        found.images += [ImageItem(f"{path.name}/{image.name}", image) for image in images]
        found.labels += [len(found.classes) - 1] * len(images)
        found.accounting.take(len(images))
        found.accounting.note("classes_without_images", path.name, int(not images))
    return found


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
    found = LabelledSet([], [], classes, Accounting("images"), templates)
    for path in tars:
        try:
            with tarfile.open(path, "r:") as archive:
                _read_tar(path, archive, found)
        except tarfile.TarError as error:
            raise EvaluationError(f"{path} is not a whole tar ({error}); download it again") from error
    return found


def _read_tar(path: Path, archive: tarfile.TarFile, found: LabelledSet) -> None:
    images: dict[str, ImageItem] = {}
    labels: dict[str, str] = {}
    for member in archive:
        key, _, extension = member.name.removeprefix("./").partition(".")
        if not member.isfile():
            continue
        if extension.lower() in IMAGE_EXTENSIONS:
            images[key] = ImageItem(f"{path.name}/{key}", path, member.offset_data, member.size)
        elif extension == "cls":
            stream = archive.extractfile(member)
            labels[key] = stream.read().decode("utf-8", "replace").strip() if stream else ""
    for key in dict.fromkeys([*images, *labels]):
        where = f"{path.name}: {key}"
        if key not in images:
            found.accounting.skip("missing_image", where)
        elif key not in labels:
            found.accounting.skip("missing_class", where)
        elif not labels[key].isdigit() or int(labels[key]) >= len(found.classes):
            found.accounting.skip("unknown_class", f"{where}: {labels[key]!r:.40}")
        else:
            found.images.append(images[key])
            found.labels.append(int(labels[key]))
            found.accounting.take()
