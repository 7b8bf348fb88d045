"""What is said of an image stays true of the view that an epoch sees of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.config import AugmentSettings, DataSettings
from pipeline.data.augment import View, choose_view, seen_pixels, seen_sample
from pipeline.data.collate import PixelBuffer
from pipeline.data.patches import PATCH_VALUES
from pipeline.data.schema import Region, Sample
from tests.data.shards import image_bytes

CROPS = AugmentSettings(crop_share=1.0, crop_least_area=0.3)
MIRRORS, COLOURS = AugmentSettings(flip_share=1.0), AugmentSettings(colour_share=1.0)
BOXES = ((0.25, 0.5, 0.5, 0.75), (0.7, 0.1, 0.8, 0.3))


def sample(caption: str = "a cup", language: str = "en", boxes=BOXES, **region: object) -> Sample:
    regions = tuple(Region(box, phrase="a cup", **region) for box in boxes)
    return Sample(language, 120, 80, short_caption=caption, regions=regions)


def corners(box, width: int, height: int) -> tuple[float, ...]:
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


@pytest.mark.parametrize("settings", [CROPS, CROPS.model_copy(update={"flip_share": 1.0})])
def test_the_pixels_under_every_box_are_the_same_in_every_view(settings: AugmentSettings):
    """Numbered pixels: what lies in a box of the view is what lay in the box of the image."""
    one, image = sample(), np.zeros((80, 120, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(120)[None], np.arange(80)[:, None]
    sizes = set()
    for epoch in range(40):
        view = choose_view(one, "k", 0, epoch, settings)
        seen, pixels = seen_sample(one, view), seen_pixels(image, view)
        assert pixels.shape == (seen.height, seen.width, 3)
        sizes.add(pixels.shape)
        for before, after in zip(one.regions, seen.regions, strict=True):
            x1, y1, x2, y2 = (round(v) for v in corners(after.box, seen.width, seen.height))
            part = pixels[y1:y2, x1:x2, :2].astype(int)
            part = part[:, ::-1] if view.flipped else part
            left, top, right, bottom = (round(v) for v in corners(before.box, 120, 80))
            assert np.array_equal(part, image[top:bottom, left:right, :2])
    assert len(sizes) > 10


def test_a_crop_keeps_at_least_its_share_of_the_image_and_is_another_in_every_epoch():
    views = [choose_view(sample(boxes=()), "k", 0, epoch, CROPS) for epoch in range(50)]
    shares = [view.size(120, 80)[0] * view.size(120, 80)[1] / 9600 for view in views]
    assert min(shares) > 0.27 and max(shares) <= 1 and len({view.crop for view in views}) > 45
    assert views == [choose_view(sample(boxes=()), "k", 0, epoch, CROPS) for epoch in range(50)]


@pytest.mark.parametrize(
    ("caption", "language", "is_mirrored"),
    [
        ("a cup on a table", "en", True),
        ("a cup on the left of a plate", "en", False),
        ("a sign that says STOP", "en", False),
        ("桌子上有一个杯子", "zh", True),
        ("盘子左边有一个杯子", "zh", False),
        ("一块写着文字的木板", "zh", False),
        ("eine Tasse auf dem Tisch", "de", False),  # nobody has listed its words
    ],
)
def test_no_image_is_mirrored_whose_texts_name_a_side(caption: str, language: str, is_mirrored: bool):
    assert choose_view(sample(caption, language), "k", 0, 0, MIRRORS).flipped is is_mirrored


@pytest.mark.parametrize(
    ("caption", "language", "is_recoloured"),
    [
        ("a cup on a table", "en", True),
        ("a dark cup", "en", False),
        ("a reddish cup", "en", False),
        ("一个杯子", "zh", True),
        ("一个红杯子", "zh", False),
        ("una taza", "es", False),
    ],
)
def test_no_image_is_recoloured_whose_texts_name_a_colour(caption: str, language: str, is_recoloured: bool):
    view = choose_view(sample(caption, language), "k", 0, 0, COLOURS)
    assert (view.colour is not None) is is_recoloured


def test_altered_phrases_count_as_texts():
    wrong = sample(negatives=("a blue cup", "a cup on the left"))
    assert choose_view(wrong, "k", 0, 0, COLOURS).colour is None
    assert not choose_view(wrong, "k", 0, 0, MIRRORS).flipped


def test_the_batch_holds_the_view_in_a_grid_of_its_shape(tmp_path: Path):
    settings, data = DataSettings(patch_budgets=[40]), image_bytes(0, (120, 80))
    values = torch.zeros(2, 40, PATCH_VALUES, dtype=torch.uint8)
    pixels = PixelBuffer(values, settings)
    pixels.put(0, data, 120, 80)
    pixels.put(1, data, 120, 80, View(crop=(40, 0, 120, 40)))
    assert pixels.shapes.tolist() == [[5, 8], [4, 8]] and not torch.equal(values[0], values[1])


def test_nothing_is_changed_by_default_and_streams_are_refused():
    assert not DataSettings().augment.is_on
    assert choose_view(sample(), "k", 0, 0, AugmentSettings()) == View()
    with pytest.raises(ValidationError, match="data.streaming is true and data.augment is on"):
        DataSettings(streaming=True, augment=CROPS)
