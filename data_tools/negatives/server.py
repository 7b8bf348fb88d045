"""Negatives from a language model behind an OpenAI-compatible server.

The model is asked for a few more than wanted, as JSON. What the validators refuse is told to it once, and as many
others are asked for; what is still missing then is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeGuard

from pydantic import BaseModel, TypeAdapter, ValidationError

from data_tools.model_server.client import ModelServer, gather_answers
from data_tools.model_server.faults import AnswerFault, ServerFault
from data_tools.negatives.interface import Negative, Outcome, Request
from data_tools.negatives.plain import Judge, judge_for
from data_tools.negatives.prompts import load_negatives_prompt
from data_tools.text.prompts import Prompt
from pipeline.base.constants import LANGUAGES
from pipeline.base.languages import primary

VERSION = 1
ANY = "any"  # the prompt for languages that have none of their own
SPARE = 4  # asked for beyond those wanted; assumption: a good model loses about a quarter to the validators
MAX_TRUE_PHRASES = 12  # named in the prompt; the validators know them all
ATTEMPTS = 2
SECOND_TEMPERATURE = 0.7  # at 0 the second answer would be the first one again


def _is_text(value: object) -> TypeGuard[str]:
    """A string that UTF-8 can hold: JSON may escape half of a character."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def answer_schema(count: int) -> dict[str, Any]:
    """The JSON schema of an answer with up to ``count`` phrases."""
    phrases = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": count}
    return {
        "type": "object",
        "properties": {"negatives": phrases},
        "required": ["negatives"],
        "additionalProperties": False,
    }


class _Answer(BaseModel):
    """What the schema asks for; a phrase that is none is refused by itself."""

    negatives: list[Any]


_ANSWER: TypeAdapter[_Answer] = TypeAdapter(_Answer)


class ServerGenerator:
    """The language-model `Generator`. ``prompts`` maps (purpose, language) to a prompt; defaults to those shipped."""

    batch_size, costs = 64, True

    def __init__(self, server: ModelServer, prompts: dict[tuple[str, str], Prompt] | None = None) -> None:
        self.server = server
        self.prompts = {
            (purpose, language): load_negatives_prompt(purpose, language)
            for purpose in ("negatives", "again")
            for language in (*LANGUAGES, ANY)
        } | (prompts or {})

    def describe(self) -> dict[str, Any]:
        names = {f"{purpose}/{language}": prompt.name for (purpose, language), prompt in self.prompts.items()}
        return {"generator": "server", "version": VERSION, **self.server.settings(), "prompts": names}

    def generate(self, requests: Sequence[Request], note: Callable[[int, Outcome], None]) -> None:
        # A phrase keeps its turn until it is done: those half done at a kill, whose answers are lost, stay few.
        turns = asyncio.Semaphore(self.server.limits.concurrency)

        def asking(number: int, request: Request) -> Callable[[ModelServer], Awaitable[None]]:
            async def ask(server: ModelServer) -> None:
                async with turns:
                    note(number, await self._ask(server, request))

            return ask

        gather_answers(self.server, [asking(number, request) for number, request in enumerate(requests)])

    async def _ask(self, server: ModelServer, request: Request) -> Outcome:
        validator = judge_for(request.language, request.phrase, request.true_phrases)
        outcome = Outcome()
        messages = [self._first_message(request)]
        for attempt in range(ATTEMPTS):
            missing = request.wanted - len(outcome.negatives)
            try:
                text = await server.complete(
                    messages,
                    json_schema=answer_schema(missing + SPARE),
                    seed=(request.seed + attempt) % 2**31,
                    temperature=None if attempt == 0 else max(SECOND_TEMPERATURE, server.temperature),
                )
            except AnswerFault as fault:
                outcome.rejected[f"answer_{fault.kind}"] += 1
                outcome.reason = fault.kind
                continue
            except ServerFault as fault:
                outcome.reason = fault.kind
                if fault.kind != "rejected":  # refused for what it is, it would be refused again
                    outcome.failure = str(fault)
                return outcome
            refused = self._judge(text, request, validator, outcome)
            if len(outcome.negatives) == request.wanted:
                outcome.reason = ""
                return outcome
            outcome.reason = "few_valid"
            messages = [messages[0], {"role": "assistant", "content": text}, self._again(request, outcome, refused)]
        return outcome

    def _judge(self, text: str, request: Request, validator: Judge, outcome: Outcome) -> list[str]:
        """Move the good phrases of an answer into ``outcome``; returns the others."""
        try:
            phrases = _ANSWER.validate_json(text).negatives
        except ValidationError:
            outcome.rejected["answer_not_as_asked"] += 1
            return []
        refused = []
        for phrase in phrases:
            if len(outcome.negatives) == request.wanted:
                break
            problem = validator.problem(phrase.strip()) if _is_text(phrase) else "not_text"
            if problem is None:
                outcome.negatives.append(Negative(phrase.strip(), validator.changed_attributes(phrase.strip())))
            else:
                outcome.rejected[problem] += 1
                refused.append(str(phrase).encode("utf-8", "replace").decode())
        return refused

    def _prompt(self, purpose: str, language: str) -> Prompt:
        """That of the language, else of the language without its region, else the one for any language."""
        for known in (language, primary(language)):
            if (purpose, known) in self.prompts:
                return self.prompts[purpose, known]
        return self.prompts[purpose, ANY]

    def _first_message(self, request: Request) -> dict[str, str]:
        prompt = self._prompt("negatives", request.language)
        others = [text for text in dict.fromkeys(request.true_phrases) if text != request.phrase][:MAX_TRUE_PHRASES]
        listed = "\n".join(f"- {text}" for text in others) or "-"
        content = prompt.text.format(
            phrase=request.phrase, true_phrases=listed, count=request.wanted + SPARE, language=request.language
        )
        return {"role": "user", "content": content}

    def _again(self, request: Request, outcome: Outcome, refused: list[str]) -> dict[str, str]:
        prompt = self._prompt("again", request.language)
        missing = request.wanted - len(outcome.negatives) + SPARE
        listed = "\n".join(f"- {text}" for text in refused) or "-"
        return {"role": "user", "content": prompt.text.format(refused=listed, count=missing, language=request.language)}
