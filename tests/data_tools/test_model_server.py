"""The client for OpenAI-compatible servers, against a local server with faults."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import multiprocessing
import pickle
import time

import pytest

from data_tools.model_server.client import ModelServer, gather_answers
from data_tools.model_server.faults import AnswerFault, ServerDown, ServerFault
from data_tools.model_server.limits import BudgetSpent
from data_tools.model_server.transport import MAX_ANSWER_BYTES, MAX_ERROR_BYTES, retry_after
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


def answer_with(content='"yes"', finish='"stop"', usage='{"total_tokens": 3}'):
    message = f'{{"role": "assistant", "content": {content}}}'
    return f'{{"choices": [{{"message": {message}, "finish_reason": {finish}}}], "usage": {usage}}}'.encode()


DEEP = "[" * 100_000 + "]" * 100_000
BAD_BODIES = {
    "content is a list": answer_with('[{"type": "text", "text": "yes"}]'),
    "content is a number": answer_with("5"),
    "content is an object": answer_with('{"a": 1}'),
    "content is true": answer_with("true"),
    "content is half an emoji": answer_with('"\\ud83d"'),
    "finish reason is a list": answer_with(finish="[1]"),
    "nested deep": answer_with(DEEP),
    "nested deep elsewhere": b'{"x": %s}' % DEEP.encode(),
    "tokens are infinite": answer_with(usage='{"total_tokens": 1e999}'),
    "tokens are negative": answer_with(usage='{"total_tokens": -1}'),
    "tokens without end": answer_with(usage='{"total_tokens": %s}' % ("9" * 5000)),
    "tokens are text": answer_with(usage='{"total_tokens": "many"}'),
    "choices are an object": b'{"choices": {"0": 1}}',
    "choices are numbers": b'{"choices": [1, 2]}',
    "a list": b"[]",
    "null": b"null",
    "a string": b'"yes"',
    "no UTF-8": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_other_types_is_named_and_tried_again(body, stream):
    if stream:
        body = b"data: " + body.replace(b'"message"', b'"delta"') + b"\n\ndata: [DONE]\n\n"
    with FakeServer(first_then_good({"raw": body})) as fake:
        assert ask(fake.url, ["x"], stream=stream) == ["good: x"]
    with FakeServer(lambda _, attempt: {"raw": body}) as fake:
        (fault,) = ask(fake.url, ["x"], stream=stream, max_retries=1)
    assert isinstance(fault, ServerFault) and fault.kind == "bad_body" and len(fake.requests) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "piece", [b'{"choices": [' + b" " * 65536, b"data: " + b"x" * 65536, b'data: {"a": "%s"}\n\n' % (b"x" * 600) * 100]
)
def test_an_endless_answer_is_left_at_its_bound(piece, stream):
    with FakeServer(lambda body, attempt: {"endless": piece}) as fake:
        (fault,) = ask(fake.url, ["x"], stream=stream, max_retries=0, timeout_seconds=60)
    assert isinstance(fault, ServerFault) and fault.kind == "bad_body"
    assert fake.bytes_sent < 4 * MAX_ANSWER_BYTES, "what lay in buffers on the way, no more"


@pytest.mark.parametrize("status", [400, 404])
def test_an_endless_error_body_is_left_at_its_bound(status):
    with FakeServer(lambda body, attempt: {"status": status, "endless": b"no " * 20_000}) as fake:
        try:
            (fault,) = ask(fake.url, ["x"], max_retries=0, timeout_seconds=60)
        except ServerDown as error:
            fault = error
    assert f"HTTP {status}: no no" in str(fault) and len(str(fault)) < 1000
    assert fake.bytes_sent < 200 * MAX_ERROR_BYTES


@pytest.mark.parametrize("status", [200, 400])
def test_a_body_that_unpacks_to_gigabytes_is_not_unpacked(status):
    bomb = gzip.compress(bytes(200 << 20), 1)
    reply = {"status": status, "raw": bomb, "headers": {"Content-Encoding": "gzip"}}
    with FakeServer(lambda body, attempt: reply) as fake:
        (fault,) = ask(fake.url, ["x"], max_retries=0)
    assert fake.headers[0]["Accept-Encoding"] == "identity"
    assert fault.kind == ("bad_body" if status == 200 else "rejected") and "\0" not in str(fault)


def test_a_slow_body_is_given_up_after_the_time_for_the_whole_answer():
    with FakeServer(lambda body, attempt: {"endless": b" ", "pause_seconds": 0.05}) as fake:
        (fault,) = ask(fake.url, ["x"], max_retries=0, timeout_seconds=0.5)
    assert fault.kind == "time_out", "bytes keep coming, the answer does not"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_images_are_not_sent_on_to_another_host(status):
    with FakeServer(lambda body, attempt: "stolen") as other:
        target = other.url.replace("127.0.0.1", "localhost") + "/chat/completions"
        reply = {"status": status, "headers": {"Location": target}}
        with FakeServer(lambda body, attempt: reply) as fake, pytest.raises(ServerDown, match="localhost"):
            ask(fake.url, ["x"])
    assert not other.requests


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1:9/x", "//\x1b[2J/x", ""])
def test_a_redirect_to_another_scheme_is_named_and_not_followed(target):
    reply = {"status": 302, "headers": {"Location": target}}
    with (
        FakeServer(lambda body, attempt: reply) as fake,
        pytest.raises(ServerDown, match="sends requests on") as caught,
    ):
        ask(fake.url, ["x"])
    assert "\x1b" not in str(caught.value) and len(fake.requests) == 1


def test_what_an_error_says_is_shown_as_text():
    body = "\x1b[2J\x1b]0;owned\x07 out of memory 内存不足".encode()
    with FakeServer(lambda _, attempt: {"status": 400, "raw": body}) as fake:
        (fault,) = ask(fake.url, ["x"])
    assert "\x1b" not in str(fault) and "\\x1b[2J" in str(fault) and "内存不足" in str(fault)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("inf", None), ("-inf", None), ("nan", None), ("-1", None), ("soon", None), ("", None)],
)
def test_only_a_finite_pause_is_taken_from_retry_after(value, seconds):
    assert retry_after(value) == seconds
    assert retry_after("Fri, 31 Dec 9999 23:59:59 GMT") > 1e9 and retry_after("Mon, 01 Jan 1990 00:00:00 GMT") == 0


@pytest.mark.parametrize("value", ["1000000000", "Fri, 31 Dec 9999 23:59:59 GMT", "1e300"])
def test_a_pause_of_years_is_not_waited_for(value):
    with FakeServer(lambda body, attempt: {"status": 429, "headers": {"Retry-After": value}}) as fake:
        (fault,) = ask(fake.url, ["x"])
    assert fault.kind == "status_429" and "asks to wait" in str(fault) and len(fake.requests) == 1


def test_deep_json_inside_an_answer_is_an_answer_without_use():
    with FakeServer(lambda body, attempt: "[" * 50_000) as fake:
        (fault,) = ask(fake.url, ["x"], SCHEMA)
    assert isinstance(fault, AnswerFault) and fault.kind == "bad_json"


def test_it_can_be_sent_to_workers_and_needs_opening():
    server = pickle.loads(pickle.dumps(ModelServer("http://h/v1", "m")))
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(server.complete([]))
    with pytest.raises(ValueError, match="http://"):
        ModelServer("localhost:8000", "m")
    with pytest.raises(ValueError, match="at least one"):
        ModelServer("http://h/v1", "m", concurrency=0)
