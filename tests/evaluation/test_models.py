"""Ours, public FG-CLIP 2 folders, SigLIP 2 and CLIP of transformers behind one interface; clear errors for the rest."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipeline.evaluation import EvaluationError, evaluate
from pipeline.evaluation.models.load import load_model, run_folder_of
from pipeline.evaluation.scclip import Calibration
from tests.evaluation.fake import noisy

WORDS = [f"word{n}" for n in range(40)] + "a red green blue circle square photo of the 红 色 的 圆".split()
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}


def save_tokenizer(folder, clip=False):
    special = ["<pad>", "<eos>", "<unk>"] if not clip else ["<pad>", "<start>", "<unk>"]
    vocabulary = {word: at for at, word in enumerate([*special, *WORDS, *(["<end>"] if clip else [])])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if clip:
        raw.post_processor = processors.TemplateProcessing(
            single="<start> $A <end>", special_tokens=[(name, vocabulary[name]) for name in ("<start>", "<end>")]
        )
    end = "<end>" if clip else "<eos>"
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token=end, model_max_length=16
    ).save_pretrained(folder)
    return vocabulary


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    vocabulary = save_tokenizer(folder, clip=True)
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": len(vocabulary), "max_position_embeddings": 16}
    text |= {"eos_token_id": len(vocabulary) - 1, "bos_token_id": 1, "pad_token_id": 0}
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    from transformers import Siglip2Config, Siglip2Model

    folder = tmp_path_factory.mktemp("siglip2")
    vocabulary = save_tokenizer(folder)
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": len(vocabulary), "max_position_embeddings": 24, "projection_size": 32}
    vision = {**SIZES, "num_patches": 16}
    Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fixed_siglip_folder(tmp_path_factory):
    from transformers import SiglipConfig, SiglipModel

    folder = tmp_path_factory.mktemp("siglip")
    vocabulary = save_tokenizer(folder)
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": len(vocabulary), "max_position_embeddings": 24, "projection_size": 32}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    vision = {**SIZES, "image_size": 64, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def our_run(tmp_path_factory):
    """A run's folder with its final checkpoint, as training leaves it."""
    from pipeline.model import FGCLIP2, FGCLIP2Config

    run = tmp_path_factory.mktemp("run")
    vocabulary = save_tokenizer(run / "final")
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": len(vocabulary), "projection_size": 32}
    text |= {"max_position_embeddings": 24, "keep_len": 20, "longtext_len": 36}
    config = FGCLIP2Config(text_config=text, vision_config={**SIZES, "num_patches": 16})
    FGCLIP2.from_scratch(config).save_pretrained(run / "final")
    settings = "data:\n  levels: [16, 64]\n  short_caption_prefix: {en: 'a photo of '}\n"
    (run / "settings.yaml").write_text(settings, encoding="utf-8")
    return run


def test_a_run_is_read_with_the_levels_and_prefix_it_was_trained_with(our_run):
    model = load_model(our_run)
    assert model.patch_budgets == (16, 64) and (model.short_prefix("en"), model.short_prefix("zh")) == (
        "a photo of ",
        "",
    )
    assert run_folder_of(our_run / "final").path == our_run
    assert load_model(our_run / "final").with_patch_budgets([32]).patch_budgets == (32,)
    image = noisy(1, (200, 120))
    prepared = model.prepare(image)
    features = model.encode_images([prepared], dense=True)
    patches, embeds = model.module.encode_vision(
        prepared.pixels[None], prepared.extra[0][None], torch.tensor([prepared.extra[1]])
    )
    assert torch.equal(features.embeds, embeds)
    assert model.settings()["text_lengths"] == {"short": 24, "region": 24, "long": 36}


def test_the_library_and_the_evaluation_see_the_same_image(our_run):
    """Two preparations, the trainer's and the library's, must not drift apart."""
    model = load_model(our_run)
    image = noisy(2, (90, 70))
    ours = model.encode_images([model.prepare(image)]).embeds
    assert (
        ours - model.module.encode_image(image, max_num_patches=model.prepare(image).group[0]).embeds
    ).abs().max() < 1e-2


def test_siglip2_folders_are_read_and_their_copied_heads_stated(siglip_folder, scenes):
    from transformers import Siglip2Model

    model = load_model(siglip_folder).with_patch_budgets([64])
    assert "copies of its own heads" in model.settings()["heads"]
    ids = model.tokenizer(["a red circle", "红 色"], 24)
    with torch.no_grad():
        own = Siglip2Model.from_pretrained(siglip_folder).eval().get_text_features(input_ids=ids).pooler_output
    assert torch.allclose(
        model.encode_texts(["a red circle", "红 色"], "short"), torch.nn.functional.normalize(own, dim=-1), atol=1e-5
    )
    assert set(evaluate(model, "scenes", scenes)["scores"]) >= {"hard", "boxes_top1", "t2i_r1"}


@torch.no_grad()
def test_siglip2_of_fixed_resolution_gives_transformers_own_embeddings_and_does_every_task(fixed_siglip_folder, scenes):
    from transformers import SiglipModel

    model = load_model(fixed_siglip_folder)
    own = SiglipModel.from_pretrained(fixed_siglip_folder).eval()
    prepared = model.prepare(noisy(3, (50, 40)))
    assert prepared.pixels.shape == (3, 64, 64) and prepared.pixels.abs().max() <= 1
    embeds = own.get_image_features(pixel_values=prepared.pixels[None]).pooler_output
    assert torch.allclose(
        model.encode_images([prepared]).embeds, torch.nn.functional.normalize(embeds, dim=-1), atol=1e-5
    )
    ids = model.tokenizer(["a red circle", "红 色"], padding="max_length", max_length=24, return_tensors="pt")[
        "input_ids"
    ]
    texts = torch.nn.functional.normalize(own.get_text_features(input_ids=ids).pooler_output, dim=-1)
    assert torch.allclose(model.encode_texts(["A Red circle", "红 色"], "region"), texts, atol=1e-5)
    dense = model.encode_dense([prepared], None).dense
    probe_free = own.vision_model.head
    states = own.vision_model(pixel_values=prepared.pixels[None]).last_hidden_state
    attended = probe_free.attention(states, states, states)[0]
    assert torch.allclose(dense, attended + probe_free.mlp(probe_free.layernorm(attended)), atol=1e-5)
    assert "copy of the pooling head" in model.region_path() and "24 tokens" in model.text_path("long")
    assert 0 <= evaluate(model, "scenes", scenes)["scores"]["hard"] <= 1
    calibrated = evaluate(model, "segmentation", scenes, calibrate=True)
    assert calibrated["settings"]["calibration"]["class_token_substitute"] == "patch"


@torch.no_grad()
def test_clip_folders_give_transformers_own_embeddings(clip_folder):
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = load_model(clip_folder)
    own = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    image = noisy(3, (50, 40))
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert (model.prepare(image).pixels - pixels[0]).abs().max() < 0.05
    embeds = torch.nn.functional.normalize(own.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    assert torch.allclose(model.encode_images([model.prepare(image)]).embeds, embeds, atol=1e-2)
    texts = ["a red circle", "the 红 色 的 圆", " ".join(WORDS)]
    ids = model.tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    own_texts = own.get_text_features(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).pooler_output
    assert torch.allclose(
        model.encode_texts(texts, "short"), torch.nn.functional.normalize(own_texts, dim=-1), atol=1e-5
    )


def test_clip_does_every_task_on_scenes_and_says_how(clip_folder, scenes, tmp_path):
    model = load_model(clip_folder)
    result = evaluate(model, "scenes", scenes)
    assert 0 <= result["scores"]["hard"] <= 1 and "squeezed" in result["settings"]["model"]["preparation"]
    assert "cut to 16 tokens" in model.text_path("long") and "no dense head" in model.region_path()
    plain = evaluate(model, "segmentation", scenes, window=32, short_side=40)
    calibrated = evaluate(model, "segmentation", scenes, window=32, short_side=40, calibrate=True)
    assert calibrated["settings"]["calibration"]["class_token_substitute"] is None
    with pytest.raises(EvaluationError, match="this tower has a class token"):
        evaluate(model, "segmentation", scenes, calibrate=True, class_token_substitute="mean")
    assert plain["scores"]["miou"] != calibrated["scores"]["miou"]
    maps = evaluate(model, "dense-maps", scenes, phrases=("a red circle",), out=tmp_path, max_images=1)
    assert len(maps["scores"]) == 1


@torch.no_grad()
def test_clip_takes_windows_of_other_sizes_plain_and_calibrated(clip_folder):
    model = load_model(clip_folder)
    window = model.prepare_window(noisy(0, (64, 48)))
    for calibration in (None, Calibration()):
        features = model.encode_dense([window], calibration)
        assert features.dense.shape == (1, 6 * 8, 24) and features.shapes.tolist() == [[6, 8]]
        assert features.dense.isfinite().all()


def test_our_models_are_calibrated_on_scenes_and_the_class_token_substitute_is_stated(our_run, scenes):
    model = load_model(our_run)
    shown = [
        evaluate(model, "segmentation", scenes, calibrate=True, switch_off=("late",), **further)["settings"]
        for further in ({}, {"class_token_weight": 0.0, "class_token_substitute": "mean"})
    ]
    for settings, weight, class_token_substitute in zip(shown, (0.3, 0.0), ("patch", "mean"), strict=True):
        assert settings["calibration"]["parts"] == ["outliers", "early", "attention", "levels"]
        assert settings["calibration"]["class_token_substitute"] == class_token_substitute
        assert settings["calibration"]["class_token_weight"] == weight


def test_the_class_token_substitute_and_its_weight_reach_the_features(our_run):
    model = load_model(our_run)
    prepared = [model.prepare(noisy(1, (64, 48)), dense=True)]

    def dense(**numbers):
        return model.encode_dense(prepared, Calibration(**numbers)).dense

    assert not torch.allclose(dense(), dense(class_token_weight=0.0), atol=1e-3)
    assert not torch.allclose(dense(), dense(class_token_substitute="mean"), atol=1e-3)
    assert torch.equal(dense(class_token_weight=0.0), dense(class_token_weight=0.0, class_token_substitute="mean"))


@pytest.mark.parametrize(
    "option", [{"switch_off": ("late",)}, {"class_token_weight": 0.1}, {"class_token_substitute": "mean"}]
)
def test_options_of_the_calibration_without_it_are_refused(our_run, scenes, option):
    with pytest.raises(EvaluationError, match="give --calibrate too"):
        evaluate(load_model(our_run), "segmentation", scenes, **option)


def test_folders_that_are_no_model_say_what_is_wrong(tmp_path, our_run):
    with pytest.raises(EvaluationError, match="holds no config.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(EvaluationError, match="type 'bert'; evaluation reads FG-CLIP 2"):
        load_model(tmp_path)


def test_a_checkpoint_without_dense_head_is_refused_by_name(our_run, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(our_run / "final", tmp_path / "cut")
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("dense_feature_head")}
    save_file(kept, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="dense_feature_head"):
        load_model(tmp_path / "cut")


def test_unknown_text_kinds_are_refused(our_run, clip_folder):
    for folder in (our_run, clip_folder):
        with pytest.raises(EvaluationError, match="'medium'; it must be one of short, long, region"):
            load_model(folder).encode_texts(["a"], "medium")


def test_fingerprints_tell_weights_and_settings_apart(our_run):
    one, same, other = load_model(our_run), load_model(our_run), load_model(our_run).with_patch_budgets([16])
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    with torch.no_grad():
        same.module.boxtext_head.weight[0, 0] += 1e-3
    assert one.fingerprint() != same.fingerprint()


def test_images_of_one_size_share_a_batch_whatever_their_content(our_run):
    model = load_model(our_run)
    groups = {
        model.prepare(Image.fromarray(np.zeros((h, w, 3), np.uint8))).group for h, w in ((64, 64), (60, 60), (200, 200))
    }
    assert groups == {(16,), (64,)}
