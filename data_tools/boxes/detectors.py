"""Zero-shot detectors of transformers, by local path: phrases and images in, scored boxes out.

Grounding DINO and MM Grounding DINO (LLMDet's checkpoints load into it) read all phrases of an image in one prompt,
OWLv2 as one query each; both look at an image once for all its phrases. Letters: B images, Q boxes that the model
proposes, T tokens, K phrases of an image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from data_tools.boxes.choose import Detection
from data_tools.execution.device import device_for

SENTENCE_MARKS = re.compile(r"[.?!;。？！；]+")  # they would split a phrase in Grounding DINO's prompt
SEPARATOR = " . "


class Detector:
    """Any zero-shot object detector of transformers; which kind it is, its config says."""

    def __init__(self, path: str | Path, *, precision: str = "float32") -> None:
        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"{path} holds no config.json; give the folder of a saved zero-shot detector")
        self.path, self.precision = str(path), precision
        self._model: Any = None  # of whatever class the folder's config names
        self._processor: Any = None

    def settings(self) -> dict[str, Any]:
        return {"detector": Path(self.path).name, "precision": self.precision}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_processor": None}

    def open(self, worker: int) -> None:
        """Load the model onto this worker's device."""
        from transformers import (
            AutoModelForZeroShotObjectDetection,
            AutoProcessor,
        )  # in the worker alone: seconds of import

        self._processor = AutoProcessor.from_pretrained(self.path)
        model = AutoModelForZeroShotObjectDetection.from_pretrained(self.path, dtype=getattr(torch, self.precision))
        self._model = model.to(device_for(worker)).eval()

    def close(self) -> None:
        self._model = self._processor = None

    def detect(
        self, images: Sequence[Image], phrases: Sequence[Sequence[str]], min_score: float
    ) -> list[list[Detection]]:
        """For each image the boxes of its phrases with at least ``min_score``, best first."""
        found: list[list[Detection]] = [[] for _ in images]
        prompted = "grounding" in self._model.config.model_type
        for round_ in self._rounds(phrases, prompted):
            numbers = [number for number, chosen in enumerate(round_) if chosen]
            some = [images[number] for number in numbers]
            texts = [[phrases[number][k] for k in round_[number]] for number in numbers]
            with torch.inference_mode():
                scored = self._prompted(some, texts) if prompted else self._queried(some, texts)
            for number, (scores, boxes) in zip(numbers, scored, strict=True):
                for k, phrase in enumerate(round_[number]):
                    for row in (scores[:, k] >= min_score).nonzero()[:, 0].tolist():
                        box = tuple(boxes[row].tolist())
                        found[number].append(Detection(phrase, box, float(scores[row, k])))
        return [sorted(some, key=lambda d: (-d.score, d.phrase, d.box)) for some in found]

    def _rounds(self, phrases: Sequence[Sequence[str]], prompted: bool) -> list[list[list[int]]]:
        """Numbers of the phrases that each image is asked for in each round; one prompt holds only so many tokens."""
        budget = self._model.config.max_text_len if prompted else None
        shares: list[list[list[int]]] = []
        for texts in phrases:
            share: list[list[int]] = [[]] if texts else []
            used = 2  # start and end
            for number, text in enumerate(texts):
                cost = len(self._processor.tokenizer(_plain(text), add_special_tokens=False)["input_ids"]) + 1
                if budget is not None and share[-1] and used + cost > budget:
                    share.append([])
                    used = 2
                share[-1].append(number)
                used += cost
            shares.append(share)
        longest = max((len(share) for share in shares), default=0)
        return [[share[r] if r < len(share) else [] for share in shares] for r in range(longest)]

    def _prompted(self, images: list[Image], texts: list[list[str]]) -> list[tuple[Tensor, Tensor]]:
        """``(scores [Q, K], boxes [Q, 4])``: a phrase's score is that of its best token."""
        prompts = [SEPARATOR.join(_plain(text) for text in some) + SEPARATOR.rstrip() for some in texts]
        inputs = self._processor(
            images=images, text=prompts, padding=True, return_tensors="pt", return_offsets_mapping=True
        )
        offsets = inputs.pop("offset_mapping")
        outputs = self._model(**self._placed(inputs))
        results = []
        for row, some in enumerate(texts):
            tokens = outputs.logits[row].float().sigmoid().cpu()  # [Q, T], padded with 0
            columns, start = [], 0
            for text in some:
                end = start + len(_plain(text))
                inside = [t for t, (a, b) in enumerate(offsets[row].tolist()) if start <= a < b <= end]
                inside = [t for t in inside if t < tokens.shape[1]]
                columns.append(tokens[:, inside].amax(1) if inside else tokens.new_zeros(len(tokens)))
                start = end + len(SEPARATOR)
            results.append((torch.stack(columns, 1), _corners(outputs.pred_boxes[row])))
        return results

    def _queried(self, images: list[Image], texts: list[list[str]]) -> list[tuple[Tensor, Tensor]]:
        """As `_prompted`; OWLv2 pads an image to a square on its right and bottom, which its boxes refer to."""
        inputs = self._processor(images=images, text=texts, padding="max_length", truncation=True, return_tensors="pt")
        outputs = self._model(**self._placed(inputs))
        results = []
        for row, (image, some) in enumerate(zip(images, texts, strict=True)):
            side = max(image.size)
            scale = torch.tensor([side / image.width, side / image.height] * 2)
            scores = outputs.logits[row, :, : len(some)].float().sigmoid().cpu()
            results.append((scores, _corners(outputs.pred_boxes[row]) * scale))
        return results

    def _placed(self, inputs: Any) -> dict[str, Any]:
        model = self._model
        return {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}


def _plain(text: str) -> str:
    """As the prompt holds it: lower case, no mark that ends a phrase, single spaces."""
    return " ".join(SENTENCE_MARKS.sub(" ", text.lower()).split()) or "object"


def _corners(boxes: Tensor) -> Tensor:
    """Centre and size [Q, 4] to corners, in float32 on the CPU."""
    x, y, width, height = boxes.float().cpu().unbind(-1)
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
