"""Similarity of every patch of an image to a phrase, as pictures; one an image and phrase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline.drawing.save import save_picture
from pipeline.evaluation.features import EncodeSettings, encode_texts, read_image
from pipeline.evaluation.finite import not_finite
from pipeline.evaluation.formats.items import ImageItem
from pipeline.evaluation.formats.paths import EXTENSIONS
from pipeline.evaluation.formats.shards import read_shards
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.dense_maps import DenseMapOptions
from pipeline.evaluation.pictures import NUM_COLOURS, add_to_index, file_part, heat_picture
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import Accounting, EvaluationError
from pipeline.evaluation.scclip import Calibration


def run(model: EvaluationModel, options: DenseMapOptions, settings: EncodeSettings, ranks: Ranks) -> dict[str, Any]:
    """The task on an image, a folder of images, or shards (``image_ids`` chooses among their keys).

    The scores are each map's least and greatest cosine: what the colours of the picture stand for.
    """
    if not options.phrases:
        raise EvaluationError("no phrase was given; write --phrase TEXT, as often as wanted")
    for phrase in options.phrases:
        if not phrase.strip():
            raise EvaluationError(f"phrase {phrase!r} is empty; write what to look for")
    if options.out is None:
        raise EvaluationError("no folder for the pictures was given; write --out DIR")
    images = find_images(options)
    calibration = Calibration.of(options)
    embeds, row_of = encode_texts(model, options.phrases, "region", ranks)
    phrases = {phrase: embeds[row_of[phrase]] for phrase in options.phrases}
    accounting = Accounting("images")
    scores: dict[str, Any] = {}
    index: dict[str, Any] = {}
    bad: list[str] = []  # told to all ranks: an error on one alone would leave the others waiting
    for item in (images[number] for number in ranks.share(len(images))):
        image = read_image(item, settings.max_megapixels)
        if isinstance(image, str):
            accounting.skip(image, item.key)
            continue
        accounting.take()
        features = model.encode_dense([model.prepare(image, dense=True)], calibration)
        grid = features.grid(0).cpu()
        if not grid.isfinite().all():
            bad.append(item.key)
            continue
        for name, entry in _draw(grid, image, item.key, phrases, options.out).items():
            scores[name.removesuffix(".png")] = {"least_cosine": entry["least"], "greatest_cosine": entry["greatest"]}
            index[name] = entry
    total = Accounting("images")
    gathered = ranks.gather((scores, index, accounting, bad))
    if wrong := [key for _, _, _, keys in gathered for key in keys]:
        raise not_finite(f"patch features of {len(wrong)} of {len(images)} images (first: {wrong[0]!r})")
    for part_scores, part_index, part, _ in gathered:
        scores |= part_scores
        index |= part_index
        total.take(part.evaluated)
        for reason, count in part.skipped.items():
            total.skip(reason, part.examples[reason][0], count)
    total.check(options.max_skipped_share)
    if ranks.is_main:
        add_to_index(options.out, index)
    shown = calibration.to_json(model.has_class_token) if calibration else None
    return {
        "scores": scores,
        "settings": {"data": str(options.one_data()), "phrases": list(options.phrases), "calibration": shown},
        "accounting": [total.to_json()],
    }


def _draw(
    grid: Tensor, image: Image.Image, key: str, phrases: dict[str, Tensor], out: Path
) -> dict[str, dict[str, Any]]:
    """One picture a phrase of an image's patches [h, w, D]; what each shows, by its file name."""
    unit = F.normalize(grid, dim=-1)
    entries = {}
    for order, (phrase, text) in enumerate(phrases.items(), start=1):
        similarity = unit @ text
        name = f"{file_part(Path(key).stem)}-{order}-{file_part(phrase)}.png"
        save_picture(heat_picture(image, similarity.numpy(), phrase, order), out / name, NUM_COLOURS)
        least, greatest = similarity.min().item(), similarity.max().item()
        entries[name] = {"image": key, "phrase": phrase, "least": least, "greatest": greatest}
    return entries


def find_images(options: DenseMapOptions) -> list[ImageItem]:
    """The images that the options name, at most ``max_images``.

    Raises:
        EvaluationError: none, or an image id that is not there.
    """
    path = options.one_data()
    if path.is_file():
        return [ImageItem(path.name, path)]
    if any(path.glob("*.tar")):
        items = [one.image for one in read_shards(path).samples]
    else:
        items = [ImageItem(file.name, file) for file in sorted(path.iterdir()) if file.suffix.lower() in EXTENSIONS]
    if options.image_ids is not None:
        wanted = [line.strip() for line in options.image_ids.read_text(encoding="utf-8").splitlines() if line.strip()]
        known = {Path(item.key).stem: item for item in items}
        missing = [name for name in wanted if Path(name).stem not in known]
        if missing:
            raise EvaluationError(f"{options.image_ids} names {missing[0]!r}, which is not in {path}")
        items = [known[Path(name).stem] for name in wanted]
    if not items:
        raise EvaluationError(f"{path} holds no image ({', '.join(EXTENSIONS)}) and no shard; give one of them")
    return items[: options.max_images]
