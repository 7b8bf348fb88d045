"""A stopped run goes on exactly: under every ZeRO stage, and on another number of processes."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint.folder import list_checkpoints
from tests.end_to_end.runs import Material, checkpoint_tensors, curves
from tests.ranks import run_ranks
from tests.training.small_runs import case, run_cases

STEPS, STOP = 6, 4  # the run stops one step after a checkpoint that it would have written anyway
NAMES = ("loss", "global_short", "global_long", "fgv", "fgt", "cmr", "tic", "cmr/margin", "memory_bank/filled")
KINDS = {  # name of a pair of runs -> its settings
    **{f"zero{zero}": (f"train.deepspeed_config=launch/zero{zero}.json",) for zero in (1,2)},
}
BANK = ("region_loss.memory_bank_size=16", "region_loss.memory_bank_start_step=1")


@pytest.fixture(scope="module")
def finished(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For every kind, with two processes: ``whole-zero3`` in one go, ``stopped-zero3`` stopped, copied and gone on."""
    folder = tmp_path_factory.mktemp("resume")
    cases = []
    for kind, chosen in KINDS.items():
        settings = (*chosen, f"train.max_steps={STEPS}", *BANK)
        # one of them by Slurm's warning
        stop = {"stop_at": STOP - 1, "stop_signal": signal.SIGUSR1 if kind == "zero3" else signal.SIGTERM}
        cases += [
            case(material, folder / f"whole-{kind}", *settings),
            case(material, folder / f"stopped-{kind}", *settings, **stop),
        ]
    first = run_ranks(2, run_cases, cases, timeout_seconds=900)
    # a signal at the log of step 3 is seen at step 4's all-reduce, by both ranks; only one of them knows its number
    assert [outcomes[0::2] for outcomes in first] == [[0] * len(KINDS)] * 2
    assert first[1][1::2] == [143, 143] and 0 not in first[0][1::2]
    for kind in KINDS:
        assert list_checkpoints(folder / f"stopped-{kind}")[-1].name == f"step-{STOP:08d}"
        shutil.copytree(folder / f"stopped-{kind}", folder / f"half-{kind}")
    again = run_ranks(2, run_cases, [replace(one, stop_at=None) for one in cases[1::2]], timeout_seconds=900)
    assert again == [[0] * len(KINDS)] * 2
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_equals_uninterrupted_to_the_bit(finished: Path, kind: str):
    whole, resumed = (checkpoint_tensors(finished / f"{name}-{kind}", STEPS) for name in ("whole", "stopped"))
    assert sorted(whole) == sorted(resumed)
    assert any("memory_bank" in name for name in whole) and any("margin" in name for name in whole)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert curves(finished / f"whole-{kind}", *NAMES) == curves(finished / f"stopped-{kind}", *NAMES)
