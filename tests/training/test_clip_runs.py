"""FG-CLIP 1 through both stages by the same code: ranks, ZeRO stages and micro-batches agree; a stopped run goes on."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.model import FGCLIP1
from tests.end_to_end.runs import Material, checkpoint_tensors, curves
from tests.ranks import run_ranks
from tests.training.small_runs import case, run_cases

STEPS = 3
CLIP = ("model.family=fgclip1", "data.patch_budgets=[64]", "data.keep_aspect_ratio=false", f"train.max_steps={STEPS}")
NAMES = ("loss", "global_short", "global_long", "fgv", "fgt", "cmr", "tic", "cmr/margin")


def stages(material: Material, folder: Path, start: Path, *further: str) -> list:
    """Stage 1, and stage 2 from the stage 1 in ``start``."""
    first = case(material, folder / "stage1", *CLIP, *further, stage=1)
    second = case(material, folder / "stage2", *CLIP, *further, f"model.start_from={start / 'stage1'}", stage=2)
    return [first, second]


@pytest.fixture(scope="module")
def alone(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages on one rank."""
    folder = tmp_path_factory.mktemp("alone")
    assert run_ranks(1, run_cases, stages(material, folder, folder), timeout_seconds=240) == [[0, 0]]
    return folder


def test_stage_2_trains_the_region_projection_that_stage_1_left_as_a_copy(alone: Path):
    first, second = (FGCLIP1.load(alone / stage) for stage in ("stage1", "stage2"))
    assert torch.equal(first.roi_projection.weight, first.visual_projection.weight)
    assert not torch.equal(second.roi_projection.weight, second.visual_projection.weight)
    assert all(curves(alone / "stage2", *NAMES).values())


@pytest.mark.long
def test_two_ranks_in_micro_batches_under_zero_3_give_the_losses_of_one(
    material: Material, alone: Path, tmp_path: Path
):
    cut = ("train.deepspeed_config=launch/zero3.json", "train.micro_batch_size=2")
    cases = stages(material, tmp_path, alone, *cut)
    assert run_ranks(2, run_cases, cases, timeout_seconds=240) == [[0, 0]] * 2
    for stage, names in (("stage1", NAMES[:3]), ("stage2", NAMES)):
        ours, theirs = curves(tmp_path / stage, *names), curves(alone / stage, *names)
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), (stage, name)


@pytest.mark.long
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_interrupted_equals_uninterrupted_to_the_bit(material: Material, tmp_path: Path, zero: int):
    settings = (*CLIP, f"train.deepspeed_config=launch/zero{zero}.json")
    whole = case(material, tmp_path / "whole", *settings)
    stopped = case(material, tmp_path / "stopped", *settings, stop_at=2, stop_signal=signal.SIGTERM)
    outcomes = run_ranks(2, run_cases, [whole, stopped], timeout_seconds=240)
    assert [outcome[0] for outcome in outcomes] == [0, 0] and outcomes[1][1] == 143
    assert run_ranks(2, run_cases, [replace(stopped, stop_at=None)], timeout_seconds=240) == [[0]] * 2
    ours, theirs = (checkpoint_tensors(tmp_path / name, STEPS) for name in ("stopped", "whole"))
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
