"""What the options of all tasks share: the set, the model's preparation, class names; and errors that are one line.

A task's options are a frozen record. The command line, suites and programs all make it by ``make_options``, so that a
value is checked in one place.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.base.border import shown
from pipeline.base.languages import canonical
from pipeline.evaluation.protocols.rows import with_protocol
from pipeline.evaluation.results import EvaluationError

AUTO = "auto"
# Names of before, and what they are called now
RENAMED = {"levels": "patch_budgets", "stand_in": "class_token_substitute"}


class TaskOptions(BaseModel):
    """Options that every task reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    renamed: ClassVar[dict[str, str]] = RENAMED

    protocol: str | None = Field(
        None, description="a published one, as fgclip2 or fgclip2:lvis-boxes; fills in every choice that is not given"
    )
    data: tuple[Path, ...] = Field(
        min_length=1, description="shards, an annotation file or a folder; several where the task reads several"
    )
    max_skipped_share: float = Field(0.01, ge=0, le=1, description="stop when more rows cannot be used")
    patch_budgets: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="patches an image is resized to fill; the smallest that holds it (default: those of the run)",
        json_schema_extra={"nargs": "+"},
    )

    def one_data(self) -> Path:
        """The single path that most tasks read."""
        if len(self.data) != 1:
            raise EvaluationError(f"{len(self.data)} --data paths were given; this task reads exactly one")
        return self.data[0]


class ImageFolderOption(TaskOptions):
    """Of tasks whose annotation files name images."""

    images: Path | None = Field(None, description="folder of the images (default: that of the annotation file)")


class LanguageOption(TaskOptions):
    """Of tasks that read a language's samples or words."""

    language: str = Field(
        AUTO,
        description="of captions, class names and shards, a tag as en, zh or de; auto: by the format, file or text",
        json_schema_extra={"metavar": "TAG"},
    )

    @field_validator("language")
    @classmethod
    def _tag(cls, language: str) -> str:
        return language if language == AUTO else canonical(language)


class ClipOptions(TaskOptions):
    """Of tasks that look at clips."""

    frames: int | None = Field(
        None, ge=1, description="a clip is sampled evenly to (default: all, or as many as the model was trained with)"
    )
    single_frame: bool = Field(
        False, description="the baseline without time: only the middle frame of a clip, region or snippet"
    )


class ClassNameOptions(LanguageOption):
    """Of tasks that compare with class names."""

    class_names: Path | None = Field(
        None, description="names by class instead of the set's: text (one a line, or ID<tab>NAME) or JSON"
    )
    template: tuple[str, ...] = Field(
        (),
        description="prompt with {} for the class name; may be given several times (default: the task's own)",
        json_schema_extra={"metavar": "TEXT"},
    )
    templates: str | None = Field(
        None,
        description="prompts of a file, one a line; or open_clip: ImageNet's 80; or name: the bare name",
        json_schema_extra={"metavar": "FILE"},
    )


class CalibrationOptions(TaskOptions):
    """Of tasks that look at patches: SC-CLIP."""

    calibrate: bool = Field(False, description="SC-CLIP calibration of the patch features")
    switch_off: tuple[str, ...] = Field(
        (), description="a part of SC-CLIP, see docs/inference.md", json_schema_extra={"metavar": "PART"}
    )
    class_token_weight: float | None = Field(
        None, ge=0, description="SC-CLIP's, of the class token or of its substitute (default 0.3)"
    )
    class_token_substitute: Literal["patch", "mean"] | None = Field(
        None, description="what a tower without a class token adds in its place (default patch)"
    )

    @model_validator(mode="after")
    def _only_with_calibration(self) -> Self:
        given = self.switch_off or self.class_token_substitute or self.class_token_weight is not None
        if given and not self.calibrate:
            raise ValueError(
                "switch_off, class_token_weight and class_token_substitute are SC-CLIP's; give --calibrate too"
            )
        return self


OptionsType = TypeVar("OptionsType", bound=BaseModel)


def make_options(kind: type[OptionsType], task: str, values: dict[str, Any]) -> OptionsType:
    """The options of ``task`` by name.

    Raises:
        EvaluationError: a name that the task does not read (with the nearest one that it does), or a value out of
            range.
    """
    known = kind.model_fields
    if values.get("protocol") and "protocol" in known:
        values = with_protocol(values["protocol"], task, values)
    for name in values:
        if name not in known:
            raise EvaluationError(unread(task, name, list(known), getattr(kind, "renamed", {})))
    try:
        return kind(**values)
    except ValidationError as error:
        raise EvaluationError("; ".join(_problem(one) for one in error.errors())) from error


def unread(task: str, name: str, known: list[str], renamed: Mapping[str, str]) -> str:
    """Why ``task`` cannot be told ``name``: an old name, a misspelt one, or another task's."""
    if name in renamed:
        return f"{name} is called {renamed[name]} now; write that"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    name = shown(name, 100)
    if near:
        return f"{task} does not read {name}; did you mean {near[0]}?"
    return f"{task} does not read {name}; it reads {', '.join(sorted(known))}"


def _problem(one: Any) -> str:
    """``alpha is -1.0; it must be greater than or equal to 0`` of one of pydantic's findings."""
    name = ".".join(str(part) for part in one["loc"])
    message = one["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    if one["type"] == "missing" or (name == "data" and not one["input"]):
        return f"no --{name} was given; name shards, an annotation file or a folder"
    return f"{name} is {one['input']!r:.80}; {message[:1].lower()}{message[1:]}" if name else message
