"""The model computes what the public code computes: names, embeddings, dense features and regions of the fixture."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.model import FGCLIP2
from pipeline.model.regions import pool_regions
from tests.parity.fixture import Fixture, load_fixture, whole_batch

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return load_fixture()


@pytest.fixture(scope="module")
def model(fixture) -> FGCLIP2:
    return fixture.model()


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


def test_every_name_loads_strictly_and_saving_gives_the_same_names_back(fixture, model, tmp_path):
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as saved:
        shapes = {name: list(saved.get_slice(name).get_shape()) for name in saved.keys()}
        assert shapes == {name: list(weight.shape) for name, weight in fixture.weights.items()}
        for name, weight in fixture.weights.items():
            assert torch.equal(saved.get_tensor(name), weight), name


def test_a_saved_model_loads_again_in_both_ways(fixture, model, tmp_path):
    model.save_pretrained(tmp_path)
    for again in (FGCLIP2.from_pretrained(tmp_path), FGCLIP2.load(tmp_path)):
        assert again.config.text_config.longtext_len == fixture.meta["config"]["text_config"]["longtext_len"]
        for name, weight in again.state_dict().items():
            assert torch.equal(weight, fixture.weights[name]), name


@torch.no_grad()
def test_image_embeddings_and_patch_features(fixture, model):
    inputs, outputs = fixture.inputs, fixture.outputs
    real = inputs["pixel_attention_mask"].bool()
    patches, image = model.encode_vision(
        inputs["pixel_values"], inputs["pixel_attention_mask"], inputs["spatial_shapes"]
    )
    close(image, outputs["image_embeds"])
    close(patches[real], outputs["last_hidden_state"][real])
    close(model.dense_features(patches, inputs["pixel_attention_mask"])[real], outputs["dense_features"][real])


@torch.no_grad()
def test_text_embeddings_of_every_kind(fixture, model):
    inputs, outputs = fixture.inputs, fixture.outputs
    rows = fixture.rows("box")
    close(model.encode_ids(inputs["short_ids"], "short"), outputs["short_text_embeds"])
    close(model.encode_ids(inputs["long_ids"], "long"), outputs["long_text_embeds"])
    close(model.encode_ids(inputs["box_ids"][rows], "region"), outputs["box_text_embeds"][rows])
    close(model.encode_ids(inputs["hard_ids"].flatten(0, 1), "region"), outputs["hard_text_embeds"].flatten(0, 1))


@torch.no_grad()
def test_one_forward_of_a_step_gives_all_of_them(fixture, model):
    outputs = fixture.outputs
    box_rows, hard_rows = fixture.rows("box"), fixture.rows("hard")
    embeddings = model(whole_batch(fixture), regions=True)
    close(embeddings.image, outputs["image_embeds"])
    close(embeddings.short, outputs["short_text_embeds"])
    close(embeddings.long, outputs["long_text_embeds"])
    assert embeddings.region_valid.all()
    close(
        embeddings.region,
        torch.cat([outputs["region_embeds"][box_rows], outputs["hard_region_embeds"][hard_rows]]),
    )
    close(
        embeddings.region_text,
        torch.cat([outputs["box_text_embeds"][box_rows], outputs["hard_text_embeds"].flatten(0, 1)]),
    )


def roi_case(fixture):
    case = load_file(fixture.folder / "roi_align.safetensors")
    images, width, height, columns = case["feature_map"].shape
    assert images == 1
    dense = case["feature_map"].reshape(1, width, height * columns).transpose(1, 2).contiguous()
    return dense, torch.tensor([[height, columns]]), case["boxes"], case["pooled"]


def test_region_pooling_equals_the_compiled_kernel_and_masks_boxes_without_area(fixture):
    dense, grid, boxes, pooled = roi_case(fixture)
    ours, valid = pool_regions(dense, grid, boxes, torch.zeros(len(boxes), dtype=torch.int64))
    close(ours, pooled)
    assert torch.equal(valid, pooled.abs().amax(dim=1) > 0), "the kernel gives 0 for boxes without area or outside"
    assert (~valid).any(), "the fixture should hold a box without area"


def test_region_pooling_backward_is_finite_and_leaves_boxes_without_area_out(fixture, model):
    dense, grid, boxes, pooled = roi_case(fixture)
    numbers = torch.zeros(len(boxes), dtype=torch.int64)
    gradients = []
    keep = pooled.abs().amax(dim=1) > 0
    for rows in (torch.ones(len(boxes), dtype=torch.bool), keep):
        leaf = dense.clone().requires_grad_()
        embeds, valid = model.pool_regions(leaf, grid, boxes[rows], numbers[rows])
        assert embeds.isfinite().all()
        assert (embeds[~valid] == 0).all()
        (embeds * torch.linspace(-1, 2, embeds.shape[1])).sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0].isfinite().all()
    close(gradients[0], gradients[1])


def test_a_start_from_siglip2_stretches_the_positions_and_copies_the_heads(fixture, tmp_path):
    stretch = load_file(fixture.folder / "stretch.safetensors")
    own = (
        "longtext_head",
        "boxtext_head",
        "dense_feature_head",
        "logit_scale_",
        "text_model.embeddings.position_embed",
    )
    weights = {name: weight for name, weight in fixture.weights.items() if not name.startswith(own)}
    weights["text_model.embeddings.position_embedding.weight"] = stretch["in.position_embedding"]
    save_file(weights, tmp_path / "model.safetensors")
    config = {name: dict(fixture.meta["config"][name]) for name in ("text_config", "vision_config")}
    del config["text_config"]["longtext_len"]
    text = json.dumps({"model_type": "siglip2", **config})
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    started = FGCLIP2.start_from(tmp_path).state_dict()
    for name, expected in stretch.items():
        if name.startswith("out."):
            close(started[name.removeprefix("out.")], expected)
    for name in ("probe", "attention.in_proj_weight", "mlp.fc2.bias"):
        assert torch.equal(started[f"dense_feature_head.{name}"], weights[f"vision_model.head.{name}"])
    assert started["logit_scale_finegraind"].exp().item() == pytest.approx(100)
    assert torch.equal(started["logit_scale"], weights["logit_scale"])
