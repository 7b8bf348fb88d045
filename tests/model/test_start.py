"""Weights come in from the three kinds of folders, and a folder that does not fit is refused by name and shape."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer
from tokenizers.models import Unigram
from tokenizers.normalizers import Lowercase, Replace, Sequence, Strip
from tokenizers.pre_tokenizers import Metaspace
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from pipeline.data.tokenizer import load_tokenizer
from pipeline.export.folder import export_model
from pipeline.model import FGCLIP2
from pipeline.model.start import StartError, what_is_new
from tests.model.material import VOCABULARY, WIDTH, small_batch, small_config, small_model


def save_weights(folder, weights, config=None):
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    (config or small_config()).save_pretrained(folder)


def siglip_folder(folder):
    """A SigLIP 2 as transformers itself writes it."""
    model = small_model(text_max_position_embeddings=24, text_longtext_len=84, text_keep_len=4)
    config = model.config.to_dict()
    text = {n: v for n, v in config["text_config"].items() if n not in ("model_type", "keep_len", "longtext_len")}
    vision = {n: v for n, v in config["vision_config"].items() if n != "model_type"}
    siglip = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
    with torch.no_grad():
        siglip.logit_scale.fill_(4.7)
        siglip.logit_bias.fill_(-16.0)
    siglip.save_pretrained(folder)
    return siglip.eval()


def test_a_siglip2_folder_gives_its_towers_stretched_tables_and_copied_heads(tmp_path):
    siglip = siglip_folder(tmp_path)
    model = FGCLIP2.start_from(tmp_path, vocab_size=VOCABULARY)
    weights, theirs = model.state_dict(), siglip.state_dict()
    for name, weight in theirs.items():
        assert torch.equal(weights[name], weight), name
    text = model.config.text_config
    assert (text.keep_len, text.longtext_len) == (20, 4 * 24 - 3 * 20)
    assert weights["text_model.embeddings.position_embedding_res.weight"].shape == (36, WIDTH)
    assert torch.equal(weights["boxtext_head.weight"], theirs["text_model.head.weight"])
    assert torch.equal(weights["longtext_head.bias"], theirs["text_model.head.bias"])
    assert torch.equal(weights["dense_feature_head.mlp.fc1.weight"], theirs["vision_model.head.mlp.fc1.weight"])
    assert model.scales().finegrained.item() == pytest.approx(100, rel=1e-5)
    assert model.scales().global_bias.item() == -16, "the checkpoint's own scalars stay"


@torch.no_grad()
def test_a_start_from_siglip2_gives_the_sources_embeddings_on_any_grid(tmp_path):
    siglip, batch = siglip_folder(tmp_path), small_batch(0, 0)
    model = FGCLIP2.start_from(tmp_path, vocab_size=VOCABULARY).eval()
    images = (batch.pixel_values, batch.pixel_attention_mask, batch.spatial_shapes)
    ids = torch.randint(0, VOCABULARY, (5, 24), generator=torch.Generator().manual_seed(0))
    named = dict(zip(("pixel_values", "pixel_attention_mask", "spatial_shapes"), images, strict=True))
    theirs = siglip(input_ids=ids, **named)
    normalised = [torch.nn.functional.normalize(rows, dim=1) for rows in (theirs.image_embeds, theirs.text_embeds)]
    assert (model.encode_vision(*images)[1] - normalised[0]).abs().max() < 1e-4
    assert (model.encode_ids(ids, "short") - normalised[1]).abs().max() < 1e-4


def test_a_started_model_trains(tmp_path):
    save_weights(tmp_path, small_model().state_dict())
    model = FGCLIP2.start_from(tmp_path).train()
    embeddings = model(small_batch(3, 3), regions=True)
    (embeddings.image.sin().sum() + embeddings.region.sin().sum() + embeddings.region_text.sin().sum()).backward()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.vision_model.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    assert len(set(pointers)) == len(pointers), "two parameters share their memory"


def test_an_earlier_run_and_its_final_folder_are_the_same_start(tmp_path):
    (tmp_path / "final").mkdir()
    weights = small_model(7).state_dict()
    save_weights(tmp_path / "final", weights)
    for folder in (tmp_path, tmp_path / "final"):
        started = FGCLIP2.start_from(folder).state_dict()
        assert all(torch.equal(started[name], weight) for name, weight in weights.items())
        assert not FGCLIP2.load(folder).training


def test_weights_in_several_files_in_bin_files_or_of_half_precision_are_read(tmp_path):
    model = small_model(5)
    cases = {name: tmp_path / name for name in ("sharded", "pickled", "half")}
    for folder in cases.values():
        folder.mkdir()
    model.save_pretrained(cases["sharded"], max_shard_size="20KB")
    assert len(list(cases["sharded"].glob("*.safetensors"))) > 1
    model.config.save_pretrained(cases["pickled"])
    torch.save(model.state_dict(), cases["pickled"] / "pytorch_model.bin")
    save_weights(cases["half"], {n: w.to(torch.bfloat16) for n, w in model.state_dict().items()})
    for name, folder in cases.items():
        started = FGCLIP2.start_from(folder).state_dict()
        for key, weight in model.state_dict().items():
            assert started[key].dtype == torch.float32
            expected = weight.to(torch.bfloat16).float() if name == "half" else weight
            assert torch.equal(started[key], expected), (name, key)


def test_scalars_of_either_shape_are_taken(tmp_path):
    weights = small_model().state_dict()
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    weights["logit_scale_hardneg"] = weights["logit_scale_hardneg"].reshape(1)
    save_weights(tmp_path, weights)
    assert FGCLIP2.start_from(tmp_path).logit_scale.shape == (1,)


def refused(folder, **arguments) -> str:
    with pytest.raises(StartError) as caught:
        FGCLIP2.start_from(folder, **arguments)
    return str(caught.value)


def test_another_tokenizer_is_refused_with_both_sizes(tmp_path):
    save_weights(tmp_path, small_model().state_dict())
    message = refused(tmp_path, vocab_size=999)
    assert "999" in message and f"token_embedding.weight [{VOCABULARY}, {WIDTH}]" in message


def test_another_width_is_refused_with_names_and_both_shapes(tmp_path):
    save_weights(tmp_path, small_model().state_dict(), small_config(text_hidden_size=32, text_num_attention_heads=2))
    message = refused(tmp_path)
    assert f"text_model.embeddings.token_embedding.weight is [{VOCABULARY}, {WIDTH}]" in message
    assert f"the model has [{VOCABULARY}, 32]" in message
    assert "more" in message


def test_a_preset_stands_in_for_a_missing_configuration(tmp_path):
    save_file(small_model().state_dict(), tmp_path / "model.safetensors")
    assert FGCLIP2.start_from(tmp_path, config=small_config()).config.text_config.hidden_size == WIDTH
    message = refused(tmp_path, config=small_config(vision_intermediate_size=41))
    assert "vision_model.encoder.layers.0.mlp.fc1.weight is [40, 24], the model has [41, 24]" in message


def test_missing_heads_are_refused_with_names_and_shapes(tmp_path):
    weights = {n: w for n, w in small_model().state_dict().items() if not n.startswith(("dense_", "boxtext"))}
    save_weights(tmp_path, weights)
    message = refused(tmp_path)
    assert f"boxtext_head.weight [{WIDTH}, {WIDTH}]" in message
    assert f"dense_feature_head.probe [1, 1, {WIDTH}]" in message
    assert "SigLIP 2" in message


def test_names_that_no_model_has_are_refused(tmp_path):
    save_weights(tmp_path, small_model().state_dict() | {"visual.proj": torch.zeros(3, 4)})
    assert "visual.proj [3, 4]" in refused(tmp_path)


def test_a_siglip2_of_too_few_positions_is_refused(tmp_path):
    config = small_config().to_dict()
    del config["text_config"]["keep_len"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "siglip2"}), encoding="utf-8")
    assert "keep_len is 20" in refused(tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "does not exist"),
        ({}, "holds no config.json"),
        ({"checkpoints/step-1/x": ""}, "python -m pipeline.export"),
        ({"config.json": '{"model_type": "clip"}'}, "model type 'clip' without"),
        ({"config.json": '{"model_type": "siglip", "text_config": {}, "vision_config": {}}'}, "no weights"),
        ({"config.json": '{"model_type": "blip", "text_config": {}, "vision_config": {}}'}, "NaFlex"),
        ({"config.json": "fgclip2"}, "no weights"),
        ({"config.json": "fgclip2", "model.safetensors.index.json": '{"weight_map": {"a": "b.safetensors"}}'}, "index"),
    ],
)
def test_folders_without_a_model_say_what_is_missing(tmp_path, files, words):
    folder = tmp_path / "given"
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(
            json.dumps(small_config().to_dict()) if text == "fgclip2" else text, encoding="utf-8"
        )
    if files == {}:
        folder.mkdir()
    assert words in refused(folder)


def fixed_resolution_folder(folder, side=4):
    """A SigLIP of one square resolution as transformers writes it, of which SigLIP 2 has checkpoints, too."""
    torch.manual_seed(3)
    tower = {"hidden_size": WIDTH, "intermediate_size": 40, "num_attention_heads": 2}
    text = tower | {"num_hidden_layers": 3, "vocab_size": VOCABULARY, "max_position_embeddings": 24}
    text |= {"projection_size": WIDTH, "pad_token_id": 0}
    vision = tower | {"num_hidden_layers": 2, "image_size": 16 * side, "patch_size": 16}
    siglip = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        for parameter in siglip.parameters():  # biases and norms too, so that none can be forgotten
            parameter.add_(0.05 * torch.randn_like(parameter))
        siglip.logit_scale.fill_(4.7)
        siglip.logit_bias.fill_(-16.0)
    siglip.save_pretrained(folder)
    return siglip


def first_siglips_tokenizer(folder):
    """A tokenizer of the first SigLIP's kind: it pads with its end token and reads no punctuation."""
    words = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁red", "▁cup", "一只", "红色的", "杯子"]
    words += [f"▁word{number}" for number in range(VOCABULARY - len(words))]
    backend = Tokenizer(Unigram([(word, -1.0 - number) for number, word in enumerate(words)], unk_id=2))
    backend.normalizer = Sequence([Lowercase(), Replace(Regex(r"[!-/:-@\[-`{-~]"), ""), Strip()])
    backend.pre_tokenizer = Metaspace()
    saved = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="</s>", eos_token="</s>", unk_token="<unk>")
    saved.save_pretrained(folder)
    return load_tokenizer(folder)


@torch.no_grad()
def test_the_first_siglip_starts_with_its_own_tokenizer_which_pads_with_the_end_token(tmp_path):
    siglip, tokenizer = fixed_resolution_folder(tmp_path), first_siglips_tokenizer(tmp_path)
    wanted = torch.tensor([[4, 5, 6] + [1] * 21, [3, 7, 8, 9] + [1] * 20])
    texts = ["A red, cup!", "一只红色的杯子"]
    assert torch.equal(tokenizer(texts, 24), wanted)
    model = FGCLIP2.load(tmp_path)
    assert torch.equal(model.text_ids(texts), wanted)
    theirs = torch.nn.functional.normalize(siglip.get_text_features(input_ids=wanted).pooler_output, dim=1)
    assert (model.encode_text(texts).embeds - theirs).abs().max() < 1e-4
    export_model(model, tokenizer, tmp_path / "export", {})
    processor = AutoProcessor.from_pretrained(tmp_path / "export")
    assert processor(text=texts, padding="max_length")["input_ids"] == wanted.tolist()
    assert torch.equal(load_tokenizer(tmp_path / "export")(texts, 24), wanted)
    padded_otherwise = wanted.masked_fill(torch.arange(24) > 4, 0)
    assert (model.encode_ids(padded_otherwise, "short") - theirs).abs().max() > 1e-3, "padding takes part"


@torch.no_grad()
def test_a_start_from_one_resolution_gives_the_sources_embeddings_at_that_resolution(tmp_path):
    siglip, side = fixed_resolution_folder(tmp_path), 4
    model = FGCLIP2.start_from(tmp_path, vocab_size=VOCABULARY).eval()
    pixels = torch.rand(3, 3, 16 * side, 16 * side) * 2 - 1
    patches = pixels.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).reshape(3, side * side, 16 * 16 * 3)
    grids = torch.tensor([[side, side]] * 3)
    image = model.encode_vision(patches, torch.ones(3, side * side, dtype=torch.int32), grids)[1]
    theirs = torch.nn.functional.normalize(siglip.get_image_features(pixel_values=pixels).pooler_output, dim=1)
    assert (image - theirs).abs().max() < 1e-4
    ids = torch.randint(3, VOCABULARY, (5, 24))
    ids[1:, 9:] = 0
    theirs = torch.nn.functional.normalize(siglip.get_text_features(input_ids=ids).pooler_output, dim=1)
    assert (model.encode_ids(ids, "short") - theirs).abs().max() < 1e-4
    assert model.scales().global_bias.item() == -16
    assert model.config.vision_config.num_patches == side * side


def test_what_a_start_takes_and_makes_is_told(tmp_path):
    fixed_resolution_folder(tmp_path)
    told = what_is_new(tmp_path)
    assert "positions of 4 x 4 patches" in told and "longtext_head is a copy of text_model.head" in told
    assert "36 tokens are stretched from 24" in told
    (tmp_path / "own").mkdir()
    save_weights(tmp_path / "own", small_model().state_dict())
    assert what_is_new(tmp_path / "own").endswith("every weight is taken as it is")


def test_a_folder_of_another_family_is_refused(tmp_path):
    text = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=text | {"image_size": 32, "patch_size": 16}))
    model.save_pretrained(tmp_path)
    message = refused(tmp_path)
    assert "'clip'" in message and "siglip2" in message
