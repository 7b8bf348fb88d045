"""Recomputation is as little as fits, and compiled layers are offered only where something can compile them."""

from __future__ import annotations

import pytest
import torch

from pipeline.base.ranks import RankInfo
from pipeline.config import Stage1Settings, load_settings
from pipeline.data.slices import Division
from pipeline.estimate.memory import Sharding, Work, memory_at_peak
from pipeline.estimate.pieces import trace_pieces
from pipeline.estimate.recomputation import least_recomputation
from pipeline.model import preset_config
from pipeline.model.checkpointing import Recomputation
from pipeline.training import compilation
from pipeline.training.recomputation import describe, recomputation_of

CONFIG = preset_config("tiny", 512)


def test_auto_recomputes_nothing_where_all_fits_and_more_the_less_fits():
    pieces = trace_pieces(CONFIG, 256, "bf16", False, lambda name: True)
    work, sharding = Work(64, 256, 24, 60), Sharding(1, 1, 10**6, 10**6, 10**6, 10**6)
    peaks = [
        memory_at_peak(pieces, work, sharding, checkpointed=again, width=128, exchange="auto").total
        for again in (False, True)
    ]
    assert peaks[0] > peaks[1]

    def chosen(share: float) -> int:
        usable = peaks[1] + share * (peaks[0] - peaks[1])
        return least_recomputation(Stage1Settings(), pieces, work, sharding, 128, usable)

    assert [chosen(share) for share in (1.01, 0.8, 0.7, 0.55, 0.2, -0.5)] == [0, 4, 3, 2, 1, 1]


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ([], Recomputation()),
        (["model.gradient_checkpointing=true"], Recomputation(((0, 1),))),
        (
            [
                "model.gradient_checkpointing=true",
                "model.checkpoint_from_patches=576",
                "model.checkpoint_every_layers=2",
            ],
            Recomputation(((576, 2),)),
        ),
    ],
)
def test_the_settings_say_what_is_recomputed(overrides, wanted):
    settings = load_settings(Stage1Settings, None, overrides)
    assert recomputation_of(settings, CONFIG, RankInfo(), torch.device("cpu"), Division()) == wanted


def test_what_is_recomputed_is_told_in_a_line():
    told = describe(Recomputation(((128, 0), (576, 3), (1024, 1))), 12)
    assert "12 layers" in told
    assert "from 128 patches on nothing; from 576 patches on one layer in 3; from 1024 patches on every layer" in told
    assert describe(Recomputation(), 12).endswith("nothing")


def test_where_layers_cannot_be_compiled_the_reason_is_told(monkeypatch):
    assert "ZeRO 3" in compilation.why_not(torch.device("cpu"), 3)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    told = compilation.compile_layers(None, torch.device("cpu"), 2)
    assert told == "model.compile: no C++ compiler is here; the layers run uncompiled"
    monkeypatch.setattr(compilation, "has_triton", lambda: False)
    assert "Triton" in compilation.why_not(torch.device("cuda"), 1)
