"""A slow rank is named within two log intervals, by what it does by itself; and what the devices do is counted."""

from __future__ import annotations

import pytest

from pipeline.estimate.flops import count_flops
from pipeline.estimate.memory import Work
from pipeline.estimate.pieces import trace_pieces
from pipeline.estimate.use import step_flops
from pipeline.model import preset_config
from pipeline.training.stragglers import Stragglers


def ranks(*forward: float) -> list[tuple[str, dict[str, float]]]:
    """All steps take as long as the slowest rank's: the others wait in the losses."""
    return [
        (f"节点-{rank}", {"data": 0.1, "forward": own, "losses": max(forward) - own, "backward": 2.0})
        for rank, own in enumerate(forward)
    ]


@pytest.mark.parametrize("times", [(1.0, 1.3), (1.0, 1.02, 0.98, 1.3), (1.3, 1.0, 1.0)])
def test_a_rank_slowed_by_30_percent_is_named_within_two_logs(times: tuple[float, ...]):
    stragglers, slow = Stragglers(), times.index(max(times))
    metrics, lines = stragglers.compare(ranks(*times))
    assert metrics["ranks/slowest"] == slow and lines == []
    metrics, (line,) = stragglers.compare(ranks(*times))
    assert f"rank {slow} (host 节点-{slow}) is slow" in line and "forward 1.30 s" in line
    assert metrics["ranks/lag_seconds"] == pytest.approx(0.3, abs=0.02)


def test_noise_names_nobody_and_a_slow_interval_alone_neither():
    stragglers = Stragglers()
    for times in ((1.0, 1.08, 0.95), (1.04, 1.0, 1.1), (1.0, 1.0, 1.5), (1.0, 1.0, 1.02), (1.5, 1.0, 1.0)):
        assert stragglers.compare(ranks(*times))[1] == []


def test_one_rank_is_not_slow():
    assert Stragglers().compare(ranks(1.0))[1] == Stragglers().compare(ranks(5.0))[1] == []


def test_the_closed_form_of_the_products_is_that_of_the_traced_model():
    config = preset_config("tiny", 400)
    work = Work(8, 64, config.text_config.max_position_embeddings, config.text_config.longtext_len)
    pieces = trace_pieces(config, 64, "fp32", False, lambda name: True)
    traced = count_flops(pieces, work, checkpointed=False, ranks=1, width=config.vision_config.hidden_size)
    closed = step_flops(config, 8, 64, 8, 8)
    assert closed == pytest.approx(traced.model - traced.losses, rel=0.02)
