"""Remote shards through the shared cache: fetched once, checked, kept below a size, the same batches as local ones."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from dataclasses import replace

import fsspec
import pytest

from pipeline.base.constants import PATCH_BUDGETS
from pipeline.config import DataSettings
from pipeline.data import cache
from pipeline.data.cache import CachedFolder, ShardUnavailable, make_store
from pipeline.data.index import index_folder, index_shard, write_manifest
from pipeline.data.loader import make_loader
from pipeline.data.manifest import IndexProblem, load_manifest
from tests.data.shards import write_shards


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(cache, "RETRY_SECONDS", 0.0)


@pytest.fixture
def remote(tmp_path):
    """A file:// URL whose files count as remote, and the sha256 of each."""
    folder = tmp_path / "remote"
    folder.mkdir()
    digests = {}
    for n in range(5):
        data = bytes([n]) * 1000
        (folder / f"s{n}.tar").write_bytes(data)
        digests[f"s{n}.tar"] = hashlib.sha256(data).hexdigest()
    return f"file://{folder}", digests


def test_a_shard_is_fetched_once_and_checked(tmp_path, remote):
    url, digests = remote
    store = CachedFolder(url, tmp_path / "cache", 10_000)
    path = store.fetch("s1.tar", 1000, digests["s1.tar"])
    os.unlink(url.removeprefix("file://") + "/s1.tar")
    assert store.fetch("s1.tar", 1000, digests["s1.tar"]) == path
    assert path.read_bytes() == b"\x01" * 1000
    with pytest.raises(ShardUnavailable) as caught:
        store.fetch("s2.tar", 1000, digests["s3.tar"])
    assert caught.value.kind == "shard_checksum"
    with pytest.raises(ShardUnavailable) as caught:
        store.fetch("nothing.tar", 1000, "")
    assert caught.value.kind == "missing_shard"
    assert sorted(p.name for p in path.parent.glob("*.tar*") if not p.name.endswith(".lock")) == ["s1.tar"]


def test_the_cache_stays_below_its_size_and_forgets_the_longest_unused(tmp_path, remote):
    url, digests = remote
    store = CachedFolder(url, tmp_path / "cache", 3000)
    for n in (0, 1, 2):
        path = store.fetch(f"s{n}.tar", 1000, digests[f"s{n}.tar"])
        os.utime(path, (n + 1, n + 1))
    store.fetch("s0.tar", 1000, digests["s0.tar"])  # used again, so s1 is now the oldest
    store.fetch("s3.tar", 1000, digests["s3.tar"])
    assert sorted(p.name for p in store.folder.glob("*.tar")) == ["s0.tar", "s2.tar", "s3.tar"]
    with pytest.raises(IndexProblem, match="raise data.cache_gigabytes"):
        CachedFolder(url, tmp_path / "small", 500).fetch("s0.tar", 1000, digests["s0.tar"])


def test_a_network_that_fails_at_first_is_asked_again(tmp_path, remote, monkeypatch):
    url, digests = remote
    calls = []
    honest = fsspec.open

    def flaky(*arguments, **options):
        calls.append(arguments)
        if len(calls) < 3:
            raise ConnectionResetError("the other side went away")
        return honest(*arguments, **options)

    monkeypatch.setattr(fsspec, "open", flaky)
    assert CachedFolder(url, tmp_path / "cache", 10_000).fetch("s1.tar", 1000, digests["s1.tar"]).is_file()
    assert len(calls) == 3


def _fetch_all(url: str, folder: str, digests: dict[str, str], log: str) -> None:
    honest = fsspec.open

    def slow(name, *arguments, **options):
        with open(log, "a", encoding="utf-8") as file:
            file.write(name.rpartition("/")[2] + "\n")
        time.sleep(0.02)
        return honest(name, *arguments, **options)

    fsspec.open = slow
    store = CachedFolder(url, folder, 10_000)
    for name, digest in digests.items():
        store.fetch(name, 1000, digest)


def test_processes_that_share_a_cache_fetch_each_shard_once(tmp_path, remote):
    url, digests = remote
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    arguments = (url, str(tmp_path / "cache"), digests, str(log))
    processes = [context.Process(target=_fetch_all, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(log.read_text().split()) == sorted(digests)


def test_remote_shards_give_the_same_batches_as_local_ones(tmp_path, tokenizer):
    folder = write_shards(tmp_path / "shards", [[("en", 128), ("zh", 128)] * 4 for _ in range(4)])
    index_folder(folder)

    def keys(shards: str, workers: int) -> list[list[str]]:
        settings = DataSettings(
            shards=[shards],
            num_workers=workers,
            window_shards=2,
            cache_folder=str(tmp_path / "cache"),
            prefetch_shards=2,
        )
        with make_loader(
            settings,
            tokenizer,
            (16, 32),
            seed=0,
            global_batch_size=4,
            micro_batch_size=4,
            rank=0,
            world_size=1,
        ) as loader:
            return [next(loader).keys for _ in range(loader.steps_per_epoch())]

    local = keys(str(folder), 0)
    assert keys(f"file://{folder}", 1) == local
    assert len(list((tmp_path / "cache").glob("*/*.tar"))) == 4
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    assert keys("memory://bucket", 0) == local


def test_a_url_without_a_cache_folder_says_what_to_set():
    with pytest.raises(IndexProblem, match="data.cache_folder"):
        make_store("s3://bucket/shards", None, 1.0)


def test_making_room_removes_nothing_that_the_cache_did_not_make(tmp_path, remote):
    """A cache folder that stands above folders of shards, or holds a link to one, leaves them alone."""
    url, digests = remote
    mine = tmp_path / "shards" / "我的"
    mine.mkdir(parents=True)
    (mine / "precious.tar").write_bytes(b"x" * 5000)
    store = CachedFolder(url, tmp_path / "shards", 2000)
    (tmp_path / "shards" / "link").symlink_to(store.folder)
    for n in range(4):
        store.fetch(f"s{n}.tar", 1000, digests[f"s{n}.tar"])
    assert (mine / "precious.tar").stat().st_size == 5000
    assert sorted(path.name for path in store.folder.glob("*.tar")) == ["s2.tar", "s3.tar"]


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


def test_a_body_without_an_end_is_cut_at_the_size_that_the_manifest_says(tmp_path, remote):
    url, digests = remote
    (tmp_path / "remote" / "s0.tar").write_bytes(bytes(50_000_000))
    store = CachedFolder(url, tmp_path / "cache", 10_000)
    with pytest.raises(ShardUnavailable) as caught:
        store.fetch("s0.tar", 1000, digests["s0.tar"])
    assert caught.value.kind == "shard_checksum"
    first = hashlib.sha256(bytes(cache.CHUNK_BYTES)).hexdigest()
    assert first in str(caught.value), "no more than the first block was read"
