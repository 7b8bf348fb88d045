"""What batches of one resolution level save in a stage-1 step, on a set of images of mixed sizes.

The same samples, batch size and model, forward and backward; once with ``data.one_budget_per_batch`` and once without.
``levels_speed`` is images a second of whole epochs, loading included, against mixed batches; ``levels_resolution`` is
the mean number of patches of an image that carry detail of it (the smaller of its own and those it is resized to).
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from benchmarks.loader import WORDS, train_tokenizer
from benchmarks.reporting import Row, benchmark_parser, report
from data_tools.shards import Record, write_shard
from pipeline.config import DataSettings, Stage1Settings
from pipeline.data.index import index_folder, load_manifest, read_index
from pipeline.data.loader import Reading, make_loader
from pipeline.data.resolution import PATCH_SIZE
from pipeline.data.schema import Sample
from pipeline.data.tokenizer import Tokenizer
from pipeline.model import FGCLIP2, preset_config
from pipeline.training.losses import StageLosses

# Short sides in pixels, as likely as each other: thumbnails to photographs, one level after the other.
SIDES = (160, 208, 320, 416, 512)
ASPECTS = (1.0, 4 / 3, 3 / 4, 16 / 9)
LARGEST_AREA = 640 * 640  # pixels; public sets were scaled down like this


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser("benchmarks.levels", __doc__)
    parser.add_argument("--preset", default="tiny", help="of the model (default: tiny)")
    parser.add_argument("--samples", type=int, default=480)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring each way (default: 20)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        samples = make_samples(arguments.samples)
        tokenizer = train_tokenizer([sample for _, sample in samples], folder / "tokenizer")
        write_shard(
            folder / "shards" / "part.tar",
            [Record(f"{n:06d}", image, "jpg", sample) for n, (image, sample) in enumerate(samples)],
        )
        index_folder(folder / "shards")
        one = measure(folder / "shards", tokenizer, True, arguments)
        mixed = measure(folder / "shards", tokenizer, False, arguments)
    rows = [
        Row("levels_speed", one[0], "images/s", mixed[0]),
        Row("levels_resolution", one[1], "patches with detail an image", mixed[1]),
        Row("levels_patches", one[2], "patches an image, padding included", mixed[2]),
    ]
    report(rows, arguments.json)
    return 0


def make_samples(count: int) -> list[tuple[bytes, Sample]]:
    draws = random.Random(0)
    samples = []
    for number in range(count):
        short, aspect = draws.choice(SIDES), draws.choice(ASPECTS)
        width, height = (round(short * aspect), short) if aspect >= 1 else (short, round(short / aspect))
        scale = min(1.0, (LARGEST_AREA / (width * height)) ** 0.5)
        width, height = round(width * scale), round(height * scale)
        file = io.BytesIO()
        noise = Image.effect_noise((16, 16), 90).convert("RGB")
        noise.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG")
        short_text, long_text = (" ".join(draws.choices(WORDS, k=k)) + f" {number}" for k in (8, 40))
        samples.append((file.getvalue(), Sample("en", width, height, short_text, long_text)))
    return samples


def measure(
    shards: Path, tokenizer: Tokenizer, one_level: bool, arguments: argparse.Namespace
) -> tuple[float, float, float]:
    """Images a second, patches with detail an image, and patches an image."""
    model = FGCLIP2(preset_config(arguments.preset, tokenizer.vocab_size))
    text = model.config.text_config
    losses = StageLosses(Stage1Settings())
    sizes = native_patches(shards)
    count = detail = patches = 0
    with make_loader(
        Reading(
            DataSettings(shards=[str(shards)], one_budget_per_batch=one_level, num_workers=1),
            tokenizer,
            (text.max_position_embeddings, text.longtext_len),
            seed=0,
            global_batch_size=arguments.batch,
            rank=0,
        )
    ) as loader:
        next(loader)  # starts the worker
        start = time.perf_counter()
        steps = loader.steps_per_epoch()
        # Whole epochs: levels come in shuffled order, and a part of an epoch could hold the cheap ones.
        while count == 0 or (time.perf_counter() - start < arguments.seconds and count < 3 * steps * arguments.batch):
            for _ in range(steps):
                batch = next(loader)
                output = losses(model(batch), batch)
                output.total.backward()
                model.zero_grad(set_to_none=True)
                filled = batch.spatial_shapes.prod(1).tolist()
                detail += sum(min(sizes[key], n) for key, n in zip(batch.keys, filled, strict=True))
                patches += batch.pixel_values.shape[1] * len(batch)
                count += len(batch)
        seconds = time.perf_counter() - start
    return count / seconds, detail / count, patches / count


def native_patches(shards: Path) -> dict[str, float]:
    """How many patches each image has before it is resized, by key."""
    found: dict[str, float] = {}
    for shard in load_manifest(shards).shards:
        index = read_index(shards, shard)
        area = index.width.astype(float) * index.height / PATCH_SIZE**2
        found |= dict(zip(index.keys, area.tolist(), strict=True))
    return found


if __name__ == "__main__":
    sys.exit(main())
