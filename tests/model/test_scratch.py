"""A tower from random weights starts with neighbours that are alike and attention to what is alike."""

from __future__ import annotations

import torch

from pipeline.model import FGCLIP2, preset_config
from pipeline.model.scratch import POSITION_SIZE, VALUE_OUT_IDENTITY, sine_positions


def test_positions_are_alike_as_they_are_near():
    table = sine_positions(8, 128)
    assert table.shape == (64, 128) and table.abs().max() <= POSITION_SIZE
    likeness = (table @ table.T).view(8, 8, 8, 8)  # of row, column with row, column
    assert torch.equal(likeness.flatten(2).argmax(-1), torch.arange(64).view(8, 8)), "each is most like itself"
    near, next_one, far = likeness[2, 2, 2, 3], likeness[2, 2, 2, 4], likeness[2, 2, 7, 7]
    assert near > next_one > far
    torch.testing.assert_close(likeness[2, 2, 2, 3], likeness[2, 2, 3, 2], atol=1e-4, rtol=0)
    assert not sine_positions(4, 130)[:, 128:].any(), "a width that four does not divide"


def test_attention_starts_with_the_products_that_were_meant():
    torch.manual_seed(0)
    model = FGCLIP2.from_scratch(preset_config("tiny", 64))
    for layer in model.vision_model.encoder.layers:
        attention = layer.self_attn
        passed = attention.out_proj.weight @ attention.v_proj.weight
        assert abs(passed.diagonal().mean() + VALUE_OUT_IDENTITY) < 0.02
        assert passed.mean().abs() < 0.01
        for rows in attention.q_proj.weight.split(32):
            asked = rows.T @ rows
            assert asked.diagonal().mean() > 5 * (asked - asked.diagonal().diag()).mean().abs()
        assert torch.equal(attention.q_proj.weight, attention.k_proj.weight)


def test_the_start_depends_on_the_seed_alone():
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return FGCLIP2.from_scratch(preset_config("tiny", 64)).state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(first[name], other[name])
