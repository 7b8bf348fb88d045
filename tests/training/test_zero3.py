"""ZeRO 3 with recomputed layers, and with parameters that do not train, in runs of two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.tuning.parts import REGION_ONLY
from tests.end_to_end.runs import Material, checkpoint_tensors, curves
from tests.ranks import run_ranks
from tests.training.small_runs import case, run_cases

STEPS = 4
NAMES = {1: ("loss", "global_short", "global_long"), 2: ("loss", "global_short", "fgv", "fgt", "cmr", "tic")}


@pytest.fixture(scope="module")
def runs(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``plain-N`` and ``zero3-N`` of both stages; N=1 has frozen parts: the region heads and scales."""
    folder = tmp_path_factory.mktemp("zero3")
    kinds = {
        "plain": ("train.deepspeed_config=launch/zero1.json",),
        "zero3": ("train.deepspeed_config=launch/zero3.json", "model.gradient_checkpointing=true"),
    }
    cases = [
        case(material, folder / f"{kind}-{stage}", f"train.max_steps={STEPS}", *chosen, stage=stage)
        for stage in (1, 2)
        for kind, chosen in kinds.items()
    ]
    assert run_ranks(2, run_cases, cases, timeout_seconds=240) == [[0] * len(cases)] * 2
    return folder


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_3_with_recomputed_layers_gives_the_losses_of_zero_1_without(runs: Path, stage: int):
    plain, zero3 = (curves(runs / f"{kind}-{stage}", *NAMES[stage]) for kind in ("plain", "zero3"))
    for name in NAMES[stage]:
        assert sorted(zero3[name]) == list(range(1, STEPS + 1))
        assert zero3[name] == pytest.approx(plain[name], rel=1e-5, abs=1e-5), name


def test_frozen_parts_stay_as_they_began_and_have_no_moments(runs: Path):
    """Stage 1 does not train what only the region losses reach; under ZeRO 3 it is divided like the rest."""
    plain, zero3 = (checkpoint_tensors(runs / f"{kind}-1", STEPS) for kind in ("plain", "zero3"))
    frozen = [name for name in zero3 if name.startswith("weight/") and name[7:].startswith(REGION_ONLY)]
    assert len(frozen) > 4
    for name in frozen:  # the seed is the same, and neither run has moved them
        assert torch.equal(zero3[name].reshape(-1), plain[name].reshape(-1)), name
        assert name.replace("weight/", "exp_avg/") not in zero3
    trained = "weight/vision_model.head.mlp.fc1.weight"
    assert trained in zero3 and "exp_avg/" + trained[7:] in zero3
    assert zero3["exp_avg/" + trained[7:]].abs().max() > 0
