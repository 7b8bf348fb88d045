"""What a task can be told: one frozen record for the command line and for ``evaluate``; unknown names are errors."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.evaluation.results import EvaluationError

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Options:
    """Options of all tasks; each task reads its own (the command's --help says which)."""

    # the set
    data: tuple[Path, ...] = ()  # a folder of shards, an annotation file, or a folder in the task's format
    format: str = "auto"
    images: Path | None = None  # folder that image names are relative to
    language: str = "en"
    split: str = "test"
    image_ids: Path | None = None  # a text file with one image name a line: only these are evaluated
    max_images: int | None = None
    max_skipped_share: float = 0.01
    # retrieval
    text_kind: str = "auto"  # short or long; auto: long for sets of long captions
    short_prefix: str | None = None  # None: what the model's run read before short captions
    retrieval_images: int = 200  # of scenes, a language
    # class names
    class_names: Path | None = None
    templates: tuple[str, ...] = ()  # () : the task's own for the language
    # detection
    detector: Path | None = None
    proposals: Path | None = None
    alpha: float = 0.5
    beta: float = 0.5
    box_threshold: float = 0.0
    max_detections: int = 300
    temperature: float | None = None  # of the softmax over classes; None: the task's own
    seed: int = 0
    # segmentation and dense maps
    calibrate: bool = False
    switch_off: tuple[str, ...] = ()
    class_token_weight: float | None = None  # None: SC-CLIP's own
    stand_in: str | None = None  # for the class token
    window: int | None = None
    stride: int | None = None
    short_side: int | None = None
    background: str = "auto"
    background_threshold: float | None = None
    phrases: tuple[str, ...] = ()
    out: Path | None = None

    @classmethod
    def make(cls, **values: Any) -> Options:
        """Options by name.

        Raises:
            EvaluationError: an unknown name (with the nearest right one), or a value out of its range.
        """
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(names)}"
                raise EvaluationError(f"unknown option {name}; {hint}")
        options = cls(**values)
        options.check()
        return options

    def check(self) -> None:
        for name, low, high in (
            ("max_skipped_share", 0, 1),
            ("alpha", 0, None),
            ("beta", 0, None),
            ("box_threshold", 0, 1),
            ("class_token_weight", 0, None),
        ):
            value = getattr(self, name)
            if value is not None and (not value >= low or (high is not None and value > high)):
                raise EvaluationError(
                    f"{name} is {value}; it must be at least {low}" + (f" and at most {high}" * (high is not None))
                )
        if not self.calibrate and (self.switch_off or self.stand_in or self.class_token_weight is not None):
            raise EvaluationError("switch_off, class_token_weight and stand_in are SC-CLIP's; give --calibrate too")
        if self.temperature is not None and not self.temperature > 0:
            raise EvaluationError(f"temperature is {self.temperature}; it must be above 0, as 0.01")
        for name in ("max_images", "retrieval_images", "max_detections", "window", "stride", "short_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EvaluationError(f"{name} is {value}; it must be at least 1")
        if self.language not in LANGUAGES:
            raise EvaluationError(f"language is {self.language!r}; it must be one of {', '.join(LANGUAGES)}")

    def one_data(self) -> Path:
        """The single path that most tasks read."""
        if len(self.data) != 1:
            raise EvaluationError(f"{len(self.data)} --data paths were given; this task reads exactly one")
        return self.data[0]
