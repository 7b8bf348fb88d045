"""Options of the scenes' shared pass."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.evaluation.options.base import TaskOptions

ScenePart = Literal["fgovd", "retrieval", "boxes"]
SCENE_PARTS: tuple[ScenePart, ...] = ("fgovd", "retrieval", "boxes")


class SceneOptions(TaskOptions):
    """FG sets, caption retrieval and object classes of a folder of scenes."""

    parts: tuple[ScenePart, ...] = Field(
        SCENE_PARTS,
        description="score only this; may be given several times (default: all three)",
        json_schema_extra={"flag": "--part"},
    )
    retrieval_images: int = Field(200, ge=1, description="images a language that retrieval is among")
