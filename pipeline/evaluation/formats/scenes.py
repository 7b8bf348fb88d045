"""The embedded scenes' folder: its records as rows of objects, its class names and prompts, its masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from pipeline.base.border import BorderError, read_typed
from pipeline.base.constants import LANGUAGES
from pipeline.evaluation.formats.items import RegionRow, RegionSet
from pipeline.evaluation.formats.segmentation import SegmentationSet
from pipeline.evaluation.formats.shards import ShardFolder, read_shards
from pipeline.evaluation.results import Accounting, EvaluationError

SCENE_FORMATS = {"auto": "shape", "scenes-shape": "shape", "scenes-colour": "colour"}  # what the masks' classes are
MAX_CLASSES = 1 << 16  # a mask's value has 8 or 16 bits
NAME_ALONE = {language: ["{}"] for language in LANGUAGES}


def is_scene_folder(folder: str | Path) -> bool:
    """Shards with FG-OVD files beside them: what ``data_tools scenes`` writes as its test split."""
    return (Path(folder) / "fgovd").is_dir() and any(Path(folder).glob("*.tar"))


def object_rows(folder: ShardFolder, names: dict[str, list[str]]) -> RegionSet:
    """One row an object; ``label`` counts into the class names of its language (``tags["language"]``)."""
    accounting, rows = Accounting("objects"), []
    for reason, where in folder.faults:
        accounting.skip(reason, where)
    for image, one in enumerate(folder.samples):
        language = one.sample.language
        for number, region in enumerate(one.sample.regions):
            where = f"{one.image.key}: regions[{number}]"
            if region.category is None:
                accounting.skip("no_category", where)
            elif region.category not in names[language]:
                accounting.skip("unknown_class", f"{where}: {region.category}")
            else:
                accounting.take()
                tags = {"language": language, "combination": _combination(one.sample.source, number)}
                rows.append(RegionRow(image, region.image_box, label=names[language].index(region.category), tags=tags))
    return RegionSet([one.image for one in folder.samples], rows, accounting)


class _Made(BaseModel):
    """What a record's ``source`` tells of a drawn object or image, of which shape other tools may write another."""

    combination: str | None = None


class _Source(_Made):
    objects: list[_Made] = []


def _combination(source: dict[str, Any], number: int) -> str | None:
    """Of the object itself where the record tells, else of its image."""
    try:
        made = _Source.model_validate(source)
    except ValidationError:
        return None
    of_object = made.objects[number].combination if number < len(made.objects) else None
    return of_object or made.combination


class _Masks(BaseModel):
    """How the masks' values are read as one kind of class."""

    classes: dict[str, list[str]]
    templates: dict[str, list[str]]
    class_of_value: list[Annotated[int, Field(ge=0, le=MAX_CLASSES)]] = Field(max_length=MAX_CLASSES)


class _Summary(BaseModel):
    """What evaluation reads of scenes.json; a language is a name, its texts a list."""

    classes: dict[str, list[str]] = {}
    region_templates: dict[str, list[str]] = {}
    masks: dict[str, _Masks] = {}
    anomaly_prompts: dict[str, dict[str, list[list[str]]]] | None = None


_SUMMARY: TypeAdapter[_Summary] = TypeAdapter(_Summary)


def _summary(path: Path) -> _Summary:
    """scenes.json, beside the shards or above; empty where there is none.

    Raises:
        EvaluationError: it is damaged.
    """
    for place in (path / "scenes.json", path.parent / "scenes.json"):
        if place.is_file():
            try:
                return read_typed(place, _SUMMARY, "write the scenes anew: data_tools scenes")
            except BorderError as error:
                raise EvaluationError(str(error)) from error
    return _Summary()


def scene_templates(path: Path) -> dict[str, list[str]]:
    """Prompts of an object's class by language: scenes.json's, or the name alone."""
    return NAME_ALONE | _summary(path).region_templates


def scene_classes(folder: ShardFolder, path: Path) -> dict[str, list[str]]:
    """Class names by language: scenes.json's, or those the shards name. Their order is that of the labels."""
    if classes := _summary(path).classes:
        return classes
    names: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    for one in folder.samples:
        names[one.sample.language] += [r.category for r in one.sample.regions if r.category is not None]
    return {language: sorted(set(categories)) for language, categories in names.items()}


def scene_prompts(path: Path) -> dict[str, dict[str, list[list[str]]]] | None:
    """Prompts of what is normal and abnormal in clips, by language; None where scenes.json has none."""
    return _summary(path).anomaly_prompts


def scene_masks(path: Path, form: str = "auto") -> tuple[SegmentationSet, dict[str, list[str]]]:
    """The scenes' masks as maps of shapes or of colours, and the prompts of a class by language.

    Each image is read with the class names of its language.

    Raises:
        EvaluationError: a form that is none of SCENE_FORMATS, or masks that nothing explains.
    """
    if form not in SCENE_FORMATS:
        raise EvaluationError(f"format is {form!r}; for scenes it must be one of {', '.join(SCENE_FORMATS)}")
    of = _summary(path).masks.get(SCENE_FORMATS[form])
    if of is None:
        raise EvaluationError(f"{path} has no scenes.json that explains its masks; write it anew: data_tools scenes")
    folder, accounting = read_shards(path), Accounting("images with masks")
    dataset = SegmentationSet([], [], of.classes, [], "background", accounting, tuple(of.class_of_value))
    for reason, where in folder.faults:
        dataset.accounting.skip(reason, where)
    for one in folder.samples:
        if one.mask is None:
            dataset.accounting.skip("missing_mask", one.image.key)
            continue
        dataset.images.append(one.image)
        dataset.labels.append(one.mask)
        dataset.languages.append(one.sample.language)
        dataset.accounting.take()
    return dataset, of.templates
