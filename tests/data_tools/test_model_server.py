"""The client for OpenAI-compatible servers, against a local server with faults."""

from __future__ import annotations

import asyncio
import email.utils
import multiprocessing
import pickle
import time

import pytest

from data_tools.captions.client import AnswerFault, ModelServer, ServerDown, ServerFault, gather_answers
from data_tools.captions.limits import BudgetSpent
from tests.data_tools.openai_server import FakeServer, question_of

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def ask(url, texts, schema=None, **settings):
    settings = {"backoff_seconds": 0.01, "timeout_seconds": 5, "concurrency": 4, **settings}
    server = ModelServer(url, "m", **settings)

    def question(text):
        return lambda server: server.complete([{"role": "user", "content": text}], schema)

    return gather_answers(server, [question(text) for text in texts])


def first_then_good(bad):
    return lambda body, attempt: bad if attempt == 1 else f"good: {question_of(body)}"


@pytest.mark.parametrize("stream", [False, True])
def test_answers_come_in_order_in_both_languages(stream):
    with FakeServer(lambda body, attempt: question_of(body)[::-1]) as fake:
        assert ask(fake.url, ["a red bus", "一只白猫"], stream=stream) == ["sub der a", "猫白只一"]
    assert len(fake.requests) == 2 and fake.requests[0]["model"] == "m"


@pytest.mark.parametrize(
    "bad",
    [
        {"status": 429},
        {"status": 500},
        {"status": 503, "headers": {"Retry-After": "0"}},
        {"sleep_seconds": 1.0, "text": "late"},
        {"raw": b"<html>proxy page</html>"},
        {"raw": b'{"choices": []}'},
        {"raw": b'{"choices": [{"message": {"conte'},
        {"break_off": True, "text": "half of it"},
    ],
    ids=["429", "500", "503", "time-out", "html", "no choices", "broken JSON", "half body"],
)
def test_a_fault_of_the_server_is_tried_again(bad):
    with FakeServer(first_then_good(bad)) as fake:
        assert ask(fake.url, ["x"], timeout_seconds=0.7 if "sleep_seconds" in bad else 10) == ["good: x"]
    assert len(fake.requests) == 2


@pytest.mark.parametrize("bad", [{"break_off": True, "text": "half of it"}, {"raw": b"data: {broken\n\n"}])
def test_a_stream_that_breaks_off_is_tried_again(bad):
    with FakeServer(first_then_good(bad)) as fake:
        assert ask(fake.url, ["x"], stream=True) == ["good: x"]
    assert len(fake.requests) == 2


def test_retry_after_is_waited_for_as_seconds_and_as_a_date():
    for value, least in (("0.5", 0.5), (None, 0.8)):
        value = value or email.utils.formatdate(time.time() + 2, usegmt=True)  # whole seconds: up to one is lost
        with FakeServer(first_then_good({"status": 429, "headers": {"Retry-After": value}})) as fake:
            start = time.monotonic()
            assert ask(fake.url, ["x"]) == ["good: x"]
            assert time.monotonic() - start >= least


def test_pauses_grow():
    server = ModelServer("http://h/v1", "m", backoff_seconds=1.0)
    for attempt in range(4):
        assert 0.5 * 2**attempt <= server._pause(attempt, None) <= 1.5 * 2**attempt
    assert server._pause(30, None) <= 90
    assert 7 <= server._pause(0, 7.0) < 7.2


def test_faults_of_one_request_leave_the_others_alone():
    def answer(body, attempt):
        return {"bad": {"status": 500}, "rude": {"status": 400}}.get(question_of(body), "fine")

    with FakeServer(answer) as fake:
        good, bad, rude, last = ask(fake.url, ["good", "bad", "rude", "last"], max_retries=2)
    assert (good, last) == ("fine", "fine")
    assert isinstance(bad, ServerFault) and bad.kind == "status_500" and "3 attempts" in str(bad)
    assert isinstance(rude, ServerFault) and rude.kind == "rejected"
    assert [question_of(body) for body in fake.requests].count("rude") == 1, "a rejected request is not repeated"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ({"text": "a dog on the", "finish_reason": "length"}, "cut_off"),
        ({"text": " "}, "empty"),
        ({"text": "x", "finish_reason": "content_filter"}, "refused"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_useless_answer_names_its_kind(reply, kind, stream):
    with FakeServer(lambda body, attempt: reply) as fake:
        (fault,) = ask(fake.url, ["x"], stream=stream)
    assert isinstance(fault, AnswerFault) and fault.kind == kind and fault.text == reply["text"]


def test_structured_answers_are_asked_for_and_checked():
    replies = {1: '{"n": 1', 2: '{"n": 2}'}
    with FakeServer(lambda body, attempt: replies[attempt]) as fake:
        assert ask(fake.url, ["x"], SCHEMA) == ['{"n": 2}']
    assert fake.requests[0]["response_format"]["json_schema"]["schema"] == SCHEMA
    assert fake.requests[0]["seed"] != fake.requests[1]["seed"], "the same seed would give the same broken answer"
    with FakeServer(lambda body, attempt: "no JSON") as fake:
        (fault,) = ask(fake.url, ["x"], SCHEMA)
    assert isinstance(fault, AnswerFault) and fault.kind == "bad_json" and len(fake.requests) == 3


def test_a_wrong_key_stops_at_once(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-word")
    with FakeServer(lambda body, attempt: {"status": 401}) as fake, pytest.raises(ServerDown, match="MY_KEY") as caught:
        ask(fake.url, ["x"] * 50, api_key_variable="MY_KEY", concurrency=1)
    assert len(fake.requests) == 1
    assert fake.headers[0]["Authorization"] == "Bearer secret-word" and "secret-word" not in str(caught.value)


def test_a_server_that_is_gone_stops_the_job_after_some_requests():
    with pytest.raises(ServerDown, match="in a row"):
        ask("http://127.0.0.1:9/v1", ["x"] * 30, max_retries=1, max_failures_in_a_row=5)


def test_the_budget_holds_and_in_flight_answers_are_kept(tmp_path):
    kept = []

    async def question(server):
        kept.append(await server.complete([{"role": "user", "content": "x"}]))

    with FakeServer(lambda body, attempt: "yes") as fake:
        server = ModelServer(fake.url, "m", concurrency=8, budget_requests=5, shared_folder=tmp_path)
        with pytest.raises(BudgetSpent, match="--budget-requests"):
            gather_answers(server, [question] * 9)
        assert len(fake.requests) == 5 and len(kept) == 5
        again = ModelServer(fake.url, "m", budget_requests=7, shared_folder=tmp_path)
        with pytest.raises(BudgetSpent):
            gather_answers(again, [question] * 9)
        assert len(fake.requests) == 7, "a second start goes on counting"
        tokens = ModelServer(fake.url, "m", budget_tokens=3, shared_folder=tmp_path)
        with pytest.raises(BudgetSpent, match="--budget-tokens"):
            gather_answers(tokens, [question])
        assert tokens.limits.spent() == {"requests": 7, "tokens": 7 * 13}


def _ask_many(url, folder):
    ask(url, [f"{multiprocessing.current_process().name} {n}" for n in range(8)], concurrency=3, shared_folder=folder)


def test_all_processes_together_keep_the_limit(tmp_path):
    context = multiprocessing.get_context("spawn")
    with FakeServer(lambda body, attempt: {"text": "yes", "sleep_seconds": 0.03}) as fake:
        workers = [context.Process(target=_ask_many, args=(fake.url, tmp_path)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
    assert len(fake.requests) == 16
    assert 1 < fake.most_in_flight <= 3


def test_it_can_be_sent_to_workers_and_needs_opening():
    server = pickle.loads(pickle.dumps(ModelServer("http://h/v1", "m")))
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(server.complete([]))
    with pytest.raises(ValueError, match="http://"):
        ModelServer("localhost:8000", "m")
    with pytest.raises(ValueError, match="at least one"):
        ModelServer("http://h/v1", "m", concurrency=0)
