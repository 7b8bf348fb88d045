"""A stopped run goes on exactly: under every ZeRO stage, and on another number of processes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.end_to_end.runs import Material, checkpoint_tensors, curves
from tests.ranks import run_ranks
from tests.training.small_runs import case, run_cases

STEPS, STOP = 6, 4  # the run stops one step after a checkpoint that it would have written anyway
NAMES = ("loss", "global_short", "global_long", "fgv", "fgt", "cmr", "tic", "cmr/margin", "memory_bank/filled")
BANK = ("region_loss.memory_bank_size=16", "region_loss.memory_bank_start_step=1")


@pytest.fixture(scope="module")
def finished(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For every ZeRO stage, with two processes: ``whole3`` in one go, ``stopped3`` stopped, copied and gone on."""
    folder = tmp_path_factory.mktemp("resume")
    cases = []
    for zero in (1, 2, 3):
        settings = (f"train.deepspeed_config=launch/zero{zero}.json", f"train.max_steps={STEPS}", *BANK)
        cases += [
            case(material, folder / f"whole{zero}", *settings),
            case(material, folder / f"stopped{zero}", *settings, stop_at=STOP - 1),
        ]
    first = run_ranks(2, run_cases, cases, timeout_seconds=240)
    # SIGTERM at the log of step 3 is seen at step 4's all-reduce, by both ranks
    assert first == [[0, 143] * 3] * 2
    for zero in (1, 2, 3):
        shutil.copytree(folder / f"stopped{zero}", folder / f"half{zero}")
    again = run_ranks(2, run_cases, [replace(one, stop_at=None) for one in cases[1::2]], timeout_seconds=240)
    assert again == [[0] * 3] * 2
    return folder


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_interrupted_equals_uninterrupted_to_the_bit(finished: Path, zero: int):
    whole, resumed = (checkpoint_tensors(finished / f"{name}{zero}", STEPS) for name in ("whole", "stopped"))
    assert sorted(whole) == sorted(resumed)
    assert any("memory_bank" in name for name in whole) and any("margin" in name for name in whole)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert curves(finished / f"whole{zero}", *NAMES) == curves(finished / f"stopped{zero}", *NAMES)


@pytest.mark.parametrize("zero", [1, 3])
def test_zero_stages_agree(finished: Path, zero: int):
    """The same sums in another order: float32, six updates."""
    ours, theirs = curves(finished / f"whole{zero}", *NAMES), curves(finished / "whole2", *NAMES)
    for name in NAMES:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("world_size", "zero"), [(1, 2), (4, 2), (1, 3)])
def test_another_number_of_processes_goes_on_with_the_same_losses(
    material: Material, finished: Path, tmp_path: Path, world_size: int, zero: int
):
    run = tmp_path / "run"
    shutil.copytree(finished / f"half{zero}", run)
    settings = (f"train.deepspeed_config=launch/zero{zero}.json", f"train.max_steps={STEPS}", *BANK)
    outcome = run_ranks(world_size, run_cases, [case(material, run, *settings)], timeout_seconds=240)
    assert outcome == [[0]] * world_size
    whole, resumed = curves(finished / f"whole{zero}", *NAMES), curves(run, *NAMES)
    for name in NAMES:
        assert resumed[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-5), name


def test_one_process_goes_on_with_two(material: Material, finished: Path, tmp_path: Path):
    settings = ("train.deepspeed_config=launch/zero2.json", f"train.max_steps={STEPS}", *BANK)
    alone = case(material, tmp_path / "run", *settings, stop_at=STOP - 1)
    assert run_ranks(1, run_cases, [alone], timeout_seconds=240) == [[143]]
    assert run_ranks(2, run_cases, [replace(alone, stop_at=None)], timeout_seconds=240) == [[0]] * 2
    whole, resumed = curves(finished / "whole2", *NAMES), curves(tmp_path / "run", *NAMES)
    for name in NAMES:
        assert resumed[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-5), name
