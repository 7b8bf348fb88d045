"""The pictures that training and evaluation left in a run's folder, with their names and steps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.base.run_folder import FIGURES, RunFolder
from pipeline.drawing.page import picture

STEP_IMAGE = re.compile(r"^(?P<name>.+)\+step\+(?P<step>\d+)\+timestamp\+[^+]+\+[^+]+\.png$")
MOST_OF_EVALUATION = 12
LARGEST_PIXELS = 50_000_000  # a larger file is none of ours


@dataclass(frozen=True)
class StepImage:
    """One picture of a step; ``name`` as ``boxes/en-1``."""

    name: str
    step: int
    path: Path


def step_images(run: RunFolder) -> list[StepImage]:
    """All of them, by name and step."""
    found = []
    for path in (run.path / FIGURES / "images").glob("*.png"):
        match = STEP_IMAGE.match(path.name)
        if match:
            found.append(StepImage(match["name"].replace("~", "/"), int(match["step"]), path))
    return sorted(found, key=lambda one: (one.name, one.step))


def learning(images: list[StepImage]) -> str:
    """Fixed boxes and maps, at the first step and at the last."""
    names = sorted({one.name for one in images if not one.name.startswith("worst/")})
    parts = []
    for name in names:
        own = [one for one in images if one.name == name]
        parts += [_shown(one) for one in (own[0], own[-1])[: 1 if own[0] == own[-1] else 2]]
    return _grid(parts)


def mistakes(images: list[StepImage]) -> str:
    """The regions that the model was most wrong about when pictures were last made."""
    worst = [one for one in images if one.name.startswith("worst/")]
    last = max((one.step for one in worst), default=0)
    return _grid([_shown(one) for one in worst if one.step == last])


def of_evaluation(run: RunFolder) -> str:
    """Pictures that evaluations wrote below RUN/evaluation."""
    paths = sorted(run.evaluation.rglob("*.png"))[:MOST_OF_EVALUATION]
    return _grid([_picture(path, str(path.relative_to(run.evaluation))) for path in paths])


def _shown(one: StepImage) -> str:
    return _picture(one.path, f"{one.name}, step {one.step:,}")


def _picture(path: Path, caption: str) -> str:
    try:
        with Image.open(path) as image:
            return picture(image, caption) if image.width * image.height <= LARGEST_PIXELS else ""
    except OSError:  # a picture that a kill or a full disk cut short is left out
        return ""


def _grid(parts: list[str]) -> str:
    return f'<div class="pictures">{"".join(parts)}</div>' if any(parts) else ""
