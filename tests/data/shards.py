"""Small shards for tests, written with the standard library so that a fault of our own writers cannot hide itself."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.base.constants import LANGUAGES
from pipeline.data.manifest import load_manifest

SIZES = {128: (64, 48), 256: (256, 192), 576: (336, 320)}  # width, height of an image of that patch budget


def image_bytes(number: int, size: tuple[int, int] = (64, 48), format: str = "JPEG") -> bytes:
    """A smooth picture that differs from number to number."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, format, quality=85)
    return file.getvalue()


def record(number: int, language: str = "en", size: tuple[int, int] = (64, 48), regions: int = 0, **fields) -> dict:
    words = (
        ("a red cat {n} on a mat", "a long story about cat {n}. " * 4) if language == "en" else ("红猫{n}", "很长{n}")
    )
    made = {
        "language": language,
        "width": size[0],
        "height": size[1],
        "short_caption": words[0].format(n=number),
        "long_caption": words[1].format(n=number),
    }
    if regions:
        made["regions"] = [
            {
                "box": [0.1 * i, 0.1, 0.1 * i + 0.3, 0.7],
                "phrase": f"cat {number} {i}" if language == "en" else f"猫{number} {i}",
                "long_phrase": f"the small cat {number} {i} at the left",
                "negatives": [f"dog {number} {i} {k}" for k in range(12 if i == 0 else i)],
            }
            for i in range(regions)
        ]
    return made | fields


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample_members(key: str, image: bytes, json_record: dict | bytes) -> list[tuple[str, bytes]]:
    content = json_record if isinstance(json_record, bytes) else json.dumps(json_record, ensure_ascii=False).encode()
    return [(f"{key}.jpg", image), (f"{key}.json", content)]


def clip_record(number: int, language: str = "en", times: tuple[float, ...] = (0.0, 0.5, 1.0), **fields) -> dict:
    """Of a clip with two regions: one that is always there, one that is not in the first frame."""
    made = record(number, language, regions=2)
    for place, region in enumerate(made["regions"]):
        box = region.pop("box")
        region["boxes"] = [None if place and not frame else box for frame in range(len(times))]
    return made | {"frames": list(times)} | fields


def clip_members(key: str, number: int, language: str = "en", frames: int = 3, **fields) -> list[tuple[str, bytes]]:
    """A clip whose frames differ."""
    made = clip_record(number, language, tuple(0.5 * frame for frame in range(frames)), **fields)
    size = made["width"], made["height"]
    names = [(f"{key}.{frame:03d}.jpg", image_bytes(100 * number + frame, size)) for frame in range(frames)]
    return [*names, (f"{key}.json", json.dumps(made, ensure_ascii=False).encode())]


def write_shards(folder: Path, groups: list[list[tuple[str, int]]], regions: int = 2, start: int = 0) -> Path:
    """One shard per list of (language, patch budget); keys number on from ``start``."""
    number = start
    pictures = {patch_budget: image_bytes(patch_budget, size) for patch_budget, size in SIZES.items()}
    for shard, samples in enumerate(groups):
        members = []
        for language, patch_budget in samples:
            made = record(number, language, SIZES[patch_budget], regions)
            members += sample_members(f"k{number:05d}", pictures[patch_budget], made)
            number += 1
        write_tar(folder / f"part-{shard:05d}.tar", members)
    return folder


def write_manifest_of_json(folder: Path) -> None:
    """The manifest of an indexed folder as version 0.1 wrote it: format 1, one JSON file."""
    new = load_manifest(folder)
    document = {
        "format": 1,
        "levels": list(new.patch_budgets),
        "shards": list(new.shards),
        **{name: column.tolist() for name, column in (("bytes", new.sizes), ("samples", new.samples))},
        **{name: column.tolist() for name, column in (("regions", new.regions), ("negatives", new.negatives))},
        "sha256": list(new.sha256),
        "index_sha256": list(new.index_sha256),
        "counts": {
            f"{language}/{budget}": new.counts[:, at, number].tolist()
            for at, language in enumerate(LANGUAGES)
            for number, budget in enumerate(new.patch_budgets)
        },
        "faults": new.faults,
    }
    (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
