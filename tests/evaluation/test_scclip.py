"""SC-CLIP: the published code's numbers, each part by itself, any batch, and towers without a class token."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.evaluation import EvaluationError
from pipeline.evaluation.models.fgclip2 import FGCLIP2Evaluation
from pipeline.evaluation.scclip import (
    PARTS,
    Calibration,
    calibrated_patches,
    outlier_factors,
    outliers,
    repaired,
    similarity,
    similarity_attention,
)
from tests.shared_data import shared


@pytest.fixture(scope="module")
def fixture():
    """``(model, tensors of the case, its settings)``; another fixture of the same form does as well."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = shared("fixtures/scclip", "SCCLIP_FIXTURES")
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**meta["config"])).eval()
    model.load_state_dict(load_file(folder / "clip_vision_weights.safetensors"))
    p = meta["parameters"]
    settings = Calibration(
        num_neighbours=p["n_neighbors"],
        contamination=p["contamination"],
        beta=p["beta"],
        class_token_weight=p["res_cls"],
        early_block=p["pre_adjust_idx"],
        late_block=p["post_adjust_idx"],
        first_level=p["multi_start_idx"],
        last_level=p["multi_end_idx"],
    )
    return model, load_file(folder / "io.safetensors"), settings


@torch.no_grad()
def run(model, pixels, settings):
    tower = model.vision_model
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    side = int((hidden.shape[1] - 1) ** 0.5)
    return calibrated_patches(
        list(tower.encoder.layers),
        hidden,
        lambda block, states: block(states, None),
        mask=torch.ones(len(pixels), side * side, dtype=torch.bool),
        grids=torch.tensor([[side, side]] * len(pixels)),
        has_class_token=True,
        settings=settings,
    )


@torch.no_grad()
def test_outliers_and_features_are_the_published_codes(fixture):
    model, case, settings = fixture
    states = model.vision_model(pixel_values=case["pixel_values"], output_hidden_states=True).hidden_states
    patches = states[-2][:, 1:]
    mask = torch.ones(patches.shape[:2], dtype=torch.bool)
    factors = outlier_factors(patches, mask, settings.num_neighbours)
    assert torch.allclose(factors[0], case["lof_scores"], atol=1e-3)
    odd = outliers(factors, mask, settings.contamination)[0].nonzero().flatten()
    assert odd.tolist() == case["outlier_indices"].tolist()
    patches = run(model, case["pixel_values"], settings)
    features = model.visual_projection(model.vision_model.post_layernorm(patches))
    assert (features - case["calibrated_patch_features"]).abs().max() < 1e-3


@torch.no_grad()
def test_every_part_can_be_switched_off_and_all_off_is_the_plain_tower(fixture):
    model, case, settings = fixture
    pixels = case["pixel_values"]
    plain = model.vision_model(pixel_values=pixels).last_hidden_state[:, 1:]
    assert torch.equal(run(model, pixels, Calibration(off=frozenset(PARTS))), plain)
    full = run(model, pixels, settings)
    for part in PARTS:
        assert not torch.allclose(run(model, pixels, Calibration(off=frozenset({part}))), full, atol=1e-4), part
    with pytest.raises(EvaluationError, match="'everything' cannot be switched off"):
        Calibration(off=frozenset({"everything"}))


def test_images_of_a_batch_do_not_touch_each_other(fixture):
    model, case, settings = fixture
    pixels = torch.cat([case["pixel_values"], case["pixel_values"].flip(-1), 0.3 * case["pixel_values"]])
    together = run(model, pixels, settings)
    for number in range(3):
        alone = run(model, pixels[number : number + 1], settings)
        assert (together[number] - alone[0]).abs().max() < 1e-4


def test_the_outlier_factor_of_few_and_padded_patches():
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 12, 3, generator=generator)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    found = outlier_factors(patches, mask, 30)  # more neighbours than there are
    for image, count in ((0, 12), (1, 7)):
        points = patches[image, :count].double().numpy()
        squared = ((points[:, None] - points[None]) ** 2).sum(-1)
        near = np.argsort(squared, 1)[:, 1:]
        reach = np.sort(squared, 1)[:, -1]
        expected = reach * (1 / reach)[near].mean(1)
        assert np.allclose(found[image, :count], expected, atol=1e-5)
    assert (found[1, 7:] == 0).all()
    odd = outliers(found, mask, 0.2)
    assert odd[0].sum() == 3 and odd[1].sum() == 2 and not odd[1, 7:].any()


def test_odd_patches_become_the_mean_of_their_normal_neighbours():
    patches = torch.arange(24.0).view(2, 12, 1)
    grids = torch.tensor([[3, 4], [2, 2]])
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 4:] = False
    odd = torch.zeros(2, 12, dtype=torch.bool)
    odd[0, [0, 1]] = True  # the corner and the patch beside it
    odd[1, :4] = True  # all of them: nothing to repair from
    found = repaired(patches, odd, mask, grids)
    assert found[0, 0] == pytest.approx((4 + 5) / 2) and found[0, 1] == pytest.approx((2 + 4 + 5 + 6) / 4)
    assert torch.equal(found[1], patches[1]) and torch.equal(found[0, 2:], patches[0, 2:])


def test_similarity_attention_leaves_padding_out_and_stays_finite():
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True] * 5 + [False] * 3, [True] * 8])
    similar = similarity(torch.randn(2, 8, 4, generator=generator), mask)
    attention = similarity_attention(similar, mask, 3.0)
    assert attention.isfinite().all() and torch.allclose(attention.sum(-1), torch.ones(2, 8))
    assert (attention[0, :5, 5:] == 0).all()
    own = similar[0, :5, :5]
    expected = ((own - own.mean()) * 3).masked_fill(own < own.mean(), -torch.inf).softmax(-1)
    assert torch.allclose(attention[0, :5, :5], expected, atol=1e-6)


@pytest.fixture(scope="module")
def tower():
    from pipeline.model import FGCLIP2, preset_config

    torch.manual_seed(0)
    return FGCLIP2Evaluation(FGCLIP2.from_scratch(preset_config("tiny", 64)).eval(), None, patch_budgets=[64])


@torch.no_grad()
def test_a_tower_without_class_token_is_calibrated_whatever_shares_its_batch(tower):
    images = [Image.effect_noise(size, 80).convert("RGB") for size in ((96, 160), (128, 128), (200, 64))]
    prepared = [tower.prepare(image) for image in images]
    assert len({one.extra[1] for one in prepared}) == 3  # three grids, two of them padded
    together = tower.encode_dense(prepared, Calibration())
    for number, one in enumerate(prepared):
        alone = tower.encode_dense([one], Calibration())
        count = one.extra[1][0] * one.extra[1][1]
        assert (together.dense[number, :count] - alone.dense[0, :count]).abs().max() < 1e-4
    plain = tower.encode_dense(prepared, None)
    off = tower.encode_dense(prepared, Calibration(off=frozenset(PARTS)))
    count = prepared[0].extra[1][0] * prepared[0].extra[1][1]
    assert torch.allclose(off.dense[0, :count], plain.dense[0, :count], atol=1e-5)
    assert not torch.allclose(together.dense[0, :count], plain.dense[0, :count], atol=1e-3)


def test_too_shallow_a_tower_is_refused(fixture):
    model, case, settings = fixture
    blocks = list(model.vision_model.encoder.layers)[:2]
    with pytest.raises(EvaluationError, match="has 2 blocks; SC-CLIP needs at least 3"):
        calibrated_patches(
            blocks,
            case["pixel_values"],
            lambda b, x: x,
            mask=torch.ones(1, 1),
            grids=torch.ones(1, 2),
            has_class_token=True,
            settings=settings,
        )
