"""The pieces that make a step fast compute what the plain ways compute."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pipeline.data.facts import facts_of
from pipeline.model.attention import additive_mask, attend, project_together
from pipeline.model.checkpointing import Recomputation
from pipeline.model.layout import image_layout
from pipeline.model.positions import PositionTable
from pipeline.model.towers import TokenTable
from tests.model.material import small_batch, small_model


def test_positions_by_one_product_equal_torchs_antialiased_resizing_forward_and_backward():
    torch.manual_seed(0)
    grids, patches = torch.tensor([[4, 5], [2, 7], [3, 3], [1, 20], [4, 5]]), 20
    table = PositionTable(16, 8)
    gradients, values = [], []
    for by_product in (True, False):
        table.zero_grad()
        if by_product:
            found = table(image_layout(grids, patches), patches)
        else:
            square = table.weight.view(1, 4, 4, 8).permute(0, 3, 1, 2)
            parts = []
            for height, width in grids.tolist():
                grid = F.interpolate(square, (height, width), mode="bilinear", align_corners=False, antialias=True)
                parts.append(F.pad(grid.flatten(2)[0].T, (0, 0, 0, patches - height * width)))
            found = torch.stack(parts)
        (found * torch.linspace(-1, 2, found.numel()).view_as(found)).sum().backward()
        values.append(found.detach())
        gradients.append(table.weight.grad.clone())
    torch.testing.assert_close(values[0], values[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-5)


def test_a_bf16_table_adds_up_the_gradients_of_an_id_that_occurs_often():
    gradients = []
    for dtype in (torch.float64, torch.bfloat16):
        table = TokenTable(3, 2).to(dtype)
        table(torch.zeros(40, 50, dtype=torch.int64)).backward(torch.full((40, 50, 2), 1.0, dtype=dtype))
        gradients.append(table.weight.grad.double())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-2, atol=0)


def test_one_product_for_q_k_and_v_equals_three():
    layers = [torch.nn.Linear(12, 12).double() for _ in range(3)]
    hidden = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for together, layer in zip(project_together(hidden, layers), layers, strict=True):
        torch.testing.assert_close(together, layer(hidden), atol=1e-12, rtol=0)


def test_the_additive_mask_hides_what_the_boolean_one_hides():
    torch.manual_seed(1)
    states, visible = torch.randn(2, 6, 8), torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    additive = attend(states, states, states, 2, additive_mask(visible, like=states))
    boolean = attend(states, states, states, 2, visible[:, None, None, :].bool())
    torch.testing.assert_close(additive, boolean, atol=1e-6, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert additive_mask(visible, like=states).dtype == torch.bfloat16


def test_a_batch_has_one_mask_and_none_where_all_patches_are_real(monkeypatch):
    """For both heads and every layer, also where the dense head sees some of the images only."""
    model, padded = small_model(), small_batch(5, 4)
    padded = replace(padded, region_image=padded.region_image.clamp(min=1))  # the first image has no box
    grids = torch.tensor([[4, 5], [2, 10], [5, 4]])
    full = replace(padded, spatial_shapes=grids, pixel_attention_mask=torch.ones(3, 20, dtype=torch.int32))
    made, given = [], []

    def make(*arguments, **named):
        made.append(additive_mask(*arguments, **named))
        return made[-1]

    def see(queries, keys, values, num_heads, mask, scale=None):
        given.append(mask)
        return attend(queries, keys, values, num_heads, mask, scale)

    monkeypatch.setattr("pipeline.model.modeling.additive_mask", make)
    for module in ("towers", "attention"):
        monkeypatch.setattr(f"pipeline.model.{module}.attend", see)
    model(replace(padded, facts=facts_of(padded)), regions=True)
    masks = [mask for mask in given if mask is not None]
    assert len(made) == 1
    assert len(masks) == 4  # two layers of the vision tower and two heads; texts have none
    assert all(mask is made[0] for mask in masks[:3]) and torch.equal(masks[3], made[0][1:])
    made.clear()
    given.clear()
    model(replace(full, facts=facts_of(full)), regions=True)
    assert made == [] and set(given) == {None}


@torch.no_grad()
def test_uint8_pixels_are_normalised_as_the_processor_does_and_padding_may_hold_anything():
    model, batch = small_model(), small_batch(4, 3)
    raw = torch.randint(0, 256, batch.pixel_values.shape, dtype=torch.uint8)
    plain = model(replace(batch, pixel_values=raw.float() / 127.5 - 1), regions=True)
    raw = torch.where(batch.pixel_attention_mask[..., None].bool(), raw, 7)
    found = model(replace(batch, pixel_values=raw), regions=True)
    torch.testing.assert_close(found.image, plain.image, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.region, plain.region, atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_regions", [5, 0])
def test_a_batch_with_facts_gives_what_one_without_gives_to_the_bit(num_regions):
    model, batch = small_model(), small_batch(num_regions, 4)
    plain = model(batch, regions=True)
    known = model(replace(batch, facts=facts_of(batch)), regions=True)
    for name in ("image", "short", "long", "region", "region_text"):
        assert torch.equal(getattr(plain, name), getattr(known, name)), name


def test_layers_are_recomputed_by_patch_budget_and_by_every_nth():
    recomputation = Recomputation(((256, 3), (1024, 1)))
    assert [recomputation.every(patches) for patches in (128, 256, 576, 1024, 4096)] == [0, 3, 3, 1, 1]
    assert Recomputation().every(1024) == 0
    kept = []
    for every in (0, 2, 1):
        model = small_model().train()
        model.checkpoint_activations(Recomputation(((20, every),)))  # the batch has 20 patches
        kept.append(kept_bytes(model))
    assert kept[0] > kept[1] > kept[2]
    model.checkpoint_activations(Recomputation(((21, 1),)))
    assert kept_bytes(model) == kept[0]


def kept_bytes(model) -> int:
    """What a forward keeps for its backward."""
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embeddings = model(small_batch(0, 0))
    assert embeddings.image.requires_grad
    return sum(storages.values())
