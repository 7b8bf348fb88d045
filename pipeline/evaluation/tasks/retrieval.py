"""Image-text retrieval: recall of the right text among all texts, and of the right image among all images.

Letters: N images, M captions, D width. An image may have several captions: image-to-text is a hit when any of them is
among the first k. A tie counts against the model, so that a collapsed one scores 0 and not 1.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.features import EncodeSettings, encode_set, encode_texts
from pipeline.evaluation.formats.captions import kind_of, read_captions, recognise, shard_captions
from pipeline.evaluation.formats.items import Caption, CaptionSet
from pipeline.evaluation.formats.language import language_of
from pipeline.evaluation.formats.paths import ImageFinder, text_lines
from pipeline.evaluation.measures import Facts, fact, retrieval_chances
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.retrieval import RetrievalOptions
from pipeline.evaluation.ranks import Ranks

CHUNK = 1024  # rows of the similarity matrix that exist at one time


def ranks_of_matches(images: Tensor, texts: Tensor, text_image: Tensor) -> tuple[Tensor, Tensor]:
    """The rank (from 0) of each image's best own caption, and of each caption's own image.

    Args:
        images: [N, D], texts: [M, D], both of unit norm; text_image: [M], the image each caption belongs to.
    Returns:
        i2t [N] (images without a caption get -1) and t2i [M].
    """
    i2t = torch.full((len(images),), -1, dtype=torch.long)
    for start in range(0, len(images), CHUNK):
        scores = images[start : start + CHUNK] @ texts.T
        own = text_image[None] == torch.arange(start, start + len(scores))[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        rank = ((scores >= best) & ~own).sum(1)
        i2t[start : start + CHUNK] = torch.where(own.any(1), rank, -1)
    t2i = torch.empty(len(texts), dtype=torch.long)
    for start in range(0, len(texts), CHUNK):
        scores = texts[start : start + CHUNK] @ images.T
        own = text_image[start : start + CHUNK]
        true = scores.gather(1, own[:, None])
        t2i[start : start + CHUNK] = (scores >= true).sum(1) - 1
    return i2t, t2i


def recalls(
    images: Tensor, texts: Tensor, text_image: Tensor, depths: tuple[int, ...] = (1, 5, 10)
) -> dict[str, float]:
    """``{"i2t_r1": …, "t2i_r1": …}``, fractions. Arguments as in :func:`ranks_of_matches`."""
    i2t, t2i = ranks_of_matches(images, texts, text_image)
    i2t = i2t[i2t >= 0]
    scores = {f"i2t_r{k}": (i2t < k).double().mean().item() for k in depths}
    return scores | {f"t2i_r{k}": (t2i < k).double().mean().item() for k in depths}


def recall_facts(text_image: Tensor, num_images: int, depths: tuple[int, ...] = (1, 5, 10)) -> Facts:
    """What stands beside :func:`recalls`."""
    facts: Facts = {}
    for depth in depths:
        i2t, t2i = retrieval_chances(text_image, num_images, depth)
        facts |= {f"i2t_r{depth}": fact(num_images, i2t), f"t2i_r{depth}": fact(len(text_image), t2i)}
    return facts


def run(model: EvaluationModel, options: RetrievalOptions, settings: EncodeSettings, ranks: Ranks) -> dict[str, Any]:
    """The task: read the set, encode both sides, score. See :func:`pipeline.evaluation.run.evaluate`."""
    path = options.one_data()
    pairs, chosen = read_pairs(path, options)
    language, kind = chosen["language"], chosen["text_kind"]
    prefix = model.short_prefix(language) if options.short_prefix is None else options.short_prefix
    prefix = prefix if kind == "short" else ""
    features = encode_set(model, pairs.images, settings=settings, ranks=ranks, label="retrieval images")
    captions = []
    for caption in pairs.captions:
        if caption.image in features.faults:
            pairs.accounting.retract(features.faults[caption.image], pairs.images[caption.image].key, 1)
        else:
            captions.append(caption)
    pairs.accounting.check(options.max_skipped_share)
    kept = sorted({caption.image for caption in captions})
    position = {image: number for number, image in enumerate(kept)}
    texts = [prefix + caption.text for caption in captions]
    embeds, row_of = encode_texts(model, texts, kind, ranks)
    owner = torch.tensor([position[caption.image] for caption in captions])
    scores = recalls(features.embeds[kept], embeds[[row_of[text] for text in texts]], owner)
    return {
        "scores": scores,
        "facts": recall_facts(owner, len(kept)),
        "settings": {
            "data": str(path),
            **chosen,
            "split": options.split,
            "captions_per_image": options.captions_per_image,
            "text_path": model.text_path(kind),
            "short_prefix": prefix,
            "num_images": len(kept),
            "num_captions": len(captions),
            "ties": "count against the model",
        },
        "accounting": [pairs.accounting.to_json()],
    }


def read_pairs(path: Path, options: RetrievalOptions) -> tuple[CaptionSet, dict[str, str]]:
    """Images with captions, and what was chosen for them: format, language and text path, and what told so."""
    form = recognise(path) if options.format == "auto" else options.format
    kind: str = options.text_kind
    kind_from = "text_kind"
    if form == "shards":
        if kind == "auto":
            kind, kind_from = "short", "the default for shards"
        pairs, language = shard_captions(path, kind, options.language)
        language_from = "language" if options.language != "auto" else "the records"
    else:
        find = ImageFinder(options.images, path)
        pairs = read_captions(path, form, "short" if kind == "short" else "long", options.split, find)
        if kind == "auto":
            kind, kind_from = kind_of(pairs, form)
            if kind == "short":  # a row may hold a text of each kind
                pairs = read_captions(path, form, kind, options.split, find)
        language = language_of(c.text for c in pairs.captions) if options.language == "auto" else options.language
        language_from = "the captions" if options.language == "auto" else "language"
    chosen = {"format": form, "language": language, "language_from": language_from}
    return _limited(pairs, options), chosen | {"text_kind": kind, "text_kind_from": kind_from}


def _limited(pairs: CaptionSet, options: RetrievalOptions) -> CaptionSet:
    """The set cut down to ``image_ids``, ``max_images`` and each one's first captions; the rest is counted."""
    allowed = None
    if options.image_ids is not None:
        allowed = {Path(line.strip().partition("#")[0]).stem for line in text_lines(options.image_ids)}
    chosen: dict[int, int] = {}
    for number, item in enumerate(pairs.images):
        listed = allowed is None or Path(item.key).stem in allowed
        if listed and (options.max_images is None or len(chosen) < options.max_images):
            chosen[number] = len(chosen)
    captions, taken = [], Counter[int]()
    for caption in pairs.captions:
        if caption.image in chosen and taken[caption.image] != options.captions_per_image:
            taken[caption.image] += 1
            captions.append(Caption(chosen[caption.image], caption.text))
    left_out = len(pairs.captions) - len(captions)
    why = "image_ids, max_images, captions_per_image"
    pairs.accounting.leave_out("captions_outside_the_chosen_ones", why, left_out)
    return CaptionSet([pairs.images[number] for number in chosen], captions, pairs.accounting)
