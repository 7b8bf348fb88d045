"""How many images a second this host can decode from its own shards, so that devices are not left waiting."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path

from pipeline.base.ranks import rank_cores
from pipeline.data.images import ImageFault, decode_array
from pipeline.data.manifest import Manifest
from pipeline.data.records import RecordFault, frame_names, walk_records
from pipeline.data.resolution import PATCH_SIZE, grid_of, level_of

SAMPLED_SHARDS, SAMPLED_IMAGES = 4, 64


def images_per_second(manifest: Manifest, seconds: float) -> float:
    """Decoded images a second over all cores of this host: one core is measured, on images of a few local shards.

    Cores that share caches and memory give a little less together; resizing and texts cost about half as much again
    as decoding, so a loader's rate lies between half of this and all of it.
    """
    images: list[tuple[bytes, tuple[int, int]]] = []
    every = max(1, len(manifest.shards) // SAMPLED_SHARDS)
    for number in range(0, len(manifest.shards), every):
        try:
            for found, sample in walk_records(Path(manifest.folder) / manifest.shards[number], clips=True):
                budget = level_of(sample.width, sample.height, manifest.patch_budgets)
                rows, columns = grid_of(sample.width, sample.height, budget)
                name = found.image_extension or frame_names(found.members)[0]  # of a clip, its first frame
                images.append((found.read(name), (columns * PATCH_SIZE, rows * PATCH_SIZE)))
                if len(images) % SAMPLED_IMAGES == 0:
                    break
        except RecordFault:
            continue  # indexing and verify name it
    if not images:
        return 0.0
    started, count = time.perf_counter(), 0
    for image, target in cycle(images):
        with suppress(ImageFault):  # as above
            decode_array(image, target=target)
        count += 1
        if time.perf_counter() - started >= seconds:
            break
    return count / (time.perf_counter() - started) * rank_cores(1)
