"""How fast the data path is, as ratios to Pillow's bare full decode of the same JPEGs on one core in the same run.

Rows ``loader_*`` are images a second out of ``make_loader``: tar, checksums, decoding, resizing, patches, texts, and
the way from the worker to the training process. ``first_batch_*`` are seconds from nothing to the first batch of a
simulated data set of 1.6 billion samples in 160,000 shards; ``plan_*`` plan an epoch of it in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from benchmarks.reporting import Row, benchmark_parser, report
from data_tools import tokenizer as tokenizer_tool
from data_tools.shards import Record, write_shard
from pipeline.base.constants import PATCH_BUDGETS
from pipeline.config import DataSettings
from pipeline.data.index import index_folder, index_shard, write_manifest
from pipeline.data.loader import Reading, make_loader
from pipeline.data.manifest import MANIFEST_NAME
from pipeline.data.schema import Region, Sample
from pipeline.data.slices import Division
from pipeline.data.tokenizer import Tokenizer, load_tokenizer

BATCH = 32
TEXT_LENGTHS = (64, 196)
SIMULATED_SHARDS, SIMULATED_SAMPLES = 160_000, 10_000  # samples a shard
SIMULATED_GLOBAL_BATCH, SIMULATED_RANKS = 4096, 128
SIMULATED_PIECE_BYTES = 1_000_000  # a thirtieth of the shard, as 32 MiB are of a shard of 1 GB
FAR_STEP = 100_000
NUM_REGIONS, NUM_NEGATIVES = 4, 10
WORDS = (
    "a the red blue small large wooden striped plastic young man woman dog cat table street near under with of".split()
)


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser("benchmarks.loader", __doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder with JPEGs, as coco-mini/images")
    parser.add_argument("--seconds", type=float, default=6.0, help="of measuring for each row (default: 6)")
    parser.add_argument("--only", nargs="+", help="names of rows, or their beginnings")
    arguments = parser.parse_args(argv)
    images = sorted(arguments.images.glob("*.jp*g"))
    if not images:
        parser.error(f"{arguments.images} holds no .jpg; give a folder of photographs")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        rows = list(_rows([path.read_bytes() for path in images], Path(temporary), arguments))
    report(rows, arguments.json)
    return 0


def _rows(images: list[bytes], folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    def wanted(name: str) -> bool:
        return arguments.only is None or any(name.startswith(only) for only in arguments.only)

    samples = list(make_samples(images))
    tokenizer = train_tokenizer([sample for _, sample in samples], folder / "tokenizer")
    write_shards(folder / "plain", [(image, without_regions(sample)) for image, sample in samples])
    write_shards(folder / "regions", samples)
    one_worker = None
    for name, source, level, workers in (
        ("loader_224", "plain", 196, 1),
        ("loader_224_2workers", "plain", 196, 2),
        ("loader_256", "regions", 256, 1),
        ("loader_1024", "regions", 1024, 1),
    ):
        if not wanted(name):
            continue
        settings = DataSettings(
            shards=[str(folder / source)],
            patch_budgets=[level],
            keep_aspect_ratio=level != 196,  # 196 patches of a square are 224 x 224 pixels
            num_workers=workers,
            window_shards=4,
        )
        rate, bare = loader_rate(settings, tokenizer, images, source == "regions", arguments.seconds)
        yield Row(name, rate, "images/s", bare)
        if name == "loader_224":
            one_worker = rate / bare
        elif name == "loader_224_2workers" and one_worker:
            yield Row("loader_224_2workers_scaling", rate / bare, "of bare decode", one_worker)
    if wanted("first_batch"):
        simulated = simulate(folder / "simulated")
        near = first_batch_seconds(simulated, tokenizer, 0)
        yield Row("first_batch_0", near, "s")
        yield Row(f"first_batch_{FAR_STEP}", first_batch_seconds(simulated, tokenizer, FAR_STEP), "s", near)
    if wanted("plan"):
        seconds, megabytes = plan_cost(simulate(folder / "simulated"))
        yield Row("plan_seconds", seconds, "s")
        yield Row("plan_megabytes", megabytes, "MB resident at most")


def make_samples(images: list[bytes]) -> Iterator[tuple[bytes, Sample]]:
    """Every image with a short and a long caption and four regions of ten negatives, no two texts alike."""
    draws = random.Random(0)

    def text(count: int) -> str:
        return " ".join(draws.choices(WORDS, k=count)) + f" {draws.randrange(10**6)}"

    for image in images:
        width, height = Image.open(io.BytesIO(image)).size
        regions = []
        for _ in range(NUM_REGIONS):
            x, y = draws.uniform(0, 0.6), draws.uniform(0, 0.6)
            negatives = tuple(text(6) for _ in range(NUM_NEGATIVES))
            regions.append(Region((x, y, x + 0.3, y + 0.3), text(6), text(14), negatives=negatives))
        yield image, Sample("en", width, height, text(10), text(120), tuple(regions))


def without_regions(sample: Sample) -> Sample:
    return Sample(sample.language, sample.width, sample.height, sample.short_caption)


def train_tokenizer(samples: list[Sample], folder: Path) -> Tokenizer:
    texts = [text for sample in samples for text in tokenizer_tool.sample_texts(sample)]
    tokenizer_tool.save(tokenizer_tool.train(texts, 512), folder)
    return load_tokenizer(folder)


def write_shards(folder: Path, samples: list[tuple[bytes, Sample]], copies: int = 4) -> None:
    for copy in range(copies):
        records = [Record(f"{copy}-{n:06d}", image, "jpg", sample) for n, (image, sample) in enumerate(samples)]
        write_shard(folder / f"part-{copy:06d}.tar", records)
    index_folder(folder)


def bare_decode_seconds(images: list[bytes], seconds: float) -> float:
    """Seconds an image for Pillow to decode whole, on this one core; at least each image once."""
    start = time.perf_counter()
    for count, image in enumerate(itertools.cycle(images), 1):
        Image.open(io.BytesIO(image)).load()
        if count >= len(images) and time.perf_counter() - start >= seconds:
            break
    return (time.perf_counter() - start) / count


def loader_rate(
    settings: DataSettings, tokenizer: Tokenizer, images: list[bytes], with_regions: bool, seconds: float
) -> tuple[float, float]:
    """Images a second of the loader, and of the bare decode measured just before and just after."""
    before = bare_decode_seconds(images, seconds / 4)
    with make_loader(
        Reading(
            settings,
            tokenizer,
            TEXT_LENGTHS,
            seed=0,
            global_batch_size=BATCH,
            rank=0,
            with_regions=with_regions,
        )
    ) as loader:
        for _ in range(loader.num_workers * (settings.prefetch_batches + 1)):
            next(loader)  # what was read ahead while nobody waited would count as speed
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            count += len(next(loader))
        rate = count / (time.perf_counter() - start)
    after = bare_decode_seconds(images, seconds / 4)
    return rate, 2 / (before + after)


def simulate(folder: Path) -> Path:
    """A manifest of 160,000 shards in 30 pieces each that all are one small real shard, so that any can be read."""
    if (folder / MANIFEST_NAME).exists():
        return folder
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (120, 40, 200)).save(file, "JPEG")
    sample = Sample("en", 32, 32, "a violet square")
    write_shard(
        folder / "part.tar", [Record(f"{n:06d}", file.getvalue(), "jpg", sample) for n in range(SIMULATED_SAMPLES)]
    )
    summary, _ = index_shard(folder / "part.tar", piece_bytes=SIMULATED_PIECE_BYTES)
    for number in range(SIMULATED_SHARDS):  # a name each, and one file
        for suffix in (".tar", ".index.parquet"):
            (folder / f"part-{number:06d}{suffix}").symlink_to(f"part{suffix}")
    shards = [replace(summary, name=f"part-{number:06d}.tar") for number in range(SIMULATED_SHARDS)]
    write_manifest(folder, shards, PATCH_BUDGETS)
    return folder


def first_batch_seconds(folder: Path, tokenizer: Tokenizer, step: int) -> float:
    settings = DataSettings(shards=[str(folder)], num_workers=0)
    start = time.perf_counter()
    with make_loader(
        Reading(
            settings,
            tokenizer,
            TEXT_LENGTHS,
            seed=0,
            global_batch_size=SIMULATED_GLOBAL_BATCH,
            rank=7,
            division=Division(SIMULATED_RANKS),
            start_step=step,
        )
    ) as loader:
        next(loader)
        return time.perf_counter() - start


PLAN_PROGRAM = """
import sys, time
start = time.perf_counter()
from pipeline.config import DataSettings
from pipeline.data.manifest import load_manifest
from pipeline.data.plan import Plan
from pipeline.data.slices import Division
plan = Plan([load_manifest(sys.argv[1])], DataSettings(), 0, int(sys.argv[2]))
plan.batch(0, plan.steps_per_epoch() - 1)
seconds = time.perf_counter() - start
# Not getrusage: its maximum counts the process that started this one, too.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(peak.split()[1]) / 1024)
"""


def plan_cost(folder: Path) -> tuple[float, float]:
    """Seconds and MB of a process that reads the manifest, plans an epoch and finds its last batch."""
    command = [sys.executable, "-c", PLAN_PROGRAM, str(folder), str(SIMULATED_GLOBAL_BATCH)]
    seconds, megabytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(megabytes)


if __name__ == "__main__":
    sys.exit(main())
