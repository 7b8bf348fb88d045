"""Clients of stores: the same bytes from all, one attempt a call, errors by what they mean, forks and threads."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from benchmarks.weather import FAULTS, Weather
from pipeline.data import object_clients, web_client
from pipeline.data.object_clients import client_of
from pipeline.data.shard_index import IndexProblem, read_file
from pipeline.data.transport import final_kind, transport_errors
from pipeline.data.web_client import StoreError
from tests.data import stores

NAME = "分片 1%.tar"
DATA = bytes(range(256)) * 4096  # 1 MB


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store")
    (path / NAME).write_bytes(DATA)
    return path


@pytest.fixture(scope="module")
def ports(folder) -> Iterator[dict[str, int]]:
    with (
        stores.web(folder, ranges=True) as ranges,
        stores.web(folder, ranges=False) as whole,
        stores.s3_server() as s3,
    ):
        yield {"http": ranges, "http without ranges": whole, "s3": s3}


@pytest.fixture(scope="module")
def bucket(ports, folder) -> str:
    return stores.fill_bucket(ports["s3"], folder)


def url_of(store: str, port: int, bucket: str, monkeypatch) -> str:
    """The URL of a store behind a port, for a client of its own."""
    if store != "s3":
        return f"http://127.0.0.1:{port}"
    stores.point_to(monkeypatch, port)
    monkeypatch.setattr(object_clients, "_CLIENTS", {})
    return bucket


@pytest.mark.parametrize("store", ["s3", "http", "http without ranges", "memory"])
def test_ranges_and_beginnings_are_the_same_bytes_from_every_store(store, ports, bucket, monkeypatch):
    if store == "memory":
        url = f"memory://{uuid.uuid4().hex}"
        fsspec.filesystem("memory").pipe_file(f"{url.partition('://')[2]}/{NAME}", DATA)
    else:
        url = url_of(store, ports[store], bucket, monkeypatch)
    client = client_of(url)
    assert client.read_range(NAME, 1000, 300_001) == DATA[1000:300_001]
    assert client.read_range(NAME, 0, len(DATA)) == DATA
    assert client.read_range(NAME, len(DATA) - 5, len(DATA) + 100) == DATA[-5:]
    assert client.read_beginning(NAME, 10_000) == DATA[:10_000]
    assert client.read_beginning(NAME, 1 << 22) == DATA
    assert read_file(url + "/", NAME, 1 << 22) == DATA


@pytest.mark.parametrize("store", ["s3", "http"])
def test_what_is_not_there_is_missing_and_asked_for_once(store, ports, bucket, monkeypatch):
    url = url_of(store, ports[store], bucket, monkeypatch)
    with pytest.raises(FileNotFoundError, match="status 404") as caught:
        client_of(url).read_range("没有.tar", 0, 10)
    assert final_kind(caught.value) == "missing" and caught.value.filename == "没有.tar"
    if store == "s3":
        with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
            client_of("s3://no-such-bucket/x").read_beginning("a.tar", 10)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "forbidden"), (403, "forbidden"), (404, "missing"), (410, "missing"), (408, None), (416, None), (429, None),
     (500, None), (503, None)],
)  # fmt: skip
def test_an_answer_is_final_only_where_the_object_is_missing_or_forbidden(status, kind):
    body = "<Error><Code>慢</Code><Message>slow\ndown</Message></Error>".encode()
    with stores.answering(lambda request: (status, {"Retry-After": "60"}, body)) as port:
        with pytest.raises(OSError, match=f"status {status}: 慢, slow down") as caught:
            client_of(f"http://127.0.0.1:{port}").read_range("a.tar", 0, 10)
    assert final_kind(caught.value) == kind and isinstance(caught.value, transport_errors())
    assert isinstance(caught.value, StoreError) == (kind is None)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "wrong_bytes"])
@pytest.mark.parametrize("store", ["s3", "http"])
def test_a_fault_of_the_network_is_an_error_after_one_request(store, fault, ports, bucket, monkeypatch):
    monkeypatch.setattr(web_client, "STALL_SECONDS", 0.5)
    weather = Weather(ports[store], fault_share=1.0, faults=(fault,))
    url = url_of(store, weather.start(), bucket, monkeypatch)
    try:
        with pytest.raises(transport_errors()) as caught:
            client_of(url).read_range(NAME, 0, len(DATA))
        assert final_kind(caught.value) is None
        assert weather.counts["requests"] == weather.counts[fault] == 1
        weather.fault_share = 0.0
        monkeypatch.setattr(web_client, "STALL_SECONDS", 20.0)
        assert client_of(url).read_range(NAME, 0, len(DATA)) == DATA, "the client is as good as new"
    finally:
        weather.stop()


@pytest.mark.parametrize("store", ["s3", "http"])
def test_a_body_that_comes_too_slowly_is_given_up(store, ports, bucket, monkeypatch):
    monkeypatch.setattr(web_client, "STALL_SECONDS", 1.0)  # never so long without a byte
    weather = Weather(ports[store], bytes_a_second=300e3)
    url = url_of(store, weather.start(), bucket, monkeypatch)
    try:
        with pytest.raises(TimeoutError, match="below 1048576 bytes a second"):
            client_of(url).read_range(NAME, 0, len(DATA))
    finally:
        weather.stop()


def test_a_store_that_is_not_there_is_an_error_that_shows_no_password():
    with stores.answering(lambda request: (200, {}, b"")) as port:
        pass
    with pytest.raises(transport_errors()) as caught:
        client_of(f"http://user:secret@127.0.0.1:{port}").read_range("a.tar", 0, 10)
    assert final_kind(caught.value) is None and "secret" not in str(caught.value)


def test_a_part_that_was_not_asked_for_is_refused():
    with stores.answering(lambda request: (206, {"Content-Range": "bytes 50-59/100"}, b"x" * 10)) as port:
        with pytest.raises(StoreError, match="from byte 50 on, not from 0"):
            client_of(f"http://127.0.0.1:{port}").read_range("a.tar", 0, 10)


def test_redirects_are_followed_and_a_password_is_not_taken_along():
    seen = []

    def there(request):
        seen.append(request.headers.get("Authorization"))
        return 200, {}, b"0123456789"

    with stores.answering(there) as far:
        with stores.answering(lambda request: (302, {"Location": f"http://localhost:{far}/a"}, b"")) as near:
            assert client_of(f"http://u:w@127.0.0.1:{near}").read_range("a.tar", 2, 4) == b"23"
        assert client_of(f"http://u:%E5%AF%86@127.0.0.1:{far}").read_range("a.tar", 2, 4) == b"23"
    assert seen == [None, "Basic dTrlr4Y="]


def test_a_bucket_of_another_region_is_found_and_signed_for(monkeypatch):
    seen = []

    def answer(request):
        seen.append(request.headers["Authorization"].split("/")[2])
        if seen[-1] != "eu-central-1":
            return 301, {"x-amz-bucket-region": "eu-central-1"}, b"<Error><Code>PermanentRedirect</Code></Error>"
        return 206, {"Content-Range": "bytes 3-4/9"}, b"ab"

    monkeypatch.setattr(object_clients, "_CLIENTS", {})
    with stores.answering(answer) as port:
        stores.point_to(monkeypatch, port)
        client = client_of("s3://far-away")
        assert client.read_range("a.tar", 3, 5) == client.read_range("a.tar", 3, 5) == b"ab"
    assert seen == ["us-east-1", "eu-central-1", "eu-central-1"], "asked for once"


def test_without_credentials_nothing_is_signed_and_a_refusal_says_so(monkeypatch):
    def answer(request):
        assert "Authorization" not in request.headers and "X-Amz" not in request.path
        return (403, {}, b"") if "private" in request.path else (200, {}, b"open")

    monkeypatch.setattr(object_clients, "_CLIENTS", {})
    with stores.answering(answer) as port:
        stores.point_to(monkeypatch, port, keys=False)
        assert client_of("s3://open-data").read_beginning("a.tar", 100) == b"open"
        with pytest.raises(PermissionError, match="asked without credentials, because none were found"):
            client_of("s3://private-data").read_beginning("a.tar", 100)


@pytest.mark.parametrize(
    ("url", "says"),
    [("s3://桶_Bucket!/x", "[Bb]ucket"), ("nothing://x", "nothing"), ("http:///x", "host"), ("https://", "host")],
)  # fmt: skip
def test_a_url_that_cannot_be_opened_is_told_at_once(url, says, monkeypatch):
    stores.point_to(monkeypatch, 1)
    with pytest.raises(IndexProblem, match=rf"cannot be opened: .*{says}") as caught:
        client_of(url)
    assert "\n" not in str(caught.value)


def test_a_profile_that_is_not_there_is_told_at_once(monkeypatch):
    monkeypatch.setattr(object_clients, "_CLIENTS", {})
    stores.point_to(monkeypatch, 1)
    monkeypatch.setenv("AWS_PROFILE", "没有")
    with pytest.raises(IndexProblem, match="没有"):
        client_of("s3://some-bucket")


def test_without_botocore_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "pipeline.data.s3_client", raising=False)
    monkeypatch.setitem(sys.modules, "botocore", None)
    with pytest.raises(IndexProblem, match=r'pip install "fine-grained-vlm\[s3\]"'):
        client_of("s3://another-bucket")


def test_threads_share_one_client(ports, bucket, monkeypatch):
    url = url_of("s3", ports["s3"], bucket, monkeypatch)
    made, honest = [], object_clients._make_client
    monkeypatch.setattr(object_clients, "_make_client", lambda url: made.append(url) or honest(url))
    together = threading.Barrier(8)

    def read(number: int) -> bytes:
        together.wait(60)
        return b"".join(client_of(url).read_range(NAME, start, start + 999) for start in range(number, 5000, 1000))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(read, range(8)))
    assert found == [b"".join(DATA[start : start + 999] for start in range(n, 5000, 1000)) for n in range(8)]
    assert made == [url]


def _read_in_child(url: str, parents: int, results: multiprocessing.SimpleQueue) -> None:
    client = client_of(url)
    results.put((id(client) != parents, client.read_range(NAME, 5, 50_000) == DATA[5:50_000]))


@pytest.mark.parametrize("store", ["s3", "http"])
def test_a_forked_process_has_a_client_of_its_own(store, ports, bucket, monkeypatch):
    url = url_of(store, ports[store], bucket, monkeypatch)
    client = client_of(url)
    assert client.read_range(NAME, 0, 10) == DATA[:10]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=_read_in_child, args=(url, id(client), results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert client.read_range(NAME, 0, len(DATA)) == DATA
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [results.get() for _ in processes] == [(True, True)] * 2
