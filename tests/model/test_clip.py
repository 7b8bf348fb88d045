"""FG-CLIP 1: CLIP's towers compute what transformers' CLIPModel computes, and a CLIP folder starts a model."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModel, CLIPConfig, CLIPModel, CLIPTokenizer, PreTrainedTokenizerFast

from pipeline.config import ModelSettings, SettingsError, Stage1Settings, Stage2Settings
from pipeline.data.facts import facts_of
from pipeline.data.tokenizer import load_tokenizer
from pipeline.doctor.first_losses import check_first_losses
from pipeline.evaluation.models.load import load_model
from pipeline.export.folder import export_model
from pipeline.model import FGCLIP1, FGCLIP2, clip_preset_config
from pipeline.model.families import family_of, load_trained, what_is_new_to_clip
from pipeline.model.regions import pool_regions
from pipeline.model.start import StartError
from pipeline.tracking.metric_names import grouped_name
from pipeline.training.starting import check_images, check_texts, make_model
from pipeline.tuning.parts import REGION_ONLY
from tests.model.material import picture, small_clip_batch, small_clip_config, small_clip_model, small_tokenizer

VOCABULARY, LENGTH, START, END = 100, 30, 98, 99
TOLERANCE = 1e-5


def clip_folder(folder, image_size=64, patch_size=16, end=END) -> CLIPModel:
    """A CLIP of transformers with random weights, as transformers itself writes it."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    ids = {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "bos_token_id": START, "eos_token_id": end}
    vision = sizes | {"hidden_size": 32, "image_size": image_size, "patch_size": patch_size}
    clip = CLIPModel(CLIPConfig(text_config=sizes | ids, vision_config=vision, projection_dim=16)).eval()
    with torch.no_grad():
        for parameter in clip.parameters():  # norms and biases too, so that none of them can be left out
            parameter.add_(0.1 * torch.randn_like(parameter))
    clip.save_pretrained(folder)
    return clip


def pixels_and_patches(image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images as CLIP's processor gives them, and as a batch of this project holds them."""
    generator, side = torch.Generator().manual_seed(0), image_size // 16
    images = torch.randint(0, 256, (2, image_size, image_size, 3), generator=generator, dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    patches = images.view(2, side, 16, side, 48).transpose(2, 3).reshape(2, side**2, 768)
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2), patches


def texts() -> torch.Tensor:
    """Texts of many lengths, padded with 0."""
    ids = torch.randint(2, START, (5, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = START
    for row, length in zip(ids, (4, LENGTH, 7, 12, 2), strict=True):
        row[length - 1], row[length:] = END, 0
    return ids


def unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize(("image_size", "patch_size", "end"), [(64, 16, END), (112, 14, END), (64, 32, 2)])
@torch.no_grad()
def test_images_patches_and_short_texts_equal_those_of_transformers_clip(tmp_path, image_size, patch_size, end):
    clip = clip_folder(tmp_path, image_size, patch_size, end)  # 2: an end id as folders of before 2023 write it
    model = FGCLIP1.start_from(tmp_path, vocab_size=VOCABULARY).eval()
    pixels, patches = pixels_and_patches(image_size)
    shapes = torch.full((2, 2), image_size // 16)
    hidden, image = model.encode_vision(patches, None, shapes)
    as_floats = model.encode_vision(patches / 127.5 - 1, None, shapes)[1]
    wanted = unit(clip.get_image_features(pixels).pooler_output)
    assert (image - wanted).abs().max() <= TOLERANCE and (as_floats - wanted).abs().max() <= TOLERANCE
    before_last = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert (hidden - clip.vision_model.post_layernorm(before_last)).abs().max() <= TOLERANCE
    # CLIP's own projection takes the place of the region projection that starts as its copy
    assert (model.dense_features(hidden, None) - clip.visual_projection(hidden)).abs().max() <= TOLERANCE
    ids = texts()
    short = unit(clip.get_text_features(ids, attention_mask=torch.ones_like(ids)).pooler_output)
    for kind in ("short", "region"):
        assert (model.encode_ids(ids, kind) - short).abs().max() <= TOLERANCE


@torch.no_grad()
def test_long_texts_have_the_stretched_table_and_what_follows_the_end_takes_no_part(tmp_path):
    clip_folder(tmp_path)
    model = FGCLIP1.start_from(tmp_path).eval()
    assert model.config.text_config.longtext_len == 4 * LENGTH - 3 * 20
    ids = texts()[[0, 2, 3, 4]]
    padded = torch.cat([ids, torch.randint(0, VOCABULARY, (4, 20))], dim=1)
    first = model.encode_ids(padded, "long")
    assert (first - model.encode_ids(ids, "long")).abs().max() <= TOLERANCE
    # positions 0 … 19 are those of short texts, and the head starts as their projection's copy
    assert (first - model.encode_ids(ids, "short")).abs().max() <= TOLERANCE
    whole = model.encode_ids(texts()[1:2], "long")
    assert (whole - model.encode_ids(texts()[1:2], "short")).abs().max() > 1e-3, "later positions are stretched"


@pytest.mark.parametrize(("image_size", "patch_size"), [(64, 16), (112, 14), (64, 32)])
@torch.no_grad()
def test_regions_lie_on_the_towers_grid_whatever_the_batchs_is(image_size, patch_size):
    model = small_clip_model(image_size=image_size, patch_size=patch_size)
    batch = small_clip_batch(5, 4, image_size=image_size)
    batch.boxes[4, 2] = batch.boxes[4, 0]  # without area
    from_facts = model(batch_of_facts(batch), regions=True)
    side = image_size // patch_size
    hidden = model.encode_vision(batch.pixel_values, None, batch.spatial_shapes)[0]
    grids = torch.full((3, 2), side)
    pooled, valid = pool_regions(hidden, grids, batch.boxes, batch.region_image)
    wanted = unit(model.roi_projection(pooled[:4]))
    for found in (from_facts, model(batch, regions=True)):
        assert found.region_valid.tolist() == valid.tolist() == [True] * 4 + [False]
        assert (found.region[:4] - wanted).abs().max() <= TOLERANCE and not found.region[4].any()


def batch_of_facts(batch):
    return replace(batch, facts=facts_of(batch))


def test_every_weight_of_both_stages_gets_a_gradient_and_stage_1_reaches_no_region_part():
    model = small_clip_model().train()
    model.checkpoint_activations()
    for regions in (False, True):
        model.zero_grad()
        found = model(batch_of_facts(small_clip_batch(4, 4)), regions=regions)
        total = sum((rows.sin() * torch.arange(rows.shape[1])).sum() for rows in (found.image, found.short, found.long))
        total = total + sum(scale.sin() for scale in found.scales)
        if regions:
            total = total + found.region.cos().sum() + found.region_text.cos().sum()
        total.backward()
        without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
        regional = {n for n, _ in model.named_parameters() if n.startswith(REGION_ONLY) and not n.startswith("logit")}
        unread = {"text_model.embeddings.token_embedding.weight"} & without
        assert without - unread == (set() if regions else regional)


def test_a_rank_without_regions_goes_backward_through_the_region_parts():
    model = small_clip_model().train()
    found = model(batch_of_facts(small_clip_batch(0, 0)), regions=True)
    assert found.region.shape[0] == found.region_text.shape[0] == 0
    found.region_anchor.backward()
    assert model.roi_projection.weight.grad is not None and model.boxtext_head.weight.grad is not None


def test_after_stage_1_the_region_projection_is_a_copy_of_the_trained_one():
    model = small_clip_model()
    with torch.no_grad():
        model.visual_projection.weight.add_(1)
        model.text_projection.weight.add_(1)
    model.copy_heads_for_stage2()
    assert torch.equal(model.roi_projection.weight, model.visual_projection.weight)
    assert torch.equal(model.boxtext_head.weight, model.text_projection.weight)
    assert not torch.equal(model.longtext_head.weight, model.text_projection.weight)


# --- texts ---


def clip_tokenizer_folder(folder):
    """CLIP's kind of tokenizer: bytes, and the same at the ends of words; two merges; start and end tokens."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n", encoding="utf-8")
    return folder, len(words)


@pytest.mark.parametrize("text", ["A Red cup", "一只红色的杯子", "a <|endoftext|> in a caption"])
def test_texts_become_the_ids_of_clips_own_tokenizer_in_both_languages(tmp_path, text):
    folder, size = clip_tokenizer_folder(tmp_path / "clip")
    theirs = CLIPTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder)
    assert (ours.vocab_size, ours.start_id, ours.end_id) == (size, size - 2, size - 1)
    length = 77
    wanted = theirs.encode(text, split_special_tokens=True)
    assert wanted[0] == size - 2 and wanted[-1] == size - 1
    assert ours([text], length)[0].tolist() == wanted + [0] * (length - len(wanted))
    assert ours([text], 5)[0].tolist() == [*wanted[:4], size - 1]
    ours.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").token_lists([text], length) == [wanted]


# --- folders ---


@torch.no_grad()
def test_an_export_is_a_folder_that_this_project_transformers_and_clip_load(tmp_path):
    folder, size = clip_tokenizer_folder(tmp_path / "clip")
    tokenizer = load_tokenizer(folder)
    ids = {"vocab_size": size, "eos_token_id": size - 1, "bos_token_id": size - 2}
    model = small_clip_model(**ids)
    out = export_model(model, tokenizer, tmp_path / "out", {})
    assert family_of(out) == "fgclip1" and "roi_projection.weight" in load_trained(out).state_dict()
    clip = CLIPModel.from_pretrained(out).eval()
    pixels, patches = pixels_and_patches(64)
    image = model.encode_vision(patches, None, torch.full((2, 2), 4))[1]
    assert (unit(clip.get_image_features(pixels).pooler_output) - image).abs().max() <= TOLERANCE
    evaluated = load_model(out)
    assert evaluated.kind == "fgclip1" and evaluated.image_size == 64
    features = evaluated.encode_images([evaluated.prepare(picture(90, 70))], dense=True)
    wanted = load_trained(out).encode_image(picture(90, 70)).embeds
    assert (features.embeds - wanted).abs().max() < 2e-2, "two bilinear kernels that round differently"
    captions = ["a red cup", "一只红色的杯子"]
    for kind in ("short", "long", "region"):
        assert torch.equal(
            evaluated.encode_texts(captions, kind), load_trained(out).encode_text(captions, kind=kind).embeds
        )
    with pytest.raises(ValueError, match="squares of 64 pixels"):
        load_trained(out).encode_image(picture(90, 70), max_num_patches=256)
    by_code = AutoModel.from_pretrained(out, trust_remote_code=True)
    assert torch.equal(by_code.encode_text(captions).embeds, load_trained(out).encode_text(captions).embeds)
    saved, own = PreTrainedTokenizerFast.from_pretrained(out), CLIPTokenizer.from_pretrained(folder)
    assert [saved.encode(text) for text in captions] == [own.encode(text) for text in captions]
    regions, valid = evaluated.pool_regions(features, torch.tensor([[0.1, 0.2, 0.9, 0.8]]), torch.tensor([0]))
    assert valid.all() and regions.norm(dim=1).sub(1).abs().max() < 1e-5


def test_a_start_says_what_is_new_and_a_wrong_folder_is_refused(tmp_path):
    clip_folder(tmp_path / "clip")
    assert "roi_projection is a copy of visual_projection" in what_is_new_to_clip(tmp_path / "clip")
    with pytest.raises(StartError, match="model.family=fgclip1"):
        FGCLIP2.start_from(tmp_path / "clip")
    with pytest.raises(StartError, match="100 .*use the checkpoint's own tokenizer"):
        FGCLIP1.start_from(tmp_path / "clip", vocab_size=99)
    small_clip_model().save_pretrained(tmp_path / "ours")
    assert "every weight is taken" in what_is_new_to_clip(tmp_path / "ours")
    with pytest.raises(StartError, match="a CLIP starts with model.family=fgclip1"):
        FGCLIP2.start_from(tmp_path / "ours")
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    for name, value, rule in (("image_size", 60, "multiple of"), ("patch_size", 12, "multiple of")):
        changed = {**config, "vision_config": {**config["vision_config"], name: value}}
        (tmp_path / "clip" / "config.json").write_text(json.dumps(changed))
        with pytest.raises(StartError, match=rule):
            FGCLIP1.start_from(tmp_path / "clip")
    (tmp_path / "clip" / "config.json").write_text(json.dumps({**config, "model_type": "siglip2"}))
    with pytest.raises(StartError, match="model.family=fgclip2"):
        FGCLIP1.start_from(tmp_path / "clip")


# --- settings ---

SQUARE = {"patch_budgets": [64], "keep_aspect_ratio": False}


def tiny_settings(kind=Stage1Settings, model=None, **groups):
    return kind.model_validate(
        {"model": {"family": "fgclip1", "preset": "tiny", **(model or {})}, "data": SQUARE} | groups
    )


@pytest.mark.parametrize(
    ("data", "wrong"),
    [({"patch_budgets": [48, 64]}, r"patch_budgets=\[64\]"), ({"keep_aspect_ratio": True}, "keep_aspect_ratio=false")],
)
def test_images_that_the_tower_does_not_take_are_refused_before_training(data, wrong):
    with pytest.raises(SettingsError, match=wrong):
        check_images(tiny_settings(data={**SQUARE, **data}), small_clip_config(image_size=128))


def test_a_tokenizer_of_the_other_kind_is_refused(tmp_path):
    tokenizer = load_tokenizer(clip_tokenizer_folder(tmp_path / "clip")[0])
    with pytest.raises(SettingsError, match="set model.family=fgclip1"):
        make_model(Stage1Settings(model=ModelSettings(preset="tiny")), tokenizer, None)
    with pytest.raises(SettingsError, match="give the tokenizer of its folder"):
        check_texts(tiny_settings(), tokenizer, small_clip_config())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model": {"family": "fgclip2", "region_projection": "random"}}, "model.family=fgclip1"),
        ({"model": {"family": "fgclip1", "gradient_checkpointing": "auto"}}, "true or false"),
        ({"model": {"family": "fgclip1"}, "train": {"micro_batch_size": "auto"}}, "give a number"),
        ({"model": {"family": "fgclip1"}, "global_loss": {"exchange": "ring"}}, "global_loss.kind=sigmoid"),
    ],
)
def test_what_does_not_work_with_this_family_is_refused(values, named):
    with pytest.raises(ValueError, match=named):
        Stage2Settings.model_validate(values)


@pytest.mark.parametrize("projection", ["copy", "random", "frozen"])
def test_the_region_projection_starts_and_trains_as_it_is_asked_to(tmp_path, projection):
    tokenizer = small_tokenizer(tmp_path / "tokenizer")
    first = make_model(tiny_settings(), tokenizer, None)
    export_model(first.eval(), tokenizer, tmp_path / "stage1", {})
    start = {"start_from": str(tmp_path / "stage1"), "region_projection": projection}
    settings = tiny_settings(Stage2Settings, start, tokenizer={"path": str(tmp_path / "tokenizer")})
    model = make_model(settings, tokenizer, None)
    assert torch.equal(model.roi_projection.weight, model.visual_projection.weight) == (projection != "random")
    assert model.roi_projection.weight.requires_grad == (projection != "frozen")
    assert model.boxtext_head.weight.requires_grad
    again = make_model(settings, tokenizer, None)
    assert torch.equal(again.roi_projection.weight, model.roi_projection.weight), "the seed alone decides"


@pytest.mark.parametrize(("kind", "scale", "bias"), [("auto", 1 / 0.07, 0.0), ("sigmoid", 10.0, -10.0)])
def test_the_global_scalars_start_as_the_loss_wants_them(tmp_path, kind, scale, bias):
    tokenizer = small_tokenizer(tmp_path / "tokenizer")
    model = make_model(tiny_settings(global_loss={"kind": kind}), tokenizer, None)
    found = [float(scalar.detach()) for scalar in model.scales()[:2]]
    assert found == [pytest.approx(scale, rel=1e-4), bias]


def test_the_first_losses_of_a_softmax_are_judged_as_such():
    scalars = {"scale/global_scale": 1 / 0.07, "scale/global_bias": 0.0, "count/global_short/pairs": 64.0}
    scalars |= {"cosine/global_short/mean": 0.9, "cosine/global_short/spread": 0.01}

    def found(loss: float) -> list:
        metrics = {grouped_name(name): value for name, value in (scalars | {"global_short": loss}).items()}
        return check_first_losses(tiny_settings(), metrics, 128)

    assert found(math.log(64)) == []
    assert "give about 4.1" in found(12.0)[0].seen


def test_presets_have_the_published_sizes():
    base, large = (clip_preset_config(name, 49_408, 49_407, 49_406) for name in ("base", "large"))
    assert (base.vision_config.grid_side, base.vision_config.loader_patches, base.text_config.longtext_len) == (
        14,
        196,
        248,
    )
    assert (large.vision_config.grid_side, large.vision_config.loader_patches) == (16, 196)
    with pytest.raises(ValueError, match="tiny, base, large"):
        clip_preset_config("so400m", 49_408, 49_407)
