"""Options of anomaly scores."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.evaluation.options.base import ClipOptions, LanguageOption


class AnomalyOptions(ClipOptions, LanguageOption):
    """Which frames of a video are abnormal, told by prompts."""

    videos: Path | None = Field(None, description="folder of the videos that an annotation file names")
    format: Literal["auto", "shards", "ucf-crime", "xd-violence"] = Field(
        "auto", description="of --data; see docs/video.md"
    )
    view: Literal["auto", "clip", "frame", "tracks"] = Field(
        "auto",
        description="what of a snippet is compared: the clip's vector, the whole frame as a region over time, or the "
        "tracked boxes, of which the most abnormal counts; auto: tracks where there are some, else clip",
    )
    snippet_frames: int | None = Field(
        None,
        ge=1,
        description="of the video, that one score is of (default: 16; of shards as many as the model was trained with)",
    )
    snippet_step: int | None = Field(
        None,
        ge=1,
        description="frames from one snippet to the next (default: snippet_frames); a frame's score is the mean",
    )
    frames: int | None = Field(
        None, ge=1, description="looked at of each snippet, evenly (default: all of shards, 4 of videos)"
    )
    normal: tuple[str, ...] = Field(
        (), description="prompt; may be given several times", json_schema_extra={"metavar": "TEXT"}
    )
    abnormal: tuple[str, ...] = Field(
        (), description="prompt; may be given several times", json_schema_extra={"metavar": "TEXT"}
    )
    prompts: Path | None = Field(
        None,
        description='JSON: {"normal": [...], "abnormal": [...]}, by language if you like; a list in a list is averaged',
    )
    temperature: float = Field(
        0.01, gt=0, description="of the softmax over the prompts; 0.01 is the region losses' scale"
    )

    @model_validator(mode="after")
    def _one_source_of_prompts(self) -> Self:
        if bool(self.normal) != bool(self.abnormal):
            raise ValueError("normal and abnormal prompts go together; give --normal and --abnormal")
        if self.normal and self.prompts is not None:
            raise ValueError("prompts are given twice; leave --prompts or --normal and --abnormal out")
        return self
