"""What trains: by part, by depth, and nothing else."""

from __future__ import annotations

import pytest

from pipeline.config import (
    OptimizerSettings,
    SettingsError,
    Stage1Settings,
    Stage2Settings,
    TuneSettings,
    load_settings,
)
from pipeline.estimate.inputs import sharding_of
from pipeline.model import preset_config
from pipeline.training.optimizer import make_optimizer, parameter_groups
from pipeline.tuning.lora import add_lora
from pipeline.tuning.parts import choose_trained
from tests.model.material import small_model


def trained_names(with_regions: bool = True, **chosen) -> set[str]:
    model, tune = small_model(), TuneSettings(**chosen)
    add_lora(model, tune)
    choose_trained(model, tune, with_regions)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_stage_1_leaves_out_what_only_region_losses_reach():
    everything = {name for name, _ in small_model().named_parameters()}
    assert trained_names() == everything
    assert roots(everything - trained_names(with_regions=False)) == {
        "boxtext_head", "dense_feature_head", "logit_scale_finegraind", "logit_scale_hardneg"
    }  # fmt: skip


def test_a_frozen_tower_keeps_its_head_apart():
    names = trained_names(vision="frozen", text="frozen")
    assert {name for name in names if name.startswith("vision_model.")} == {
        name for name, _ in small_model().named_parameters() if name.startswith("vision_model.head.")
    }
    assert "text_model.head.weight" in names and "longtext_head.weight" in names and "logit_scale" in names
    only_scales = trained_names(vision="frozen", text="frozen", heads="frozen")
    assert all(name.startswith("logit_") for name in only_scales)


def test_last_n_trains_the_last_layers_and_the_final_norm():
    names = trained_names(text="last_n", last_n=2, vision="frozen", heads="frozen", scales="frozen")
    assert {name.split(".")[3] for name in names if ".layers." in name} == {"1", "2"}  # of three
    assert {n for n in names if ".layers." not in n} == {f"text_model.final_layer_norm.{k}" for k in ("weight", "bias")}


def test_lora_trains_its_additions_alone_and_the_optimizer_holds_no_more():
    model = small_model()
    tune = TuneSettings(vision="lora", text="lora", heads="frozen", scales="frozen", lora_layers=["q_proj", "fc1"])
    add_lora(model, tune)
    choose_trained(model, tune, True)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names and all(".lora_" in name and (".q_proj." in name or ".fc1." in name) for name in names)
    assert not any("head" in name for name in names)
    optimizer = make_optimizer(parameter_groups(model.named_parameters(), OptimizerSettings()), OptimizerSettings())
    assert {group["name"] for group in optimizer.param_groups} == {"adapters"}
    held = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    assert held == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_more_last_layers_than_there_are_is_an_error_with_both_numbers():
    with pytest.raises(SettingsError, match="tune.last_n is 9, but the vision tower has 2 layers"):
        trained_names(vision="last_n", last_n=9)


def test_a_choice_of_which_nothing_is_left_is_an_error():
    with pytest.raises(SettingsError, match="all frozen"):
        load_settings(Stage1Settings, None, [f"tune.{part}=frozen" for part in ("vision", "text", "heads", "scales")])


def test_layer_decay_gives_each_layer_its_share_of_the_rate():
    model, settings = small_model(), OptimizerSettings(layer_decay=0.5)
    groups = {group["name"]: group for group in parameter_groups(model.named_parameters(), settings)}
    # three text layers: the final norm and heads 1, the last layer 1/2, ... the embeddings 1/16
    assert groups["text_before_end_1"]["factor"] == 0.5 and groups["text_before_end_4"]["factor"] == 0.0625
    assert groups["vision_before_end_3"]["factor"] == 0.125 and "vision_before_end_4" not in groups
    assert groups["new_heads"]["factor"] == 1.0 and groups["scales_no_decay"]["factor"] == 1.0
    counted = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(counted) == sorted(id(parameter) for parameter in model.parameters())


def test_the_estimate_counts_what_trains_and_what_additions_add():
    config, plain = preset_config("tiny", 64), Stage2Settings()
    tune = TuneSettings(vision="lora", text="lora", heads="frozen", scales="frozen", lora_rank=4)
    whole = sharding_of(plain, config, 1, 2, on_cpu=True)
    small = sharding_of(plain.model_copy(update={"tune": tune}), config, 1, 2, on_cpu=True)
    layers, width, hidden = 3 + 4, 128, 256
    added = layers * (4 * (width + width) + 2 * (width + hidden)) * 4  # q, k, v, out; fc1, fc2; rank 4
    assert small.trained == added and small.total == whole.total + added and whole.trained == whole.total
