"""Remote shards through the shared cache: fetched once, checked, kept below a size, the same batches as local ones."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline.base.constants import PATCH_BUDGETS
from pipeline.config import DataSettings
from pipeline.data import transport
from pipeline.data.cache import CachedFolder, Piece, check_remote
from pipeline.data.index import index_folder, index_shard, write_manifest
from pipeline.data.loader import Reading, make_loader
from pipeline.data.manifest import IndexProblem, load_manifest
from pipeline.data.shard_index import ShardIndex
from pipeline.data.slices import Division
from pipeline.data.transport import Patience, ShardUnavailable, StoreCounts, StoreUnavailable, Transport
from tests.data import stores
from tests.data.shards import write_shards


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(transport, "FIRST_PAUSE_SECONDS", 0.0)


@pytest.fixture
def remote(tmp_path):
    """A file:// URL whose files count as remote: tars of 1,000 bytes, each of one piece."""
    folder = tmp_path / "remote"
    folder.mkdir()
    for n in range(5):
        (folder / f"s{n}.tar").write_bytes(bytes([n]) * 1000)
    return f"file://{folder}"


def rows(*extents: tuple[int, int, bytes]) -> ShardIndex:
    """Index rows of samples whose image and record are the same bytes: ``(start, end, content)`` each."""
    columns = {
        f"{what}_{part}": np.array([value(*extent) for extent in extents])
        for what in ("image", "json")
        for part, value in (
            ("offset", lambda start, end, content: start),
            ("length", lambda start, end, content: end - start),
            ("crc32", lambda start, end, content: zlib.crc32(content)),
        )
    }
    ones = np.ones(len(extents), dtype=np.int64)
    keys = [str(number) for number in range(len(extents))]
    return ShardIndex("s", keys, **columns, width=ones, height=ones, languages=("en",), language=ones - 1,
                      num_regions=ones - 1, num_negatives=ones - 1, num_frames=ones)  # fmt: skip


def of(number: int, start: int, end: int) -> tuple[ShardIndex, int, int, int]:
    """What is read of a piece: one sample that is all its index speaks of."""
    return rows((start, end, bytes([number]) * (end - start))), 0, start, end


def piece(number: int, start: int = 0, end: int = 1000) -> Piece:
    return Piece(number, 0, f"s{number}.tar", start, end)


def cached(url: str, folder: Path, max_bytes: int = 100_000, seconds: float = 30.0, **options) -> CachedFolder:
    return CachedFolder(Transport(url, Patience(seconds, StoreCounts())), folder, max_bytes, **options)


def test_a_piece_is_fetched_once_and_read_by_its_place_in_the_tar(tmp_path, remote):
    store = cached(remote, tmp_path / "cache")
    assert store.read(piece(1, 100, 900), *of(1, 150, 160)) == b"\x01" * 10
    os.unlink(remote.removeprefix("file://") + "/s1.tar")
    assert store.read(piece(1, 100, 900), *of(1, 890, 900)) == b"\x01" * 10
    assert [path.stat().st_size for path in store.folder.glob("*.piece")] == [800]
    with pytest.raises(ShardUnavailable) as caught:
        store.read(Piece(9, 0, "nothing.tar", 0, 10), *of(9, 0, 10))
    assert caught.value.kind == "missing_shard"
    counts = store.transport.patience.counts.totals()
    assert counts == {"requests": 2, "bytes": 800, "retries": 0}


def test_samples_of_pieces_of_other_machines_are_fetched_alone(tmp_path, remote):
    store = cached(remote, tmp_path / "cache", is_home=lambda piece: piece.shard == 1)
    assert store.read(piece(2), *of(2, 500, 600)) == b"\x02" * 100
    assert store.read(piece(2), *of(2, 500, 600)) == b"\x02" * 100
    assert store.transport.patience.counts.totals()["bytes"] == 100
    assert [path.name for path in store.folder.glob("s*")] == ["s2.0.0.sample"]
    store.fetch_piece(piece(2), rows())
    os.unlink(store.folder / "s2.0.0.sample")
    assert store.read(piece(2), *of(2, 500, 600)) == b"\x02" * 100, "a neighbour's whole piece serves too"


def test_an_index_with_other_bytes_than_the_manifest_says_is_refused(tmp_path, remote):
    folder = Path(remote.removeprefix("file://"))
    (folder / "s1.index.parquet").write_bytes(b"index")
    store = cached(remote, tmp_path / "cache")
    assert store.index("s1.tar", hashlib.sha256(b"index").hexdigest()).read_bytes() == b"index"
    (folder / "s2.index.parquet").write_bytes(b"other")
    with pytest.raises(ShardUnavailable) as caught:
        store.index("s2.tar", hashlib.sha256(b"index").hexdigest())
    assert caught.value.kind == "shard_checksum"


def test_the_cache_stays_below_its_size_and_forgets_the_longest_unused(tmp_path, remote):
    store = cached(remote, tmp_path / "cache", 3000)
    for n in (0, 1, 2):
        store.fetch_piece(piece(n), rows())
        os.utime(store.folder / f"s{n}.0.piece", (n + 1, n + 1))
    store.fetch_piece(piece(0), rows())  # used again, so s1 is now the oldest
    store.fetch_piece(piece(3), rows())
    assert sorted(p.name for p in store.folder.glob("*.piece")) == ["s0.0.piece", "s3.0.piece"]
    with pytest.raises(IndexProblem, match="raise data.cache_gigabytes"):
        cached(remote, tmp_path / "small", 500).fetch_piece(piece(0), rows())


def test_what_a_killed_process_left_half_written_is_removed(tmp_path, remote):
    store = cached(remote, tmp_path / "cache")
    process = multiprocessing.get_context("fork").Process(target=_leave_half, args=(store.folder,))
    process.start()
    process.join(30)
    assert len(list(store.folder.glob(".s1*"))) == 1
    cached(remote, tmp_path / "cache")
    assert not list(store.folder.glob(".s1*"))


def _leave_half(folder: Path) -> None:
    from pipeline.base.files import partial_path

    partial_path(folder / "s1.0.piece").write_bytes(b"half")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("refused"),
        ConnectionResetError("the other side went away"),
        TimeoutError("stalled"),
        OSError(5, "503 slow down"),
        transport.DamagedBody("cut"),
        EOFError("cut"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_network_that_fails_at_first_is_asked_again(tmp_path, remote, monkeypatch, error):
    store = cached(remote, tmp_path / "cache")
    honest, calls = Transport._range, []

    def flaky(self, *arguments):
        calls.append(arguments)
        if len(calls) < 5:
            raise error
        return honest(self, *arguments)

    monkeypatch.setattr(Transport, "_range", flaky)
    assert store.fetch_piece(piece(1), rows())
    assert store.transport.patience.counts.totals()["retries"] == 4


@pytest.mark.parametrize(
    ("status", "final"), [(404, "missing"), (403, "forbidden"), (408, None), (429, None), (500, None), (503, None)]
)
def test_only_missing_and_forbidden_are_final(status, final):
    error = OSError("x")
    error.status = status  # as aiohttp's ClientResponseError carries it
    assert transport.final_kind(error) == final


def test_a_body_that_is_cut_is_not_taken(tmp_path, remote):
    store = cached(remote, tmp_path / "cache", seconds=0.05)
    with pytest.raises(StoreUnavailable, match=r"it resumes \(last: .*1000 of 1500 bytes came"):
        store.fetch_piece(piece(1, 0, 1500), rows())
    assert not list(store.folder.glob("*.piece"))


def test_a_store_that_stays_away_ends_it_with_the_setting_in_the_message(tmp_path, remote, monkeypatch):
    def gone(self, *arguments):
        raise ConnectionRefusedError("no")

    monkeypatch.setattr(Transport, "_range", gone)
    with pytest.raises(StoreUnavailable, match=r"data.store_patience_seconds = 0.2"):
        cached(remote, tmp_path / "cache", seconds=0.2).fetch_piece(piece(1), rows())


def test_a_piece_whose_bytes_arrive_wrong_is_fetched_again(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "remote", [[("en", 128)] * 6])
    manifest, _ = index_folder(folder)
    index = load_index(folder, manifest)
    store = cached(f"file://{folder}", tmp_path / "cache")
    whole = Piece(0, 0, manifest.shards[0], int(manifest.pieces.start[0]), int(manifest.pieces.end[0]))
    honest, calls = Transport._range, []

    def noisy(self, *arguments):
        data = bytearray(honest(self, *arguments))
        calls.append(1)
        if len(calls) == 1:
            data[int(index.image_offset[2]) + 9 - whole.start] ^= 1
        return bytes(data)

    monkeypatch.setattr(Transport, "_range", noisy)
    store.fetch_piece(whole, index)
    assert len(calls) == 2
    kept = next(store.folder.glob("*.piece")).read_bytes()
    assert kept == (folder / manifest.shards[0]).read_bytes()[whole.start : whole.end]


def test_a_sample_whose_bytes_arrive_wrong_is_fetched_again_and_no_more_than_twice(tmp_path, remote, monkeypatch):
    store = cached(remote, tmp_path / "cache", is_home=lambda piece: False)
    honest, calls = Transport._range, []

    def noisy(self, *arguments):
        calls.append(1)
        data = honest(self, *arguments)
        return data if len(calls) == 2 else b"?" + data[1:]

    monkeypatch.setattr(Transport, "_range", noisy)
    assert store.read(piece(2), *of(2, 500, 600)) == b"\x02" * 100 and len(calls) == 2
    assert store.read(piece(3), *of(3, 500, 600)) == b"?" + b"\x03" * 99, "the store's own bytes; the reader names them"
    assert len(calls) == 5


def load_index(folder, manifest):
    from pipeline.data.manifest import read_index

    return read_index(folder, manifest.shards[0])


def _fetch_all(url: str, folder: str, log: str) -> None:
    honest = Transport._range

    def slow(self, name, *arguments):
        with open(log, "a", encoding="utf-8") as file:
            file.write(name + "\n")
        time.sleep(0.02)
        return honest(self, name, *arguments)

    Transport._range = slow
    store = cached(url, Path(folder))
    order = random.Random(os.getpid()).sample(range(5), 5)
    threads = [threading.Thread(target=lambda: [store.fetch_piece(piece(n), rows()) for n in order]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_processes_and_threads_that_share_a_cache_fetch_each_piece_once(tmp_path, remote):
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    arguments = (remote, str(tmp_path / "cache"), str(log))
    processes = [context.Process(target=_fetch_all, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(log.read_text().split()) == [f"s{n}.tar" for n in range(5)]


def test_readers_of_one_process_with_a_store_each_fetch_each_piece_once(tmp_path, remote):
    transport = Transport(remote, Patience(30.0, StoreCounts()))
    stores = [CachedFolder(transport, tmp_path / "cache", 100_000) for _ in range(8)]  # as prefetching threads have
    together = threading.Barrier(len(stores))

    def fetch(store: CachedFolder) -> list[bytes]:
        found = []
        for number in range(5):
            together.wait(60)
            found.append(store.read(piece(number), *of(number, 150, 160)))
        return found

    with ThreadPoolExecutor(len(stores)) as threads:
        assert all(found == [bytes([n]) * 10 for n in range(5)] for found in threads.map(fetch, stores))
    assert transport.patience.counts.totals()["requests"] == 5


SETTINGS = {"window_shards": 2, "prefetch_gigabytes": 0.001, "store_connections": 2}


def read_keys(shards: str, tokenizer, workers: int, cache: Path, world: int = 1, **settings) -> list[list[str]]:
    """Keys of all batches of an epoch, of all ranks together."""
    made = DataSettings(shards=[shards], num_workers=workers, cache_folder=str(cache), **(SETTINGS | settings))
    by_rank = []
    for rank in range(world):
        with make_loader(
            Reading(
                made,
                tokenizer,
                (16, 32),
                seed=0,
                global_batch_size=128,
                rank=rank,
                division=Division(world),
            )
        ) as loader:
            by_rank.append([next(loader).keys for _ in range(loader.steps_per_epoch())])
            assert loader.fault_counts() == {}
    return [sum(parts, []) for parts in zip(*by_rank, strict=True)]


def test_remote_shards_give_the_same_batches_as_local_ones(tmp_path, tokenizer):
    folder = write_shards(tmp_path / "分片", [[("en", 128), ("zh", 128)] * 64 for _ in range(4)])
    manifest, _ = index_folder(folder, piece_bytes=16_000)
    assert len(manifest.pieces.start) > 30
    local = read_keys(str(folder), tokenizer, 0, tmp_path / "none")
    assert read_keys(f"file://{folder}", tokenizer, 1, tmp_path / "cache") == local
    total = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*.piece"))
    assert total < manifest.sizes.sum() and not list((tmp_path / "cache").glob("*/*.sample"))
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    assert read_keys("memory://bucket", tokenizer, 0, tmp_path / "memory") == local


@pytest.mark.parametrize("store", ["s3", "http", "http without ranges"])
def test_s3_and_http_give_the_same_batches_as_a_local_folder(tmp_path, tokenizer, store, monkeypatch):
    folder = write_shards(tmp_path / "分片", [[("en", 128), ("zh", 128)] * 64 for _ in range(2)])
    index_folder(folder, piece_bytes=64_000)
    local = read_keys(str(folder), tokenizer, 0, tmp_path / "none")
    with stores.s3_server() if store == "s3" else stores.web(folder, ranges=store == "http") as port:
        url = f"http://127.0.0.1:{port}"
        if store == "s3":
            stores.point_to(monkeypatch, port)
            url = stores.fill_bucket(port, folder)
        assert read_keys(url, tokenizer, 1, tmp_path / "cache") == local


def test_two_machines_share_the_pieces_between_them(tmp_path, tokenizer):
    folder = write_shards(tmp_path / "shards", [[("en", 128), ("zh", 128)] * 32 for _ in range(4)])
    manifest, _ = index_folder(folder, piece_bytes=8_000)
    local = read_keys(str(folder), tokenizer, 0, tmp_path / "none")
    assert read_keys(f"file://{folder}", tokenizer, 0, tmp_path / "cache", world=2) == local
    # one cache served both ranks, which were each alone on their machine by the loader's word
    pieces = Counter(path.suffix for path in (tmp_path / "cache").glob("*/*"))
    assert 0.8 * len(manifest.pieces.start) < pieces[".piece"] <= len(manifest.pieces.start)


def test_a_cache_that_is_too_small_for_the_plan_is_refused_with_the_number(tmp_path, tokenizer):
    folder = write_shards(tmp_path / "shards", [[("en", 128), ("zh", 128)] * 64 for _ in range(4)])
    index_folder(folder)
    with pytest.raises(IndexProblem, match=r"data.cache_gigabytes is 1e-05 and this plan needs 0.00\d+ on each"):
        read_keys(f"file://{folder}", tokenizer, 0, tmp_path / "cache", cache_gigabytes=1e-5)


def test_a_url_without_a_cache_folder_says_what_to_set():
    with pytest.raises(IndexProblem, match="data.cache_folder"):
        check_remote("s3://bucket/shards", None)
    check_remote("shards", None)


def test_making_room_removes_nothing_that_the_cache_did_not_make(tmp_path, remote):
    """A cache folder that stands above folders of shards, or holds a link to one, leaves them alone."""
    mine = tmp_path / "shards" / "我的"
    mine.mkdir(parents=True)
    (mine / "precious.tar").write_bytes(b"x" * 5000)
    store = cached(remote, tmp_path / "shards", 2000)
    (tmp_path / "shards" / "link").symlink_to(store.folder)
    for n in range(4):
        store.fetch_piece(piece(n), rows())
    assert (mine / "precious.tar").stat().st_size == 5000
    assert len(list(store.folder.glob("*.piece"))) <= 2


@pytest.mark.parametrize(
    "name", ["../../x.tar", "/tmp/x.tar", "a/b.tar", ".x.tar", "..\\x.tar", "x\x1b[2J.tar", "x.txt"]
)
def test_a_remote_manifest_cannot_name_a_place_outside_its_folder(tmp_path, name):
    write_shards(tmp_path / "remote", [[("en", 128)]])
    summary, _ = index_shard(tmp_path / "remote" / "part-00000.tar")
    write_manifest(tmp_path / "remote", [replace(summary, name=name)], PATCH_BUDGETS)
    with pytest.raises(IndexProblem, match="must be the name of a .tar file") as caught:
        load_manifest(f"file://{tmp_path}/remote")
    assert "\x1b" not in str(caught.value)
