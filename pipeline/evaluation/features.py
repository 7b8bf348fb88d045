"""Image and region features of a whole set: decoded in threads, batched by size, shared over ranks, kept on disk.

The set is cut into chunks of consecutive images. A chunk is the unit of work of a rank and of the cache: with a cache
folder, a chunk that was encoded before is read back, so an interrupted evaluation of a long set goes on where it was.
Images of a batch have one resolution level, each its own: no image's features depend on its neighbours.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.base.files import write_aside
from pipeline.data.images import ImageFault, decode_image
from pipeline.evaluation.finite import require_finite
from pipeline.evaluation.formats.items import ClipItem, ImageItem, RegionRow
from pipeline.evaluation.models.base import EncodedImages, EvaluationModel, Prepared
from pipeline.evaluation.progress import ProgressLine
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import Accounting

Box = tuple[float, float, float, float]  # normalised xyxy


@dataclass(frozen=True)
class EncodeSettings:
    """How a set is encoded. None of it changes a number beyond rounding."""

    batch_size: int = 32
    chunk_size: int = 256  # images
    num_threads: int = 2  # that decode
    cache_folder: Path | None = None
    max_megapixels: float = 100.0
    report_every_seconds: float = 10.0


@dataclass(frozen=True)
class SetFeatures:
    """N images, R regions in the order they were given. Rows of unreadable images and invalid boxes are 0."""

    embeds: Tensor  # [N, D]
    regions: Tensor  # [R, D]
    region_valid: Tensor  # [R] bool
    faults: dict[int, str]  # image -> what is wrong with it


def encode_set(
    model: EvaluationModel,
    images: Sequence[ImageItem],
    boxes: Sequence[RegionRow] = (),
    *,
    settings: EncodeSettings | None = None,
    ranks: Ranks | None = None,
    label: str = "images",
) -> SetFeatures:
    """Encode every image once and pool each row's box from it. Equal boxes of an image are pooled once.

    Args:
        boxes: rows whose ``image`` counts into ``images``.
    Returns:
        the whole set's features, on every rank.
    Raises:
        EvaluationError: a feature is not finite.
    """
    settings, ranks = settings or EncodeSettings(), ranks or Ranks()
    wanted: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(boxes):
        wanted[row.image].append(number)
    size = settings.chunk_size
    if not settings.cache_folder:  # chunks that are kept must not depend on the ranks; others share a small set evenly
        size = min(size, max(1, -(-len(images) // ranks.size)))
    starts = range(0, len(images), size)
    fingerprint = model.fingerprint() if settings.cache_folder else ""
    report = ProgressLine(label, len(images), settings.report_every_seconds if ranks.is_main else None)
    mine = []
    with ThreadPoolExecutor(settings.num_threads) as pool:
        for chunk in ranks.share(len(starts)):
            numbers = range(starts[chunk], min(starts[chunk] + size, len(images)))
            chunk_boxes = [(number, row, boxes[row].box) for number in numbers for row in wanted.get(number, ())]
            mine.append(_chunk(model, images, numbers, chunk_boxes, bool(boxes), settings, pool, fingerprint))
            report.advance(len(numbers))
    chunks = [chunk for share in ranks.gather(mine) for chunk in share]
    width = next((len(row) for chunk in chunks for row in chunk["embeds"]), 0)
    embeds, regions = torch.zeros(len(images), width), torch.zeros(len(boxes), width)
    valid, faults = torch.zeros(len(boxes), dtype=torch.bool), {}
    for chunk in chunks:
        embeds[chunk["numbers"]] = chunk["embeds"]
        if len(chunk["rows"]):
            regions[chunk["rows"]], valid[chunk["rows"]] = chunk["regions"], chunk["valid"]
        faults.update(chunk["faults"])
    require_finite(embeds, "images", lambda number: images[number].key)
    require_finite(regions, "regions", lambda row: f"{images[boxes[row].image].key} {boxes[row].box}")
    return SetFeatures(embeds, regions, valid, faults)


def usable_rows(
    rows: Sequence[RegionRow],
    span: range,
    features: SetFeatures,
    items: Sequence[ImageItem] | Sequence[ClipItem],
    accounting: Accounting,
) -> list[int]:
    """The rows of ``span`` whose image was read and whose box gave a vector; the others are retracted and counted."""
    keep = []
    for number in span:
        image = rows[number].image
        if image in features.faults:
            accounting.retract(features.faults[image], items[image].key, 1)
        elif not features.region_valid[number]:
            accounting.retract("box_without_area", f"{items[image].key}: {rows[number].box}", 1)
        else:
            keep.append(number)
    return keep


def encode_texts(
    model: EvaluationModel, texts: Sequence[str], kind: str, ranks: Ranks | None = None
) -> tuple[Tensor, dict[str, int]]:
    """Each distinct text once, shared over ranks: ``(features [U, D] on every rank, text -> row)``."""
    ranks = ranks or Ranks()
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return torch.zeros(0, 0), {}
    size = min(model.text_batch_size, -(-len(distinct) // ranks.size))
    batches = [distinct[start : start + size] for start in range(0, len(distinct), size)]
    mine = {number: model.encode_texts(batches[number], kind) for number in ranks.share(len(batches))}
    parts = {number: part for share in ranks.gather(mine) for number, part in share.items()}
    embeds = torch.cat([parts[number] for number in range(len(batches))])
    require_finite(embeds, "texts", lambda row: distinct[row])
    return embeds, {text: row for row, text in enumerate(distinct)}


def _chunk(
    model: EvaluationModel,
    images: Sequence[ImageItem],
    numbers: range,
    boxes: list[tuple[int, int, Box]],
    dense: bool,
    settings: EncodeSettings,
    pool: ThreadPoolExecutor,
    fingerprint: str,
) -> dict[str, Any]:
    """One chunk's features, from the cache where it holds them. ``boxes``: (image, row, box)."""
    path = None
    if settings.cache_folder:
        what = [fingerprint, [images[number].identity for number in numbers], boxes, dense, settings.max_megapixels]
        name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
        path = Path(settings.cache_folder) / f"{name}.safetensors"
        kept = _cached(path)
        if kept is not None:
            return kept
    encoded = _encode_chunk(model, images, numbers, boxes, dense, settings, pool)
    if path is not None:
        tensors = {key: value.contiguous() for key, value in encoded.items() if isinstance(value, Tensor)}
        with write_aside(path) as partial:
            save_file(tensors, partial, metadata={"faults": json.dumps(encoded["faults"])})
    return encoded


_FAULTS: TypeAdapter[dict[int, str]] = TypeAdapter(dict[int, str])


def _cached(path: Path) -> dict[str, Any] | None:
    """A chunk's features of an earlier run; None where there are none, or damaged ones, which are made anew."""
    try:
        with safe_open(path, "pt") as file:
            faults = _FAULTS.validate_json((file.metadata() or {}).get("faults", ""))
            return {key: file.get_tensor(key) for key in file.keys()} | {"faults": faults}
    except (OSError, SafetensorError, ValidationError):
        return None


def read_image(item: ImageItem, max_megapixels: float) -> Image.Image | str:
    """The decoded image, or the reason why there is none."""
    try:
        return decode_image(item.read(), max_megapixels)
    except ImageFault as fault:
        return fault.kind
    except OSError as error:
        return f"unreadable_file_{type(error).__name__}"


def _encode_chunk(
    model: EvaluationModel,
    images: Sequence[ImageItem],
    numbers: range,
    boxes: list[tuple[int, int, Box]],
    dense: bool,
    settings: EncodeSettings,
    pool: ThreadPoolExecutor,
) -> dict[str, Any]:
    """The features of ``numbers`` and the regions of ``boxes`` (image, row, box), as tensors by name, and faults."""

    def load(number: int) -> Prepared | str:
        image = read_image(images[number], settings.max_megapixels)
        return image if isinstance(image, str) else model.prepare(image, dense)

    loaded = dict(zip(numbers, pool.map(load, numbers), strict=True))
    faults = {number: what for number, what in loaded.items() if isinstance(what, str)}
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    prepared = {number: what for number, what in loaded.items() if not isinstance(what, str)}
    for number, one in prepared.items():
        groups[one.group].append(number)
    of_image: dict[int, list[tuple[int, Box]]] = defaultdict(list)
    for number, row, box in boxes:
        of_image[number].append((row, box))
    kept: dict[str, list[Any]] = {"numbers": [], "embeds": [], "rows": [], "regions": [], "valid": []}
    for members in groups.values():
        for start in range(0, len(members), settings.batch_size):
            part = members[start : start + settings.batch_size]
            features = model.encode_images([prepared[number] for number in part], dense=dense)
            kept["numbers"] += part
            kept["embeds"].append(features.embeds)
            _pool(model, features, part, of_image, kept)
    return {
        "numbers": torch.tensor(kept["numbers"], dtype=torch.long),
        "embeds": torch.cat(kept["embeds"]) if kept["embeds"] else torch.zeros(0, 0),
        "rows": torch.tensor(kept["rows"], dtype=torch.long),
        "regions": torch.cat(kept["regions"]) if kept["regions"] else torch.zeros(0, 0),
        "valid": torch.cat(kept["valid"]) if kept["valid"] else torch.zeros(0, dtype=torch.bool),
        "faults": faults,
    }


def _pool(
    model: EvaluationModel,
    features: EncodedImages,
    part: list[int],
    of_image: dict[int, list[tuple[int, Box]]],
    kept: dict[str, list[Any]],
) -> None:
    """The regions of one batch, each distinct box of an image pooled once."""
    distinct: dict[tuple[int, Box], int] = {}
    rows, pooled = [], []
    for position, number in enumerate(part):
        for row, box in of_image.get(number, ()):
            rows.append(row)
            pooled.append(distinct.setdefault((position, box), len(distinct)))
    if not rows:
        return
    boxes = torch.tensor([box for _, box in distinct], dtype=torch.float32)
    owner = torch.tensor([position for position, _ in distinct])
    embeds, valid = model.pool_regions(features, boxes, owner)
    kept["rows"] += rows
    kept["regions"].append(embeds[pooled])
    kept["valid"].append(valid[pooled])
