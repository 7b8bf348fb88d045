"""One forward a step: every parameter takes part on every rank, the shortcuts are exact, the numbers are float32."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Siglip2Config, Siglip2Model, Siglip2TextConfig, Siglip2TextModel

from pipeline.model import FGCLIP2, PRESETS, FGCLIP2Config, preset_config
from pipeline.model.start import stretch_table
from tests.model.material import LONG, SHORT, WIDTH, small_batch, small_config, small_model


def total(embeddings):
    """A scalar through everything that a loss may read."""
    parts = [embeddings.image, embeddings.short, embeddings.long, embeddings.region, embeddings.region_text]
    value = sum((part.sin() * torch.arange(part.shape[-1])).sum() for part in parts if part is not None)
    scales = embeddings.scales
    return value + scales.global_scale + scales.global_bias + scales.finegrained + scales.hardneg


@pytest.mark.parametrize(("num_regions", "num_texts"), [(5, 7), (1, 1), (0, 4), (4, 0), (0, 0)])
def test_every_parameter_has_a_finite_gradient_whatever_the_rank_holds(num_regions, num_texts):
    model = small_model().train()
    embeddings = model(small_batch(num_regions, num_texts), regions=True)
    assert embeddings.region.shape == (num_regions, model.config.vision_config.hidden_size)
    assert embeddings.region_valid.shape == (num_regions,)
    assert embeddings.region_text.shape[0] == num_texts
    assert embeddings.region_anchor.item() == 0
    (total(embeddings) + embeddings.region_anchor).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is not in the graph"
        assert parameter.grad.isfinite().all(), name
    if num_regions == 0:
        assert model.dense_feature_head.mlp.fc1.weight.grad.abs().max() == 0
    if num_texts == 0:
        assert model.boxtext_head.weight.grad.abs().max() == 0


def test_a_rank_without_regions_calls_the_same_modules_in_the_same_order():
    model = small_model()
    for parameter in model.parameters():
        parameter.ds_id = 0  # as ZeRO 3 marks them; elsewhere q, k and v are one product of three modules' weights
    calls: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    orders = []
    for regions, texts in ((6, 3), (0, 0)):
        calls.clear()
        model(small_batch(regions, texts), regions=True)
        orders.append(list(calls))
    assert orders[0] == orders[1]
    parameters = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert parameters <= set(orders[0]), "a parameter's own module is never called"


def test_without_regions_there_is_none_and_the_rest_is_equal():
    model = small_model()
    batch = small_batch(4, 4)
    plain, full = model(batch), model(batch, regions=True)
    assert plain.region is None and plain.region_text is None and plain.region_valid.shape == (0,)
    for name in ("image", "short", "long"):
        torch.testing.assert_close(getattr(plain, name), getattr(full, name), atol=1e-6, rtol=0)


def test_the_dense_head_runs_only_on_images_that_have_a_box():
    model = small_model()
    seen = []
    model.dense_feature_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    model(small_batch(6, 2), regions=True)
    model(small_batch(0, 0), regions=True)
    assert seen == [2, 1]


def test_towers_equal_those_of_transformers():
    model = small_model()
    values = model.config.to_dict()
    theirs = Siglip2Model(
        Siglip2Config(
            text_config={k: v for k, v in values["text_config"].items() if k != "model_type"},
            vision_config={k: v for k, v in values["vision_config"].items() if k != "model_type"},
        )
    ).eval()
    outcome = theirs.load_state_dict(model.state_dict(), strict=False)
    assert not outcome.missing_keys
    batch = small_batch(0, 0)
    with torch.no_grad():
        text = theirs.get_text_features(input_ids=batch.short_ids).pooler_output
        image = theirs.get_image_features(
            pixel_values=batch.pixel_values,
            pixel_attention_mask=batch.pixel_attention_mask,
            spatial_shapes=batch.spatial_shapes,
        ).pooler_output
        ours = model(batch)
    torch.testing.assert_close(ours.short, text / text.norm(dim=-1, keepdim=True), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.image, image / image.norm(dim=-1, keepdim=True), atol=1e-6, rtol=0)


@torch.no_grad()
def test_long_texts_equal_a_tower_whose_table_is_the_two_long_ones():
    model = small_model()
    tables = model.text_model.embeddings
    tables.position_embedding_ori.weight.normal_()
    tables.position_embedding_res.weight.normal_()
    model.longtext_head.weight.normal_()
    config = {k: v for k, v in model.config.text_config.to_dict().items() if k != "model_type"}
    theirs = Siglip2TextModel(Siglip2TextConfig(**config | {"max_position_embeddings": LONG})).eval()
    weights = model.text_model.state_dict()
    first = weights.pop("embeddings.position_embedding_ori.weight")[:4]
    rest = weights.pop("embeddings.position_embedding_res.weight")[4:]
    weights["embeddings.position_embedding.weight"] = torch.cat([first, rest])
    weights |= {f"head.{name}": weight for name, weight in model.longtext_head.state_dict().items()}
    theirs.load_state_dict(weights)
    ids = small_batch(0, 0).long_ids
    expected = theirs(input_ids=ids).pooler_output
    found = model.encode_ids(ids, "long")
    torch.testing.assert_close(found, expected / expected.norm(dim=-1, keepdim=True), atol=1e-6, rtol=0)


@torch.no_grad()
def test_dense_features_equal_torch_attention_over_the_real_patches():
    model, batch = small_model(), small_batch(0, 0)
    head = model.dense_feature_head
    attention = torch.nn.MultiheadAttention(WIDTH, head.attention.num_heads, batch_first=True)
    attention.load_state_dict(head.attention.state_dict())
    patches, _ = model.encode_vision(batch.pixel_values, batch.pixel_attention_mask, batch.spatial_shapes)
    dense = model.dense_features(patches, batch.pixel_attention_mask)
    for number, (height, width) in enumerate(batch.spatial_shapes.tolist()):
        real = patches[number : number + 1, : height * width]
        attended = attention(real, real, real, need_weights=False)[0]
        expected = attended + head.mlp(head.layernorm(attended))
        torch.testing.assert_close(dense[number, : height * width], expected[0], atol=1e-5, rtol=0)


def test_padding_takes_no_part_in_images_but_does_in_texts():
    model = small_model()
    batch = small_batch(0, 0)
    noisy = batch.pixel_values.clone()
    noisy[batch.pixel_attention_mask == 0] = 99.0
    with torch.no_grad():
        image = model.encode_vision(batch.pixel_values, batch.pixel_attention_mask, batch.spatial_shapes)[1]
        again = model.encode_vision(noisy, batch.pixel_attention_mask, batch.spatial_shapes)[1]
        torch.testing.assert_close(image, again, atol=1e-6, rtol=0)
        ids = batch.short_ids.clone()
        ids[:, SHORT // 2 :] = 0
        shorter = model.encode_ids(ids[:, : SHORT // 2], "short")
        assert (model.encode_ids(ids, "short") - shorter).abs().max() > 1e-3


def test_checkpointed_activations_change_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = small_model().train()
        if checkpointing:
            model.checkpoint_activations()
        embeddings = model(small_batch(5, 4), regions=True)
        total(embeddings).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_in_bfloat16_every_output_is_float32_of_unit_norm(how):
    model = small_model()
    if how == "weights":
        model = model.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        embeddings = model(small_batch(5, 4), regions=True)
    for name in ("image", "short", "long", "region", "region_text"):
        embeds = getattr(embeddings, name)
        assert embeds.dtype == torch.float32, name
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(embeds)), atol=1e-3, rtol=0)
    for name in ("global_scale", "global_bias", "finegrained", "hardneg"):
        assert getattr(embeddings.scales, name).dtype == torch.float32
        assert getattr(embeddings.scales, name).shape == ()


def test_from_scratch_the_scalars_tables_and_heads_start_as_the_method_says():
    model = small_model()
    scales = model.scales()
    assert scales.global_scale.item() == pytest.approx(10, rel=1e-5)
    assert scales.global_bias.item() == -10
    assert scales.finegrained.item() == pytest.approx(100, rel=1e-5)
    assert model.logit_scale_hardneg.item() == pytest.approx(math.log(100), rel=1e-6)
    weights = model.state_dict()
    tables = "text_model.embeddings.position_embedding"
    assert torch.equal(weights[f"{tables}_ori.weight"], weights[f"{tables}_res.weight"])
    assert torch.equal(weights[f"{tables}_ori.weight"][:4], weights[f"{tables}.weight"][:4])
    assert torch.equal(weights["longtext_head.weight"], weights["text_model.head.weight"])
    assert torch.equal(weights["boxtext_head.weight"], weights["text_model.head.weight"])
    for name, weight in model.dense_feature_head.state_dict().items():
        assert torch.equal(weight, weights[f"vision_model.head.{name}"])


def test_heads_for_regions_become_copies_of_the_trained_ones():
    model = small_model()
    with torch.no_grad():
        for parameter in [*model.text_model.head.parameters(), *model.vision_model.head.parameters()]:
            parameter.add_(0.5)
    before = model.longtext_head.weight.clone()
    model.copy_heads_for_stage2()
    assert torch.equal(model.boxtext_head.weight, model.text_model.head.weight)
    assert torch.equal(model.dense_feature_head.probe, model.vision_model.head.probe)
    assert torch.equal(model.longtext_head.weight, before), "stage 1 trains the long head itself"


def test_the_stretch_keeps_mixes_and_goes_on():
    table = torch.tensor([[0.0], [1.0], [5.0], [9.0]])
    stretched = stretch_table(table, keep_len=2)
    assert stretched.flatten().tolist() == [0, 1, 5, 6, 7, 8, 9, 10, 11, 12]


def test_two_models_of_one_seed_are_equal():
    first, second, other = small_model(3).state_dict(), small_model(3).state_dict(), small_model(4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["longtext_head.weight"], other["longtext_head.weight"])


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_make_models_of_the_published_sizes(name):
    config = preset_config(name, vocab_size=4096 if name == "tiny" else 256_000)
    with torch.device("meta"):
        model = FGCLIP2(config)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    low, high = {"tiny": (1, 3), "base": (370, 400), "large": (870, 910), "so400m": (1120, 1180)}[name]
    assert low < millions < high
    text = config.text_config
    assert text.longtext_len == 4 * text.max_position_embeddings - 3 * text.keep_len


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_projection_size": 16}, ["projection_size is 16", "hidden_size is 24"]),
        ({"text_keep_len": 12}, ["keep_len is 12"]),
        ({"vision_num_patches": 15}, ["num_patches is 15", "square"]),
        ({"vision_num_attention_heads": 5}, ["hidden_size 24", "num_attention_heads 5"]),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused_with_its_numbers(changes, words):
    with pytest.raises(ValueError) as caught:
        small_config(**changes)
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="'huge'; it must be one of tiny, base, large, so400m"):
        preset_config("huge", 1000)


def test_the_configuration_survives_its_file(tmp_path):
    small_config().save_pretrained(tmp_path)
    again = FGCLIP2Config.from_pretrained(tmp_path)
    assert again.text_config.keep_len == 4
    assert again.text_config.longtext_len == LONG
    assert again.vision_config.num_patches == 16


def test_inputs_that_do_not_fit_are_refused_with_their_numbers():
    model = small_model()
    with pytest.raises(ValueError, match=f"short text has {SHORT + 1} ids; only {SHORT}"):
        model.encode_ids(torch.zeros(1, SHORT + 1, dtype=torch.int64), "short")
    with pytest.raises(ValueError, match="kind is 'medium'"):
        model.encode_ids(torch.zeros(1, SHORT, dtype=torch.int64), "medium")
    batch = small_batch(0, 0)
    with pytest.raises(ValueError, match=r"\(5, 5\).*20 patches"):
        model.encode_vision(batch.pixel_values, batch.pixel_attention_mask, torch.tensor([[4, 5], [5, 5], [3, 3]]))
