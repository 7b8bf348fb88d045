"""What a batch says about itself is what its tensors hold, and padding of texts is counted and never referred to."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.data.facts import KINDS, bucketed, facts_of, pad_rows
from pipeline.data.patches import PATCH_VALUES
from tests.model.material import small_batch


def test_facts_are_those_of_the_tensors():
    batch = small_batch(6, 9)
    boxes = batch.boxes.clone()
    boxes[1] = torch.tensor([0.5, 0.5, 0.5, 0.9])  # without area
    mask = torch.zeros(3, 11, dtype=torch.bool)
    mask[0, :4] = mask[1, :2] = mask[2, :1] = True  # the third has a true phrase and no negative
    batch = replace(
        batch,
        boxes=boxes,
        short_valid=torch.tensor([True, False, True]),
        hard_region=torch.tensor([0, 1, 2]),
        hard_index=torch.zeros(3, 11, dtype=torch.int64),
        hard_mask=mask,
    )
    facts = facts_of(batch)
    assert facts.images.grids == ((4, 5), (2, 7), (3, 3))
    assert facts.images.grid_number.tolist() == [0, 1, 2]
    assert not facts.images.all_real
    assert facts.real_patches == 20 + 14 + 9
    assert facts.rows.short.tolist() == [0, 2]
    assert facts.rows.long is None
    assert facts.rows.region.tolist() == [0, 2, 3, 4, 5]
    assert facts.rows.hard.tolist() == [0]  # the second hard row's region has no area
    assert facts.rows.altered.tolist() == [0, 1, 2]
    assert dict(zip(KINDS, facts.counts, strict=True)) == {"short": 2, "long": 3, "region": 5, "hard": 1, "altered": 3}
    boxed = facts.regions.boxed_images
    assert torch.equal(boxed[facts.regions.region_slot], batch.region_image)
    assert facts.regions.most_boxes == int(batch.region_image.bincount().max())
    assert facts.num_region_texts == 9


def test_a_batch_without_images_has_facts_as_well():
    whole = small_batch(0, 0)
    nothing = {name: tensor[:0] for name, tensor in whole.tensors().items()}
    facts = facts_of(replace(whole, keys=[], **nothing))
    assert facts.counts == (0, 0, 0, 0, 0)
    assert facts.images.grids == ((1, 1),), "the model runs the stand-in"


def test_an_image_of_256_patches_takes_less_than_200_kilobytes():
    assert 256 * PATCH_VALUES <= 200_000


def test_numbers_of_texts_fall_into_few_buckets_with_little_padding():
    sizes = {bucketed(number) for number in range(1, 4097)}
    assert len(sizes) <= 16 + 8 * 8
    assert all(number <= bucketed(number) <= number * 1.125 + 1 for number in range(1, 20000))
    assert [bucketed(number) for number in (0, 1, 15, 16, 17, 65, 192)] == [0, 1, 15, 16, 18, 72, 192]
    assert pad_rows(torch.ones(2, 3), 4).tolist() == [[1] * 3, [1] * 3, [0] * 3, [0] * 3]
    assert pad_rows(torch.ones(2, dtype=torch.int64), 3).tolist() == [1, 1, 0]
