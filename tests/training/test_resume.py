"""A stopped run goes on exactly: under every ZeRO stage, and on another number of processes."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.checkpoint.folder import list_checkpoints
from tests.end_to_end.runs import Material, checkpoint_tensors, curves
from tests.ranks import run_ranks
from tests.training.small_runs import case, run_cases

STEPS, STOP = 6, 4  # the run stops one step after a checkpoint that it would have written anyway
NAMES = ("loss", "global_short", "global_long", "fgv", "fgt", "cmr", "tic", "cmr/margin", "memory_bank/filled")
MASTER = ("train.precision=bf16", "train.weights=bf16")
KINDS = {  # name of a pair of runs -> its settings
    **{f"zero{zero}": (f"train.deepspeed_config=launch/zero{zero}.json",) for zero in (1, 2, 3)},
    "bf16": ("train.deepspeed_config=launch/zero2.json", "train.precision=bf16"),
    "master2": ("train.deepspeed_config=launch/zero2.json", *MASTER),  # ZeRO 1 and 3: test_master_resume.py
}
BANK = ("region_loss.memory_bank_size=16", "region_loss.memory_bank_start_step=1")


@pytest.fixture(scope="module")
def finished(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs_of(KINDS, material, tmp_path_factory.mktemp("resume"))


def runs_of(kinds: dict[str, tuple[str, ...]], material: Material, folder: Path) -> Path:
    """For every kind, with two processes: ``whole-zero3`` in one go, ``stopped-zero3`` stopped, copied and gone on."""
    cases = []
    for kind, chosen in kinds.items():
        settings = (*chosen, f"train.max_steps={STEPS}", *BANK)
        # one of them by Slurm's warning
        stop = {"stop_at": STOP - 1, "stop_signal": signal.SIGUSR1 if kind == "zero3" else signal.SIGTERM}
        cases += [
            case(material, folder / f"whole-{kind}", *settings),
            case(material, folder / f"stopped-{kind}", *settings, **stop),
        ]
    first = run_ranks(2, run_cases, cases, timeout_seconds=240)
    # a signal at the log of step 3 is seen at step 4's all-reduce, by both ranks; only one of them knows its number
    assert [outcomes[0::2] for outcomes in first] == [[0] * len(kinds)] * 2
    assert first[1][1::2] == [138 if kind == "zero3" else 143 for kind in kinds] and 0 not in first[0][1::2]
    for kind in kinds:
        assert list_checkpoints(folder / f"stopped-{kind}")[-1].name == f"step-{STOP:08d}"
        shutil.copytree(folder / f"stopped-{kind}", folder / f"half-{kind}")
    again = run_ranks(2, run_cases, [replace(one, stop_at=None) for one in cases[1::2]], timeout_seconds=240)
    assert again == [[0] * len(kinds)] * 2
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_equals_uninterrupted_to_the_bit(finished: Path, kind: str):
    assert_resumed_exactly(finished, kind)


def assert_resumed_exactly(finished: Path, kind: str) -> None:
    whole, resumed = (checkpoint_tensors(finished / f"{name}-{kind}", STEPS) for name in ("whole", "stopped"))
    assert sorted(whole) == sorted(resumed)
    assert any("memory_bank" in name for name in whole) and any("margin" in name for name in whole)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert curves(finished / f"whole-{kind}", *NAMES) == curves(finished / f"stopped-{kind}", *NAMES)


@pytest.mark.parametrize("kind", ["bf16", "master2"])
def test_bf16_stays_near_float32(finished: Path, kind: str):
    assert_near_float32(finished / f"whole-{kind}", finished / "whole-zero2")


def assert_near_float32(run: Path, float32_run: Path) -> None:
    """Eight bits of mantissa, six updates; and it is not float32 by another name."""
    ours, theirs = curves(run, *NAMES), curves(float32_run, *NAMES)
    for name in ("loss", "global_short", "global_long", "fgv", "fgt", "tic"):
        assert ours[name] == pytest.approx(theirs[name], rel=5e-2) and ours[name] != theirs[name], name


def test_checkpoint_and_export_of_bf16_weights_are_float32(finished: Path):
    assert_float32_files(finished / "whole-master2")


def assert_float32_files(run: Path) -> None:
    """Checkpoint and export hold the same numbers, and they are not bf16's."""
    weights = checkpoint_tensors(run, STEPS)
    exported = load_file(run / "final" / "model.safetensors")
    for name, tensor in exported.items():
        assert torch.equal(tensor.reshape(-1), weights[f"weight/{name}"].reshape(-1)), name
    some = exported["vision_model.encoder.layers.0.mlp.fc1.weight"]
    assert some.dtype == torch.float32 and not torch.equal(some.bfloat16().float(), some)


@pytest.mark.parametrize("zero", [1, 3])
def test_zero_stages_agree(finished: Path, zero: int):
    """The same sums in another order: float32, six updates.

    Under ZeRO 3 the layers' q, k and v are three products. By the fifth step Adam has made of such an order 0.8e-5 or
    1.2e-5 of L_FGV, depending on how the dense head sums.
    """
    ours, theirs = curves(finished / f"whole-zero{zero}", *NAMES), curves(finished / "whole-zero2", *NAMES)
    for name in NAMES:
        assert ours[name][1] == pytest.approx(theirs[name][1], rel=1e-6, abs=1e-6), name
        assert ours[name] == pytest.approx(theirs[name], rel=3e-5, abs=1e-5), name


@pytest.mark.parametrize(("world_size", "zero"), [(1, 2), (4, 2), (1, 3)])
def test_another_number_of_processes_goes_on_with_the_same_losses(
    material: Material, finished: Path, tmp_path: Path, world_size: int, zero: int
):
    run = tmp_path / "run"
    shutil.copytree(finished / f"half-zero{zero}", run)
    settings = (f"train.deepspeed_config=launch/zero{zero}.json", f"train.max_steps={STEPS}", *BANK)
    outcome = run_ranks(world_size, run_cases, [case(material, run, *settings)], timeout_seconds=240)
    assert outcome == [[0]] * world_size
    whole, resumed = curves(finished / f"whole-zero{zero}", *NAMES), curves(run, *NAMES)
    for name in NAMES:
        assert resumed[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-5), name


def test_one_process_goes_on_with_two(material: Material, finished: Path, tmp_path: Path):
    settings = ("train.deepspeed_config=launch/zero2.json", f"train.max_steps={STEPS}", *BANK)
    alone = case(material, tmp_path / "run", *settings, stop_at=STOP - 1)
    assert run_ranks(1, run_cases, [alone], timeout_seconds=240) == [[143]]
    assert run_ranks(2, run_cases, [replace(alone, stop_at=None)], timeout_seconds=240) == [[0]] * 2
    whole, resumed = curves(finished / "whole-zero2", *NAMES), curves(tmp_path / "run", *NAMES)
    for name in NAMES:
        assert resumed[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-5), name
