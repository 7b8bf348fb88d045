"""The caption step: ask a backend for the captions that are absent, keep the good ones, say why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from data_tools.execution.steps import Drop, Record, Shard, Step
from data_tools.model_server.images import fitted
from data_tools.text.prompts import Prompt
from pipeline.base.languages import primary
from pipeline.data.images import ImageFault
from pipeline.data.schema import Sample


@dataclass(frozen=True)
class Question:
    """One caption to be written: ``key`` names sample and field in the journal."""

    key: str
    field: str  # of the sample: long_caption or short_caption
    language: str
    prompt: Prompt
    image: bytes
    extension: str


@dataclass(frozen=True)
class Answer:
    """``text``, or the kind of reason why there is none; ``failure`` tells more where a later run may get one."""

    text: str | None = None
    absent: str | None = None
    failure: str | None = None


_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


def _kept(value: Any) -> Answer | None:
    """An answer of the journal; None for anything else, as a damaged one holds it."""
    try:
        return _ANSWER.validate_python(value)
    except ValidationError:
        return None


class Backend(Protocol):
    """Writes captions. Answers are checked (`caption_problem`) and asked for once more if they are bad."""

    batch_size: int  # records at a time

    def settings(self) -> dict[str, Any]: ...

    def open(self, worker: int) -> None: ...

    def answer(self, questions: Sequence[Question], note: Callable[[Question, Answer], None]) -> None:
        """Call ``note`` once for each question, as soon as its answer is final."""

    def close(self) -> None: ...


class CaptionStep(Step):
    """Writes ``fields`` where they are absent (everywhere with ``replace_existing``).

    ``prompts`` maps (field, language) to a prompt; images larger than ``max_image_side`` pixels are sent smaller.
    """

    name, version = "captions", "1"

    def __init__(
        self,
        backend: Backend,
        prompts: dict[tuple[str, str], Prompt],
        *,
        replace_existing: bool = False,
        max_image_side: int = 1280,
    ) -> None:
        self.backend, self.prompts = backend, prompts
        self.replace_existing, self.max_image_side = replace_existing, max_image_side
        self.batch_size = backend.batch_size

    def settings(self) -> dict[str, Any]:
        return {
            **self.backend.settings(),
            "prompts": {f"{field}/{language}": prompt.name for (field, language), prompt in self.prompts.items()},
            "replace_existing": self.replace_existing,
            "max_image_side": self.max_image_side,
        }

    def open(self, worker: int) -> None:
        self.backend.open(worker)

    def close(self) -> None:
        self.backend.close()

    def apply(self, records: list[Record], shard: Shard) -> list[Record | Drop]:
        faults: dict[str, Drop] = {}
        questions: list[Question] = []
        for record in records:
            try:
                questions += self._questions(record, shard)
            except ImageFault as fault:
                faults[record.key] = Drop(record.key, fault.kind, str(fault))
        answers: dict[str, Answer] = {}

        def note(question: Question, answer: Answer) -> None:
            answers[question.key] = answer
            if answer.failure is None:  # a failure is not an answer: the next run asks again
                shard.journal.put(question.key, {"text": answer.text, "absent": answer.absent})

        kept = {q.key: _kept(shard.journal.get(q.key)) for q in questions if q.key in shard.journal}
        known = {key: answer for key, answer in kept.items() if answer is not None}
        if len(known) < len(questions):
            # A backend whose answers depend on what else is in the batch is given the whole batch again.
            whole = getattr(self.backend, "batch_matters", False)
            self.backend.answer([q for q in questions if whole or q.key not in known], note)
        answers |= known
        by_record: dict[str, list[Question]] = {}
        for question in questions:
            by_record.setdefault(question.key.rpartition("/")[0], []).append(question)
        return [
            faults.get(record.key) or self._captioned(record, by_record.get(record.key, []), answers, shard)
            for record in records
        ]

    def _questions(self, record: Record, shard: Shard) -> list[Question]:
        if record.sample.frames is not None:
            shard.count("clips_left_as_they_are")  # a frame is no answer to what happens
            return []
        wanted: list[tuple[str, Prompt]] = []
        for field in dict.fromkeys(field for field, _ in self.prompts):
            if not self.replace_existing and getattr(record.sample, field) is not None:
                continue
            tags = (record.sample.language, primary(record.sample.language))
            prompt = next((self.prompts[field, tag] for tag in tags if (field, tag) in self.prompts), None)
            if prompt is None:
                shard.count(f"{field}_without_prompt_{record.sample.language}")
            else:
                wanted.append((field, prompt))
        if not wanted:
            return []
        image, extension = fitted(record.image, record.extension, self.max_image_side)
        return [
            Question(f"{record.key}/{field}", field, record.sample.language, prompt, image, extension)
            for field, prompt in wanted
        ]

    def _captioned(self, record: Record, questions: list[Question], answers: dict[str, Answer], shard: Shard) -> Record:
        sample, source = record.sample, dict(record.sample.source)
        for question in questions:
            answer = answers[question.key]
            by = {"by": f"{self.name}/{self.version}", **self.backend.settings(), "prompt": question.prompt.name}
            if answer.text is None:
                shard.count(f"{question.field}_absent_{answer.absent}")
                source.setdefault(question.field, {**by, "absent": answer.absent})
                if answer.failure is not None:
                    shard.fail(question.key, f"{answer.absent}: {answer.failure}")
                continue  # with replace_existing the sample keeps what it has
            shard.count(f"{question.field}_written")
            source[question.field] = by
            sample = _with_caption(sample, question.field, answer.text)
        return replace(record, sample=replace(sample, source=source))


def _with_caption(sample: Sample, field: str, text: str) -> Sample:
    return replace(sample, long_caption=text) if field == "long_caption" else replace(sample, short_caption=text)
