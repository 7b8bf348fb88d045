"""Captions from a transformers image-text-to-text model in this process."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from data_tools.captions.checks import caption_problem
from data_tools.captions.step import Answer, Question
from data_tools.execution.device import device_for
from pipeline.data.images import decode_image

RETRY_TEMPERATURE = 0.7


class TransformersCaptioner:
    """A backend of `CaptionStep` for a local model folder; greedy, and once more sampled where that was bad.

    A batch is padded to its longest prompt, so an answer may depend, in the last bits and so now and then in a word,
    on what else is in the batch: batches are cut by the shard alone, and an unfinished one is done again as a whole.
    """

    batch_matters = True

    def __init__(
        self, path: str | Path, *, batch_size: int = 8, max_tokens: int = 512, precision: str = "bfloat16"
    ) -> None:
        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"{path} holds no config.json; give the folder of a saved image-text-to-text model")
        self.path, self.batch_size, self.max_tokens, self.precision = str(path), batch_size, max_tokens, precision
        self._model: Any = None  # of whatever class the folder's config names
        self._processor: Any = None

    def settings(self) -> dict[str, Any]:
        return {"model": Path(self.path).name, "max_tokens": self.max_tokens, "precision": self.precision}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_processor": None}

    def open(self, worker: int) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor  # in the worker alone: seconds of import

        self._processor = AutoProcessor.from_pretrained(self.path)
        self._processor.tokenizer.padding_side = "left"  # generation goes on from the last token
        self._model = AutoModelForImageTextToText.from_pretrained(self.path, dtype=getattr(torch, self.precision))
        self._model = self._model.to(device_for(worker)).eval()

    def close(self) -> None:
        self._model = self._processor = None

    def answer(self, questions: Sequence[Question], note: Callable[[Question, Answer], None]) -> None:
        final: dict[str, Answer] = {}
        waiting = list(questions)
        for sampled in (False, True):
            bad: list[Question] = []
            for question, (text, whole) in zip(waiting, self._generate(waiting, sampled), strict=True):
                problem = caption_problem(text, question.language, question.prompt.text, question.field)
                if text and not whole:
                    problem = problem or "cut_off"
                final[question.key] = Answer(text=text) if problem is None else Answer(absent=problem)
                if problem is not None:
                    bad.append(question)
            waiting = bad
            if not waiting:
                break
        for question in questions:  # only now: the second try of a cut-short batch would have other neighbours
            note(question, final[question.key])

    def _generate(self, questions: Sequence[Question], sampled: bool) -> list[tuple[str, bool]]:
        """``(text, whether it came to its end)`` of each question."""
        texts = [self._prompt(question.prompt.text) for question in questions]
        images = [[decode_image(question.image)] for question in questions]
        inputs = self._processor(images=images, text=texts, padding=True, return_tensors="pt")
        inputs = inputs.to(self._model.device, dtype=self._model.dtype)
        how: dict[str, Any] = {"do_sample": False}
        if sampled:
            how = {"do_sample": True, "temperature": RETRY_TEMPERATURE}
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(zlib.crc32("/".join(question.key for question in questions).encode()))
            ids = self._model.generate(**inputs, max_new_tokens=self.max_tokens, **how)
        new = ids[:, inputs["input_ids"].shape[1] :]
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        decoded = self._processor.batch_decode(new, skip_special_tokens=True)
        whole = [bool(ends & set(row.tolist())) for row in new]
        return [(text.strip(), end) for text, end in zip(decoded, whole, strict=True)]

    def _prompt(self, text: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        conversation = [{"role": "user", "content": content}]
        if getattr(self._processor, "chat_template", None):
            return self._processor.apply_chat_template(conversation, add_generation_prompt=True)
        return f"{self._processor.image_token}\n{text}"
