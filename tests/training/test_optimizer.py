"""Which parameters train, at which rate, with which decay."""

from __future__ import annotations

import pytest

from pipeline.config import OptimizerSettings
from pipeline.model import FGCLIP2, preset_config
from pipeline.training.optimizer import learning_rate, make_optimizer, parameter_groups
from pipeline.training.optimizer import set_learning_rates as set_rates


@pytest.fixture(scope="module")
def model() -> FGCLIP2:
    return FGCLIP2(preset_config("tiny", 64))


def test_warm_up_is_linear_and_the_cosine_ends_at_the_final_share():
    settings = OptimizerSettings(peak_learning_rate=2.0, warmup_steps=4, final_learning_rate_share=0.1)
    rates = [learning_rate(step, 104, settings) for step in range(105)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[54] == pytest.approx((2.0 + 0.2) / 2)
    assert rates[104] == pytest.approx(0.2)
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))


def test_every_parameter_is_in_one_group_and_only_matrices_decay(model: FGCLIP2):
    groups = parameter_groups(model.named_parameters(), OptimizerSettings(weight_decay=0.3))
    counted = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(counted) == sorted(id(parameter) for parameter in model.parameters())
    for group in groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0.3) == (parameter.ndim >= 2 and group["name"] != "scales")
    names = {group["name"] for group in groups}
    assert {"text", "vision", "new_heads", "scales_no_decay", "text_no_decay", "vision_no_decay"} <= names


def test_factors_move_their_group_alone(model: FGCLIP2):
    settings = OptimizerSettings.model_validate({"group_factors": {"scales": 10.0, "vision": 0.0}})
    optimizer = make_optimizer(parameter_groups(model.named_parameters(), settings), settings)
    rates = set_rates(optimizer, 0.5)
    assert rates["scales_no_decay"] == 5.0 and rates["vision"] == 0.0 and rates["text"] == 0.5
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == rates
