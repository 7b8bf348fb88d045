"""Pictures of what a model has learned so far, of the same images each time: boxes with the scores of their phrases,
a dense map, and the regions it is most wrong about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline.data.images import decode_image
from pipeline.data.manifest import load_manifest
from pipeline.data.reader import iterate_shards
from pipeline.data.resolution import level_of
from pipeline.data.schema import Region, Sample
from pipeline.drawing.boxes import draw_regions
from pipeline.evaluation.models.fgclip2 import FGCLIP2Evaluation
from pipeline.evaluation.pictures import heat_picture

MOST_LANGUAGES = 4
FIXED_IMAGES = 2  # a language
IMAGES_TRIED_FOR_WORST = 24  # a language
NUM_WORST = 4
SHOWN_REGIONS = 3  # of an image
SHOWN_NEGATIVES = 4


@dataclass(frozen=True)
class Scored:
    """A region's phrases with their shares, the true one first."""

    image: Image.Image
    region: Region
    pairs: list[tuple[str, float]]

    @property
    def margin(self) -> float:
        """Share of the true phrase less the best altered one's; below 0 the region is got wrong."""
        return self.pairs[0][1] - max(share for _, share in self.pairs[1:])


@torch.no_grad()
def learning_pictures(model: FGCLIP2Evaluation, folder: str | Path) -> dict[str, Image.Image]:
    """Pictures by name: ``boxes/en-1``, ``map/zh-1``, ``worst/1`` …

    Args:
        model: its module in evaluation mode.
        folder: shards whose first samples with regions and negatives are shown; the same ones every time.
    """
    found: dict[str, Image.Image] = {}
    scored: list[Scored] = []
    for language in load_manifest(folder).languages[:MOST_LANGUAGES]:
        for number, (image, sample) in enumerate(_samples(folder, language), start=1):
            regions = [region for region in sample.regions if region.negatives][:SHOWN_REGIONS]
            some = _score(model, image, regions)
            scored += some
            if number <= FIXED_IMAGES:
                labels = [sorted(one.pairs, key=lambda pair: -pair[1]) for one in some]
                truths = [one.region.phrase for one in some]
                found[f"boxes/{language}-{number}"] = draw_regions(
                    image, [r.image_box for r in regions], labels, truths
                )
            if number == 1:
                phrase = regions[0].phrase
                similarity = _map(model, image, phrase)
                found[f"map/{language}-1"] = heat_picture(image, similarity.numpy(), phrase, 1)
    for place, one in enumerate(sorted(scored, key=lambda one: one.margin)[:NUM_WORST], start=1):
        labels = [sorted(one.pairs, key=lambda pair: -pair[1])]
        found[f"worst/{place}"] = draw_regions(one.image, [one.region.image_box], labels, [one.region.phrase])
    return found


def _samples(folder: str | Path, language: str) -> Iterator[tuple[Image.Image, Sample]]:
    count = 0
    for _, data, sample, _ in iterate_shards(folder):
        if sample.language == language and any(region.negatives for region in sample.regions):
            yield decode_image(data), sample
            count += 1
            if count == IMAGES_TRIED_FOR_WORST:
                return


def _score(model: FGCLIP2Evaluation, image: Image.Image, regions: Sequence[Region]) -> list[Scored]:
    """Shares of each region's phrases at the learned scale, as stage 2 trains them."""
    budget = level_of(image.width, image.height, model.patch_budgets)
    boxes = [region.image_box for region in regions]
    embeds = model.module.encode_regions(image, boxes, box_format="normalised", max_num_patches=budget).embeds
    scored = []
    for embed, region in zip(embeds, regions, strict=True):
        phrases = [region.phrase, *region.negatives[:SHOWN_NEGATIVES]]
        shares = (embed @ _encode(model, phrases).T * model.module.scales().hardneg).softmax(-1)
        scored.append(Scored(image, region, list(zip(phrases, shares.tolist(), strict=True))))
    return scored


def _map(model: FGCLIP2Evaluation, image: Image.Image, phrase: str) -> Tensor:
    """Cosine of every patch with the phrase, [h, w]."""
    encoded = model.encode_images([model.prepare(image)], dense=True)
    assert encoded.dense is not None and encoded.shapes is not None
    height, width = encoded.shapes[0].tolist()
    features = F.normalize(encoded.dense[0, : height * width], dim=-1).view(height, width, -1)
    return (features @ _encode(model, [phrase])[0]).cpu()


def _encode(model: FGCLIP2Evaluation, phrases: list[str]) -> Tensor:
    ids = model.tokenizer(phrases, model.lengths["region"])
    return model.module.encode_ids(ids.to(model.module.device), "region")
