"""What model servers answer: whole bodies, streams, and the JSON inside a model's answer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from data_tools.model_server.client import ModelServer, gather_answers
from data_tools.model_server.faults import AnswerFault, ServerDown, ServerFault
from data_tools.negatives.interface import Outcome, Request, outcomes
from data_tools.negatives.server import ServerGenerator
from pipeline.data.schema import MAX_TEXT_LENGTH
from tests.border.damage import Damage, damage_bytes, damage_document
from tests.border.formats import Format
from tests.data_tools.openai_server import FakeServer, Reply

BODY, STREAM, PHRASES = "body.json", "stream.jsonl", "phrases.json"
ANSWER = "一只红色的杯子 on a table"


def make_answers(folder: Path) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    body = {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}
    (folder / BODY).write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
    events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": part}}]} for part in ANSWER.split()]
    events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
    lines = [json.dumps(event, ensure_ascii=False) + "\n" for event in events]
    (folder / STREAM).write_text("".join(lines), encoding="utf-8")
    phrases = [f"a {colour} cup" for colour in ("blue", "green", "yellow", "white", "black", "pink", "grey")]
    (folder / PHRASES).write_text(json.dumps({"negatives": [*phrases, "红色的杯子"]}), encoding="utf-8")
    read_answers(folder)  # the client asks the system once what it is, by a program of its own


def damage_answer(rng: random.Random, base: Path) -> Damage:
    file = rng.choice((BODY, STREAM, PHRASES))
    if rng.random() < 0.2:
        return damage_bytes(rng, file)
    return damage_document(rng, file, (base / file).read_bytes())


def read_answers(folder: Path) -> tuple[str, Outcome]:
    """A caption as a body and as a stream, and negatives; faults of a request are raised."""
    stream = b"".join(b"data: " + line + b"\n\n" for line in (folder / STREAM).read_bytes().split(b"\n") if line)
    whole = ask({"raw": (folder / BODY).read_bytes()}, stream=False)
    streamed = ask({"raw": stream + b"data: [DONE]\n\n"}, stream=True)
    phrases = (folder / PHRASES).read_text(encoding="utf-8", errors="replace")
    with FakeServer(lambda body, attempt: phrases) as fake:
        (outcome,) = outcomes(ServerGenerator(server_at(fake.url)), [Request("a red cup", "en", wanted=5)])
    if outcome.failure or outcome.reason:
        raise ServerFault(outcome.reason, outcome.failure or f"{outcome.reason}: {dict(outcome.rejected)}")
    return whole + streamed, outcome


def ask(reply: Reply, *, stream: bool) -> str:
    with FakeServer(lambda body, attempt: reply) as fake:
        server = server_at(fake.url, stream=stream)
        (answer,) = gather_answers(server, [lambda one: one.complete([{"role": "user", "content": "?"}])])
    if isinstance(answer, BaseException):
        raise answer
    return answer


def server_at(url: str, **settings: Any) -> ModelServer:
    return ModelServer(url, "m", max_retries=0, timeout_seconds=60, backoff_seconds=0.01, **settings)


def check_answers(found: tuple[str, Outcome]) -> str | None:
    text, outcome = found
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "half of a character"
    wrong = [one.text for one in outcome.negatives if not one.text.strip() or len(one.text) > MAX_TEXT_LENGTH]
    return f"the negatives {wrong[:3]!r:.100}" if wrong else None


NAMED = (AnswerFault, ServerFault, ServerDown)
FORMATS = {
    "server": Format("model servers' answers", make_answers, damage_answer, read_answers, NAMED, check_answers, 512)
}
