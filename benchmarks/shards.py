"""Shard writing against ``webdataset.ShardWriter`` on the same bytes, and the memory it takes as samples grow.

Images are random bytes of COCO's mean size, so that nothing but writing is measured. Ours also forces every shard to
the disk before it gets its name; webdataset's does not. Memory is this process's largest size so far.
"""

from __future__ import annotations

import gc
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.reporting import Row, benchmark_parser, report
from data_tools.shards import ShardWriter
from pipeline.data.schema import Region, Sample

SAMPLES_PER_SHARD = 1000
NUM_IMAGES = 64  # distinct ones, used in turn
MEAN_IMAGE_BYTES = 160_000  # of COCO's val2017
SMALL_IMAGE_BYTES = 2_000  # for the memory run, which is about samples and not about bytes
REGION = Region((0.1, 0.1, 0.6, 0.7), "a red cup", negatives=tuple(f"a cup in colour {i}" for i in range(10)))
SAMPLE = Sample("en", 640, 480, short_caption="a photo of a cup on a table", regions=(REGION,) * 4)


def write_ours(folder: Path, images: list[bytes], count: int) -> None:
    with ShardWriter(folder, samples_per_shard=SAMPLES_PER_SHARD, index=False) as writer:
        for i in range(count):
            writer.write(f"{i:09d}", images[i % len(images)], "jpg", SAMPLE)


def write_webdataset(folder: Path, images: list[bytes], count: int) -> None:
    import webdataset

    pattern = str(folder / "shard-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=SAMPLES_PER_SHARD, verbose=0) as writer:
        for i in range(count):
            image = images[i % len(images)]
            writer.write({"__key__": f"{i:09d}", "jpg": image, "json": SAMPLE.to_bytes()})


def timed(write: Callable[[Path, list[bytes], int], None], images: list[bytes], count: int, root: str | None) -> float:
    """Samples a second into a fresh folder, which is removed."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        started = time.perf_counter()
        write(folder, images, count)
        return count / (time.perf_counter() - started)
    finally:
        shutil.rmtree(folder)


def peak_megabytes(images: list[bytes], count: int, root: str | None) -> float:
    """This process's largest resident size after ``count`` samples were written."""
    timed(write_ours, images, count, root)
    gc.collect()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = benchmark_parser("benchmarks.shards", __doc__)
    parser.add_argument("--samples", type=int, default=4000, help="a timed run (default: 4000)")
    parser.add_argument("--repeats", type=int, default=3, help="of each writer; the median counts (default: 3)")
    parser.add_argument("--memory-samples", type=int, default=100_000, help="against 1,000 (default: 100000)")
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    small = [generator.bytes(SMALL_IMAGE_BYTES)]
    few = peak_megabytes(small, 1000, arguments.folder)
    many = peak_megabytes(small, arguments.memory_samples, arguments.folder)
    images = [generator.bytes(int(MEAN_IMAGE_BYTES * scale)) for scale in generator.uniform(0.5, 1.5, NUM_IMAGES)]
    rates: dict[str, list[float]] = {"ours": [], "webdataset": []}
    for _ in range(arguments.repeats):
        for name, write in (("webdataset", write_webdataset), ("ours", write_ours)):
            rates[name].append(timed(write, images, arguments.samples, arguments.folder))
    ours, theirs = (statistics.median(rates[name]) for name in ("ours", "webdataset"))
    report(
        [
            Row("shard writing, against webdataset.ShardWriter", ours, "samples/s", theirs),
            Row(f"memory at {arguments.memory_samples:,} samples, against 1,000", many, "MB", few),
        ],
        arguments.json,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
