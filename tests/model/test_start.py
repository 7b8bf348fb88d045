"""Weights come in from the three kinds of folders, and a folder that does not fit is refused by name and shape."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import Siglip2Config, Siglip2Model

from pipeline.model import FGCLIP2
from pipeline.model.start import StartError
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
        ({"config.json": '{"model_type": "siglip", "text_config": {}, "vision_config": {}}'}, "NaFlex"),
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
