"""Captions from a model server."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from data_tools.captions.checks import caption_problem
from data_tools.captions.step import Answer, Question
from data_tools.model_server.client import ModelServer, gather_answers
from data_tools.model_server.faults import AnswerFault, ServerFault
from data_tools.model_server.images import image_message

ATTEMPTS = 2
# At temperature 0 a second try with another seed would give the same text again.
RETRY_TEMPERATURE = 0.7


class ServerCaptioner:
    """A backend of `CaptionStep`; each answer is final, and noted, as soon as it has come and been checked."""

    batch_size = 64  # records read ahead; the server's own limit says how many are asked about at once

    def __init__(self, server: ModelServer) -> None:
        self.server = server

    def settings(self) -> dict[str, Any]:
        return self.server.settings()

    def open(self, worker: int) -> None:
        """Nothing to load."""

    def close(self) -> None:
        """Connections are closed with each batch."""

    def answer(self, questions: Sequence[Question], note: Callable[[Question, Answer], None]) -> None:
        def asking(question: Question) -> Callable[[ModelServer], Awaitable[None]]:
            async def ask(server: ModelServer) -> None:
                note(question, await _ask(server, question))

            return ask

        gather_answers(self.server, [asking(question) for question in questions])


async def _ask(server: ModelServer, question: Question) -> Answer:
    message = image_message(question.prompt.text, question.image, question.extension)
    reason = None
    for attempt in range(ATTEMPTS):
        try:
            text = await server.complete(
                [message],
                seed=zlib.crc32(question.key.encode()) // 2 + attempt,  # below 2^31, as servers ask
                temperature=None if attempt == 0 else max(RETRY_TEMPERATURE, server.temperature),
            )
        except AnswerFault as fault:
            reason = fault.kind
            continue
        except ServerFault as fault:
            if fault.kind == "rejected":  # by the server for what it is: it would be rejected again
                return Answer(absent="rejected")
            return Answer(absent=fault.kind, failure=str(fault))
        reason = caption_problem(text, question.language, question.prompt.text, question.field)
        if reason is None:
            return Answer(text=text)
    return Answer(absent=reason)
