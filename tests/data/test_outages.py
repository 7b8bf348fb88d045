"""A store that goes away for a while: waited for, told to the heartbeats, and not a sample is lost by it."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.weather import Weather
from pipeline.config import DataSettings, Stage1Settings
from pipeline.data import transport
from pipeline.data.index import index_folder
from pipeline.data.loader import Loader, Reading, make_loader
from pipeline.data.transport import Patience, StoreCounts, StoreUnavailable
from pipeline.data.waiting import store_of
from tests.data.shards import write_shards
from tests.data.stores import web

ABSENT_SECONDS = 1.5
BATCHES = 12


@contextmanager
def stormy(folder: Path) -> Iterator[tuple[str, Weather]]:
    """A folder over http, behind a proxy that can be absent; its URL."""
    with web(folder, ranges=True) as port:
        weather = Weather(port)
        try:
            yield f"http://127.0.0.1:{weather.start()}", weather
        finally:
            weather.stop()


def load(shards: str, tokenizer, cache: Path, **settings) -> Loader:
    made = DataSettings(
        shards=[shards], cache_folder=str(cache), window_shards=4, prefetch_gigabytes=0.0, num_workers=1,
        prefetch_batches=1, **settings,
    )  # fmt: skip
    return make_loader(Reading(made, tokenizer, (16, 32), seed=0, global_batch_size=8))


@pytest.fixture
def shards(tmp_path) -> Path:
    """Six shards, each fetched in many small pieces, so that every batch needs the store."""
    folder = write_shards(tmp_path / "分片", [[("en", 128), ("zh", 128)] * 12 for _ in range(6)])
    index_folder(folder, piece_bytes=1)
    return folder


def test_three_outages_cost_no_sample_and_every_batch_is_as_planned(tmp_path, tokenizer, shards):
    with load(str(shards), tokenizer, tmp_path / "none") as loader:
        planned = [next(loader).keys for _ in range(BATCHES)]
    found, waits = [], []
    with stormy(shards) as (url, weather), load(url, tokenizer, tmp_path / "cache") as loader:
        done = threading.Event()

        def ask() -> None:  # as the heartbeat's thread does
            while not done.wait(0.05):
                waits.append(loader.waits_for())

        asking = threading.Thread(target=ask)
        asking.start()
        for number in range(BATCHES):
            if number in (1, 5, 9):
                weather.absent = True
                threading.Timer(ABSENT_SECONDS, setattr, (weather, "absent", False)).start()
            found.append(next(loader).keys)
        done.set()
        asking.join()
        assert loader.waits_for() is None
        assert loader.fault_counts() == {} and loader.store_counts()["retries"] > 3
    assert found == planned
    told = [text for text in waits if text]
    host = url.removeprefix("http://")
    assert told and all(text.startswith(f"waits for {host}, try ") and text.endswith(" s") for text in told)


def test_a_store_that_stays_away_is_one_error_with_the_setting(tmp_path, tokenizer, shards):
    with stormy(shards) as (url, weather), load(url, tokenizer, tmp_path / "c", store_patience_seconds=1.0) as loader:
        weather.absent = True
        with pytest.raises(StoreUnavailable, match=r"data.store_patience_seconds = 1; .* it resumes") as caught:
            next(loader)
        assert "\n" not in str(caught.value) and loader.waits_for() is None


def _wait_in_vain(counts: StoreCounts, url: str) -> None:
    def fail() -> None:
        raise ConnectionRefusedError("no")

    Patience(60.0, counts)(url, fail)


def test_a_wait_of_another_process_is_on_the_board_until_it_is_over(monkeypatch):
    counts = StoreCounts()
    process = multiprocessing.get_context("fork").Process(target=_wait_in_vain, args=(counts, "s3://桶/a.tar"))
    process.start()
    end = time.monotonic() + 30
    while counts.waits.oldest() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.terminate()
    process.join()
    assert counts.waits.oldest().startswith("waits for 桶, try ")
    monkeypatch.setattr(transport, "FIRST_PAUSE_SECONDS", 0.0)
    here, seen = StoreCounts(), []

    def work() -> str:
        seen.append(here.waits.oldest())
        if len(seen) < 3:
            raise TimeoutError("stalled")
        return "data"

    assert Patience(60.0, here)("https://u:secret@host:8/x.tar", work) == "data"
    assert seen == [None, "waits for host:8, try 2, 0 s", "waits for host:8, try 3, 0 s"]
    assert here.waits.oldest() is None


@pytest.mark.parametrize(
    ("url", "store"),
    [("s3://bucket/a.tar", "bucket"), ("https://user:word@host/x", "host"), ("http://h:80/x", "h:80"),
     ("http://h:端口/x", "http://h:端口/x"), ("memory:///x", "/x")],
)  # fmt: skip
def test_a_store_is_named_by_its_host_without_a_password(url, store):
    assert store_of(url) == store


def test_collectives_wait_for_a_rank_that_waits_for_its_store():
    near = Stage1Settings.model_validate({"train": {"timeout_seconds": 60}})
    far = Stage1Settings.model_validate({"train": {"timeout_seconds": 60}, "data": {"shards": ["s3://b/x"]}})
    assert near.collective_seconds == 60 and far.collective_seconds == 60 + far.data.store_patience_seconds
