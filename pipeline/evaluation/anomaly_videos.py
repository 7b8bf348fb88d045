"""The snippets of one video file as anomaly scores: decoded once, front to back, in batches of frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from pipeline.data.video import VideoFault, VideoFrame, read_video
from pipeline.evaluation.anomaly_scores import Prompts
from pipeline.evaluation.clips import FrameChoice
from pipeline.evaluation.features import EncodeSettings
from pipeline.evaluation.finite import require_finite
from pipeline.evaluation.models.base import EvaluationModel, Prepared
from pipeline.evaluation.results import EvaluationError

WHOLE = (0.0, 0.0, 1.0, 1.0)


class SnippetPlan(Protocol):
    """What of a plan is read here."""

    @property
    def view(self) -> str: ...

    @property
    def length(self) -> int: ...

    @property
    def step(self) -> int: ...

    @property
    def choice(self) -> FrameChoice: ...


def score_video(
    model: EvaluationModel, path: Path, plan: SnippetPlan, prompts: Prompts, settings: EncodeSettings
) -> dict[str, Any]:
    """``{"num_frames", "scores"}``, a score a snippet; or ``{"fault", "told"}`` where the video cannot be read whole.

    Raises:
        EvaluationError: the view needs boxes, or a feature is not finite.
    """
    if plan.view == "tracks":
        raise EvaluationError("annotation files of videos have no tracks; give --view clip or frame")
    scores: list[float] = []
    count = 0

    def counted() -> Iterator[VideoFrame]:
        nonlocal count
        for frame in read_video(path, settings.max_megapixels):
            count += 1
            yield frame

    try:
        for images in _snippets(counted(), plan):
            scores += prompts.scores(_vector(model, images, plan, settings)).tolist()
    except VideoFault as fault:
        return {"fault": fault.kind, "told": str(fault)}
    return {"num_frames": count, "scores": scores}


def _snippets(frames: Iterator[VideoFrame], plan: SnippetPlan) -> Iterator[list[Image.Image]]:
    """The pictures of each snippet that are looked at, in the order of ``snippet_frames``.

    Frames are kept as decoded, and those that are behind are let go; only what is looked at becomes a picture.
    """
    held: list[VideoFrame] = []  # those from the snippet in hand on
    given = False
    for frame in frames:
        held.append(frame)
        if len(held) == plan.length:
            yield _pictures(held, plan)
            given = True
            held = held[plan.step :]
    if held and (not given or len(held) > plan.length - plan.step):
        yield _pictures(held, plan)


def _pictures(held: list[VideoFrame], plan: SnippetPlan) -> list[Image.Image]:
    return [held[number].image() for number in plan.choice.numbers(len(held))]


def _vector(model: EvaluationModel, images: list[Image.Image], plan: SnippetPlan, settings: EncodeSettings) -> Tensor:
    """[1, D]: the snippet's vector."""
    dense = plan.view == "frame"
    prepared: list[Prepared] = [model.prepare(image, dense) for image in images]
    if len({one.group for one in prepared}) > 1:  # a video whose size changes on its way
        prepared = [model.prepare(image.resize(images[0].size), dense) for image in images]
    parts = []
    for start in range(0, len(prepared), settings.batch_size):
        features = model.encode_images(prepared[start : start + settings.batch_size], dense=dense)
        if dense:
            number = len(features.embeds)
            parts.append(model.pool_regions(features, torch.tensor([WHOLE] * number), torch.arange(number))[0])
        else:
            parts.append(features.embeds)
    per_frame = torch.cat(parts).unsqueeze(0)
    require_finite(per_frame[0], "frames", lambda number: f"frame {number} of a snippet")
    if dense:
        boxes = torch.tensor(WHOLE, dtype=torch.float32).expand(*per_frame.shape[:2], 4)
        return model.aggregate_regions(per_frame, torch.ones(per_frame.shape[:2], dtype=torch.bool), boxes)[0]
    return model.aggregate_frames(per_frame)
