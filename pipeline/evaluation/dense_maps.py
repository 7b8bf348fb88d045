"""Similarity of every patch of an image to a phrase, as pictures; one an image and phrase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F

from pipeline.drawing.save import save_picture
from pipeline.evaluation.features import EncodeSettings, encode_texts, read_image
from pipeline.evaluation.formats.items import ImageItem
from pipeline.evaluation.formats.paths import EXTENSIONS
from pipeline.evaluation.formats.shards import read_shards
from pipeline.evaluation.models import EvaluationModel
from pipeline.evaluation.options import Options
from pipeline.evaluation.pictures import NUM_COLOURS, add_to_index, file_part, heat_picture
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import Accounting, EvaluationError
from pipeline.evaluation.scclip import Calibration

# Options, beside those of all tasks.
READS = ("image_ids", "max_images", "calibrate", "switch_off", "class_token_weight", "stand_in", "phrases", "out")
DEFAULT_MAX_IMAGES = 16


def run(model: EvaluationModel, options: Options, settings: EncodeSettings, ranks: Ranks) -> dict[str, Any]:
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
    texts, number = encode_texts(model, options.phrases, "region", ranks)
    accounting = Accounting("images")
    scores: dict[str, Any] = {}
    index: dict[str, Any] = {}
    for at in range(len(images)) if ranks.size == 1 else ranks.share(len(images)):
        item = images[at]
        image = read_image(item, settings.max_megapixels)
        if isinstance(image, str):
            accounting.skip(image, item.key)
            continue
        accounting.take()
        features = model.encode_dense([model.prepare(image, dense=True)], calibration)
        height, width = features.shapes[0].tolist()
        unit = F.normalize(features.dense[0, : height * width], dim=-1).cpu()
        for order, phrase in enumerate(options.phrases, start=1):
            similarity = (unit @ texts[number[phrase]]).view(height, width)
            name = f"{file_part(Path(item.key).stem)}-{order}-{file_part(phrase)}.png"
            save_picture(heat_picture(image, similarity.numpy(), phrase, order), options.out / name, NUM_COLOURS)
            least, greatest = similarity.min().item(), similarity.max().item()
            scores[name.removesuffix(".png")] = {"least_cosine": least, "greatest_cosine": greatest}
            index[name] = {"image": item.key, "phrase": phrase, "least": least, "greatest": greatest}
    gathered = ranks.gather((scores, index, accounting))
    total = Accounting("images")
    for part_scores, part_index, part in gathered:
        scores |= part_scores
        index |= part_index
        total.take(part.evaluated)
        for reason, count in part.skipped.items():
            total.skip(reason, part.examples[reason][0], count)
    total.check(options.max_skipped_share)
    if ranks.is_first:
        add_to_index(options.out, index)
    shown = calibration.to_json(model.has_class_token) if calibration else None
    return {
        "scores": scores,
        "settings": {"data": str(options.one_data()), "phrases": list(options.phrases), "calibration": shown},
        "accounting": [total.to_json()],
    }


def find_images(options: Options) -> list[ImageItem]:
    """The images that the options name, at most ``max_images`` (16 by default).

    Raises:
        EvaluationError: none, or an image id that is not there.
    """
    path = options.one_data()
    if path.is_file():
        return [ImageItem(path.name, path)]
    if any(path.glob("*.tar")):
        found = [one.image for one in read_shards(path).samples]
    else:
        found = [ImageItem(file.name, file) for file in sorted(path.iterdir()) if file.suffix.lower() in EXTENSIONS]
    if options.image_ids is not None:
        wanted = [line.strip() for line in options.image_ids.read_text(encoding="utf-8").splitlines() if line.strip()]
        known = {Path(item.key).stem: item for item in found}
        missing = [name for name in wanted if Path(name).stem not in known]
        if missing:
            raise EvaluationError(f"{options.image_ids} names {missing[0]!r}, which is not in {path}")
        found = [known[Path(name).stem] for name in wanted]
    if not found:
        raise EvaluationError(f"{path} holds no image ({', '.join(EXTENSIONS)}) and no shard; give one of them")
    return found[: options.max_images or DEFAULT_MAX_IMAGES]
