"""COCO's and LVIS's annotation files as they come in: every image, category and annotation is of its form, or named.

An image or category that does not fit ends the reading, for rows hang on it. An annotation that does not fit is counted
and left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import FailFast, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pipeline.base.border import BorderError, describe, validated
from pipeline.evaluation.formats.paths import read_json
from pipeline.evaluation.results import Accounting, EvaluationError

Identity = (
    Annotated[int, Field(strict=True, ge=-(2**63), le=2**63 - 1)] | Annotated[str, Field(strict=True, max_length=200)]
)
Name = Annotated[str, Field(strict=True, max_length=1024)]
Side = Annotated[float, Field(strict=True, ge=0, le=2**31 - 1, allow_inf_nan=False)]
Pixel = Annotated[float, Field(strict=True, ge=-1e9, le=1e9, allow_inf_nan=False)]


class Image(TypedDict, total=False):
    """Width and height are in pixels; 0 or null where the file does not say."""

    id: Identity
    file_name: Name | None
    coco_url: Name | None
    width: Side | None
    height: Side | None


class Category(TypedDict, total=False):
    """A class and its words."""

    id: Identity
    name: Name


class Annotation(TypedDict, total=False):
    """A box as x, y, width and height in pixels."""

    image_id: Identity
    category_id: Identity
    bbox: tuple[Pixel, Pixel, Pixel, Pixel]
    iscrowd: Annotated[int, Field(strict=True, ge=0, le=1)] | bool
    area: Pixel | None


_IMAGES: TypeAdapter[Any] = TypeAdapter(Annotated[list[Image], FailFast()])
_CATEGORIES: TypeAdapter[Any] = TypeAdapter(Annotated[list[Category], FailFast()])
_ANNOTATION: TypeAdapter[Annotation] = TypeAdapter(Annotation)
_IDENTIFIED = {"images": ("id",), "categories": ("id", "name"), "annotations": ("image_id", "category_id", "bbox")}


def read_coco(path: Path, accounting: Accounting) -> dict[str, Any]:
    """The content of an instances file: ``images``, ``categories`` and the ``annotations`` that fit.

    Raises:
        EvaluationError: no such parts, or an image or category that does not fit.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in _IDENTIFIED):
        raise EvaluationError(
            f"{path} has no images, annotations and categories; COCO and LVIS instances have all three as lists"
        )
    for name, adapter in (("images", _IMAGES), ("categories", _CATEGORIES)):
        try:
            validated(adapter, content[name], f"{path.name}: {name}")
            _check_identified(content[name], name)
        except BorderError as error:
            raise EvaluationError(f"{error}; mend the file or download it again") from error
    annotations = []
    for number, annotation in enumerate(content["annotations"]):
        try:
            _ANNOTATION.validate_python(annotation)
            _check_identified([annotation], "annotations")
        except (ValidationError, BorderError) as error:
            why = describe(error.errors()[0]) if isinstance(error, ValidationError) else str(error)
            accounting.skip("missing_field", f"{path.name}: annotations[{number}]: {why}")
        else:
            annotations.append(annotation)
    return {"images": content["images"], "categories": content["categories"], "annotations": annotations}


def _check_identified(rows: list[dict[str, Any]], name: str) -> None:
    """Raise BorderError where a row lacks a field that it needs."""
    for number, row in enumerate(rows):
        for field in _IDENTIFIED[name]:
            if field not in row:
                raise BorderError(f"{name}[{number}].{field} is missing")
