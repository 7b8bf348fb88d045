"""A toy model and toy global batches: enough to ask whether losses and gradients depend on how rows lie on ranks.

Shape letters: B images, R regions, U distinct phrases, K negatives, F input features, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.batch import Batch

FEATURES, WIDTH, NUM_PHRASES, MAX_NEGATIVES = 7, 16, 40, 10


@dataclass
class ToyRegion:
    feature: Tensor  # [F]
    phrase: int  # the region's own phrase
    short_phrase: int  # the true phrase of its hard row
    negatives: list[int] = field(default_factory=list)
    valid: bool = True


@dataclass
class ToyImage:
    feature: Tensor  # [F]
    short: Tensor | None  # [F]
    long: Tensor | None
    regions: list[ToyRegion] = field(default_factory=list)


def make_images(
    num_images: int,
    seed: int,
    *,
    regions: list[int] | None = None,
    negatives: tuple[int, int] = (0, 10),
    one_phrase: bool = False,
    absent_captions: tuple[int, ...] = (),
    invalid_regions: tuple[int, ...] = (),
) -> list[ToyImage]:
    """``regions``: how many each image has (else 0 … 4 at random); ``negatives``: range of their number a region.

    Images named in ``absent_captions`` have no short caption (and every second of them no long one); all regions of
    images in ``invalid_regions`` have no area.
    """
    random = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    def vector() -> Tensor:
        return torch.randn(FEATURES, generator=random, dtype=torch.float64)

    images = []
    for number in range(num_images):
        image = ToyImage(vector(), vector(), vector())
        if number in absent_captions:
            image.short = None
            image.long = None if number % 2 else image.long
        for _ in range(regions[number] if regions is not None else integer(0, 4)):
            phrase, short_phrase = integer(0, NUM_PHRASES - 1), integer(0, NUM_PHRASES - 1)
            if integer(0, 1) or one_phrase:
                short_phrase = phrase = 0 if one_phrase else phrase
            altered = [integer(0, NUM_PHRASES - 1) for _ in range(integer(*negatives))]
            region = ToyRegion(vector(), phrase, short_phrase, [0] * len(altered) if one_phrase else altered)
            region.valid = number not in invalid_regions
            image.regions.append(region)
        images.append(image)
    return images


class ToyModel(nn.Module):
    """A linear map a kind of input, unit norm, and the four scalars."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(99)
        for name in ("image", "short", "long", "region", "phrase"):
            weight = torch.randn(WIDTH, FEATURES, generator=random, dtype=torch.float64)
            setattr(self, name, nn.Parameter(weight.to(dtype)))
        for name, start in (("log_global", 1.2), ("bias", -2.0), ("log_finegrained", 1.6), ("log_hardneg", 1.4)):
            setattr(self, name, nn.Parameter(torch.tensor(start, dtype=dtype)))
        table = torch.randn(NUM_PHRASES, FEATURES, generator=random, dtype=torch.float64)
        table[1::8] = table[::8] + 0.1 * table[1::8]  # some say nearly the same: cosines above 0.95
        self.register_buffer("table", table.to(dtype))

    def embed(self, name: str, features: Tensor) -> Tensor:
        return F.normalize(features @ getattr(self, name).T, dim=-1)

    def scales(self) -> SimpleNamespace:
        return SimpleNamespace(
            global_scale=self.log_global.exp(),
            global_bias=self.bias * 1,
            finegrained=self.log_finegrained.exp(),
            hardneg=self.log_hardneg.exp(),
        )

    def forward(self, images: list[ToyImage], batch: Batch) -> SimpleNamespace:
        """Embeddings as the real model gives them; rows of invalid regions are 0."""
        dtype = self.image.dtype

        def stack(vectors: list[Tensor | None]) -> Tensor:
            filled = [torch.ones(FEATURES, dtype=torch.float64) if v is None else v for v in vectors]
            return torch.stack(filled).to(dtype) if filled else torch.zeros(0, FEATURES, dtype=dtype)

        regions = [region for image in images for region in image.regions]
        valid = torch.tensor([region.valid for region in regions], dtype=torch.bool)
        region = self.embed("region", stack([region.feature for region in regions]))
        text = self.embed("phrase", self.table[batch.region_ids[:, 0]])
        return SimpleNamespace(
            image=self.embed("image", stack([image.feature for image in images])),
            short=self.embed("short", stack([image.short for image in images])),
            long=self.embed("long", stack([image.long for image in images])),
            region=torch.where(valid[:, None], region, 0.0),
            region_valid=valid,
            region_text=text,
            scales=self.scales(),
            region_anchor=0.0 * (region.sum() + text.sum() + self.region.sum() + self.phrase.sum()),
        )


def make_batch(images: list[ToyImage]) -> Batch:
    """The images as one rank's batch: regions flat, each phrase once, K as large as this rank needs."""
    phrases: dict[int, int] = {}

    def place(phrase: int) -> int:
        return phrases.setdefault(phrase, len(phrases))

    regions = [(number, region) for number, image in enumerate(images) for region in image.regions]
    hard = [(number, region) for number, (_, region) in enumerate(regions) if region.negatives]
    longest = max((len(region.negatives) for _, region in hard), default=MAX_NEGATIVES)
    index = torch.zeros(len(hard), 1 + longest, dtype=torch.int64)
    mask = torch.zeros(len(hard), 1 + longest, dtype=torch.bool)
    phrase_index = torch.tensor([place(region.phrase) for _, region in regions], dtype=torch.int64)
    for row, (_, region) in enumerate(hard):
        texts = [place(phrase) for phrase in (region.short_phrase, *region.negatives)]
        index[row, : len(texts)], mask[row, : len(texts)] = torch.tensor(texts), True
    ids = torch.tensor(list(phrases), dtype=torch.int64)
    count = len(images)
    return Batch(
        keys=[str(n) for n in range(count)],
        language="en",
        pixel_values=torch.zeros(count, 1, 768),
        pixel_attention_mask=torch.ones(count, 1, dtype=torch.int32),
        spatial_shapes=torch.ones(count, 2, dtype=torch.int64),
        short_ids=torch.zeros(count, 1, dtype=torch.int64),
        short_valid=torch.tensor([image.short is not None for image in images], dtype=torch.bool),
        long_ids=torch.zeros(count, 1, dtype=torch.int64),
        long_valid=torch.tensor([image.long is not None for image in images], dtype=torch.bool),
        boxes=torch.zeros(len(regions), 4),
        region_image=torch.tensor([number for number, _ in regions], dtype=torch.int64),
        region_ids=ids[:, None],
        region_text_hash=ids * 1_000_003 - 17,
        phrase_index=phrase_index,
        hard_region=torch.tensor([number for number, _ in hard], dtype=torch.int64),
        hard_index=index,
        hard_mask=mask,
    )
