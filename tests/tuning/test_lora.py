"""Low-rank additions: nothing at the start, merged exactly, and as peft itself reads them."""

from __future__ import annotations

import pytest
import torch
from peft import LoraModel

from pipeline.config import SettingsError, TuneSettings
from pipeline.export.folder import model_with_weights, probe
from pipeline.model import FGCLIP2
from pipeline.tuning.lora import add_lora, lora_config, merged_weights
from tests.model.material import small_batch, small_config, small_model

BOTH = TuneSettings(vision="lora", text="lora", lora_rank=3, lora_alpha=5.0)


def moved(model: FGCLIP2, seed: int = 1) -> FGCLIP2:
    """As after training: additions that add something."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


def test_the_first_step_begins_from_the_model_as_it_is():
    plain, with_additions = small_model(), small_model()
    add_lora(with_additions, BOTH)
    for name, embeddings in probe(plain).items():
        torch.testing.assert_close(probe(with_additions)[name], embeddings, atol=1e-6, rtol=0)


def test_merged_equals_unmerged():
    model = small_model()
    before = {name: weight.clone() for name, weight in probe(model).items()}
    add_lora(model, BOTH)
    moved(model)
    merged = model_with_weights(small_config(), merged_weights(model.state_dict(), BOTH))
    for name, embeddings in probe(model).items():
        assert (embeddings - before[name]).abs().max() > 1e-2, name
        assert (probe(merged)[name] - embeddings).abs().max() < 1e-5, name
    ours, theirs = model(small_batch(5, 4), regions=True), merged(small_batch(5, 4), regions=True)
    torch.testing.assert_close(theirs.region, ours.region, atol=1e-5, rtol=0)


def test_the_merge_is_that_of_peft():
    model = small_model()
    tuner = LoraModel(model, lora_config(model, BOTH), "default")
    moved(model)
    ours = merged_weights({name: weight.clone() for name, weight in model.state_dict().items()}, BOTH)
    theirs = tuner.merge_and_unload().state_dict()
    assert sorted(ours) == sorted(theirs)
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=1e-5)


def test_weights_without_additions_stay_as_they_are():
    weights = small_model().state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in merged_weights(weights, BOTH).items())


@pytest.mark.parametrize("target", ["qproj", "门控", "position_embedding", "head"])
def test_a_target_that_matches_nothing_is_an_error_that_names_what_there_is(target: str):
    with pytest.raises(SettingsError) as error:
        add_lora(small_model(), TuneSettings(text="lora", lora_layers=["q_proj", target]))
    message = str(error.value)
    assert target in message and "fc1, fc2, k_proj, out_proj, q_proj, v_proj" in message


def test_one_layer_can_be_named():
    model = small_model()
    add_lora(model, TuneSettings(text="lora", lora_layers=["layers.1.mlp.fc1"]))
    added = {name for name, _ in model.named_parameters() if ".lora_A." in name}
    assert added == {"text_model.encoder.layers.1.mlp.fc1.lora_A.default.weight"}
