"""Boxes with confidences for open-vocabulary detection: from a detector of transformers, from a file, or made.

Letters: Q boxes of an image, C classes. ``class_scores`` [Q, C] where the detector scores classes; a grounding model
whose prompt holds part of them scores only those. ``scores`` and ``labels``: a box's best one, its own confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from pipeline.base.border import explain, one_line, quoted
from pipeline.evaluation.formats.fgovd import MAX_PIXEL
from pipeline.evaluation.formats.paths import read_typed_json
from pipeline.evaluation.results import Accounting, EvaluationError

PROMPT_TOKENS = 192  # of a grounding detector's text a pass; its tower takes 256 and punctuation needs room


@dataclass(frozen=True)
class Proposals:
    """One image's boxes, each one's best class and its confidence, and the confidences by class where there are some.

    Boxes are normalised xyxy in float64, as the detector gave them, also where they leave the image.
    """

    boxes: Tensor  # [Q, 4]
    scores: Tensor  # [Q]
    labels: Tensor  # [Q] int64
    class_scores: Tensor | None = None  # [Q, C]

    @classmethod
    def of_class_scores(cls, boxes: Tensor, class_scores: Tensor) -> Proposals:
        best, labels = class_scores.max(1) if len(boxes) else (torch.zeros(0), torch.zeros(0, dtype=torch.long))
        return cls(boxes, best, labels, class_scores)

    def confidence(self, kind: str) -> Tensor:
        """[Q] of the boxes (``box``) or [Q, C] of each class (``class``).

        ``auto``: of each class where every box has one for all, else the boxes': a class that the prompt did not hold
        has none, and would never be chosen.
        """
        if self.class_scores is None or kind == "box":
            return self.scores
        return self.class_scores if kind == "class" or bool((self.class_scores > 0).all()) else self.scores

    def strongest(self, threshold: float, limit: int) -> Proposals:
        """Boxes at or above ``threshold``, at most ``limit``, strongest first (equal ones in their order)."""
        order = self.scores.argsort(descending=True, stable=True)
        order = order[self.scores[order] >= threshold][:limit]
        class_scores = None if self.class_scores is None else self.class_scores[order]
        return Proposals(self.boxes[order], self.scores[order], self.labels[order], class_scores)


Pixel = Annotated[float, Field(ge=-MAX_PIXEL, le=MAX_PIXEL)]


@dataclass(frozen=True, slots=True)
class _Detection:
    """A row of COCO's results; ``bbox`` is x, y, width, height in pixels."""

    image_id: int | str
    category_id: int | str
    bbox: tuple[Pixel, Pixel, Pixel, Pixel]
    score: Annotated[float, Field(allow_inf_nan=False)]


_RESULTS: TypeAdapter[list[Any]] = TypeAdapter(list[Any])
_DETECTION: TypeAdapter[_Detection] = TypeAdapter(_Detection)


def read_proposals(
    file: Path, image_sizes: dict[Any, tuple[int, int]], label_of: dict[Any, int], accounting: Accounting
) -> dict[Any, Proposals]:
    """A detector's COCO results JSON by image id: rows with ``image_id``, ``category_id``, ``bbox``, ``score``.

    Rows of unknown images or classes are skipped and counted. Boxes keep their place, also where they leave the image.
    """
    rows: dict[Any, list[tuple[list[float], float, int]]] = {}
    results = read_typed_json(file, _RESULTS, "a list of detections, as COCO's results are")
    for number, found in enumerate(results):
        where = f"{file.name}: [{number}]"
        try:
            row = _DETECTION.validate_python(found)
        except ValidationError as error:
            accounting.skip("malformed_row", f"{where}: {explain(error, 1)}")
            continue
        if row.image_id not in image_sizes:
            accounting.skip("unknown_image", f"{where}: {quoted(row.image_id)}")
        elif row.category_id not in label_of:
            accounting.skip("unknown_class", f"{where}: {quoted(row.category_id)}")
        else:
            accounting.take()
            (x, y, w, h), (width, height) = row.bbox, image_sizes[row.image_id]
            box = [x / width, y / height, (x + w) / width, (y + h) / height]
            rows.setdefault(row.image_id, []).append((box, row.score, label_of[row.category_id]))
    return {
        image: Proposals(
            torch.tensor([box for box, _, _ in own], dtype=torch.float64),
            torch.tensor([score for _, score, _ in own], dtype=torch.float64),
            torch.tensor([label for _, _, label in own]),
        )
        for image, own in rows.items()
    }


def made_proposals(boxes: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator) -> Proposals:
    """What an imperfect detector might say of the true boxes, for trying fusion where no detector is at hand.

    Each true box appears once, moved and stretched by about a tenth of its size; as many boxes again lie anywhere.
    Objectness is high for the former and low for the latter, with overlap; classes are right about two times in
    three. All numbers are this project's own choice: imperfect on purpose, so that there is something to gain.
    """
    count = len(boxes)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    moved = boxes + 0.1 * torch.randn(count, 4, generator=generator) * torch.stack([width, height, width, height], 1)
    centre, size = torch.rand(count, 2, generator=generator), 0.15 + 0.3 * torch.rand(count, 2, generator=generator)
    anywhere = torch.cat([centre - size / 2, centre + size / 2], 1)
    proposed = torch.cat([moved, anywhere]).clamp(0, 1)
    objectness = torch.cat([torch.full((count,), 1.0), torch.full((count,), -1.0)])
    objectness = (objectness + torch.randn(2 * count, generator=generator)).sigmoid()
    logits = torch.randn(2 * count, num_classes, generator=generator)
    # The largest of C standard normal numbers lies near this, so that the true class wins about two times in three
    logits[torch.arange(count), labels] += math.sqrt(2 * math.log(num_classes))
    keep = (proposed[:, 2] - proposed[:, 0] > 0.01) & (proposed[:, 3] - proposed[:, 1] > 0.01)
    class_scores = objectness[:, None] * logits.softmax(1)
    return Proposals.of_class_scores(proposed[keep].double(), class_scores[keep].double())


class TransformersDetector:
    """Any zero-shot detector of transformers: OWL-ViT and OWLv2 (one score a class), or a grounding model
    (Grounding DINO, MM Grounding DINO and LLMDet's checkpoints: a score a token of the prompt)."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        # seconds; proposals from a file do without
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        if not (folder / "config.json").is_file():
            raise EvaluationError(f"{folder} holds no config.json; give the folder of a zero-shot detector")
        try:
            self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            self.model = AutoModelForZeroShotObjectDetection.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            message = one_line(error, 200)
            raise EvaluationError(f"{folder} is no zero-shot detector of transformers ({message})") from error
        self.model = self.model.to(device).eval()
        self.device = device
        self.grounding = "grounding" in self.model.config.model_type

    def __call__(self, image: Image.Image, names: Sequence[str]) -> Proposals:
        """All boxes of one image with a confidence for each class."""
        boxes, scores = [], []
        for part in self._prompts(names):
            of_pass, confidences = self._pass(image, [names[number] for number in part])
            row = torch.zeros(len(of_pass), len(names), dtype=torch.float64)
            row[:, part] = confidences.double()
            boxes.append(of_pass)
            scores.append(row)
        return Proposals.of_class_scores(*merged(torch.cat(boxes), torch.cat(scores)))

    def num_prompts(self, names: Sequence[str]) -> int:
        """Passes over an image that ``names`` take."""
        return len(self._prompts(names))

    def _prompts(self, names: Sequence[str]) -> list[list[int]]:
        """Classes by pass: all at once, or as many as fit into a grounding model's text."""
        if not self.grounding:
            return [list(range(len(names)))]
        parts: list[list[int]] = [[]]
        used = 0
        for number, name in enumerate(names):
            length = len(self.processor.tokenizer(name, add_special_tokens=False)["input_ids"]) + 1
            if used + length > PROMPT_TOKENS and parts[-1]:
                parts.append([])
                used = 0
            parts[-1].append(number)
            used += length
        return parts

    def _pass(self, image: Image.Image, names: list[str]) -> tuple[Tensor, Tensor]:
        """``(boxes [Q, 4] normalised xyxy, confidences [Q, len(names)])``."""
        text: Any = ". ".join(names) + "." if self.grounding else [names]
        inputs = self.processor(images=image, text=text, return_tensors="pt").to(self.device)
        with torch.no_grad():
            output = self.model(**inputs)
        centre, size = output.pred_boxes[0].float().cpu().split(2, dim=1)
        boxes = torch.cat([centre - size / 2, centre + size / 2], 1)
        if self.model.config.model_type == "owlv2":
            # it pads the image to a square at its lower right, and its boxes are fractions of that square
            side = max(image.size)
            boxes = boxes * torch.tensor([side / image.width, side / image.height] * 2)
        if not self.grounding:
            return boxes.double(), output.logits[0, :, : len(names)].float().sigmoid().cpu()
        tokens = output.logits[0].float().sigmoid().cpu()
        spans = token_spans(self.processor.tokenizer, names, inputs["input_ids"][0].tolist())
        return boxes.double(), torch.stack([tokens[:, span].amax(1) for span in spans], 1)


def merged(boxes: Tensor, class_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes that several prompts gave alike, once each, with the best score for every class; in their first order."""
    distinct, which = boxes.unique(dim=0, return_inverse=True)
    if len(distinct) == len(boxes):
        return boxes, class_scores
    scores = torch.zeros(len(distinct), class_scores.shape[1], dtype=class_scores.dtype)
    scores = scores.scatter_reduce(0, which[:, None].expand_as(class_scores), class_scores, "amax")
    first = torch.full((len(distinct),), len(boxes)).scatter_reduce(0, which, torch.arange(len(boxes)), "amin")
    order = first.argsort()
    return distinct[order], scores[order]


def token_spans(tokenizer: Any, names: Sequence[str], ids: list[int]) -> list[list[int]]:
    """Which positions of the prompt belong to each name: its own tokens, found in order.

    Raises:
        EvaluationError: a name's tokens are not there; the prompt was cut.
    """
    spans, start = [], 0
    for name in names:
        own = tokenizer(name, add_special_tokens=False)["input_ids"]
        first = next((p for p in range(start, len(ids) - len(own) + 1) if ids[p : p + len(own)] == own), None)
        if first is None or not own:
            raise EvaluationError(
                f"class {name!r} is not in the detector's prompt; its text was cut, use shorter names"
            )
        spans.append(list(range(first, first + len(own))))
        start = first + len(own)
    return spans
