"""The long proof: kill -9 of everything at random moments, checkpoints being written included, loses nothing."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch

from tests.end_to_end.runs import Material, StageRun, checkpoint_tensors, curves, run_stage

STEPS, KILLS = 16, 4  # 4 kills for each of 2 stages and 3 ZeRO stages: 24
GLOBAL = ("loss", "global_short", "global_long")
NAMES = {"stage1": GLOBAL, "stage2": (*GLOBAL, "fgv", "fgt", "cmr", "tic", "cmr/margin", "memory_bank/filled")}


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_killed_runs_end_as_if_they_had_not_been(material: Material, tmp_path: Path, stage: str, zero: int):
    chance = random.Random(f"{stage}{zero}")
    bank = ["region_loss.memory_bank_size=16", "model.start_from=null"] if stage == "stage2" else []

    def settings(name: str) -> list[str]:
        return material.settings(
            tmp_path / name, f"train.max_steps={STEPS}", "train.checkpoint_every_steps=1", *bank,
            f"train.deepspeed_config=launch/zero{zero}.json",
        )  # fmt: skip

    run_stage(stage, settings("whole"), 2, tmp_path / "whole.log")
    killed_in_checkpoint = 0
    for kill in range(KILLS):
        running = StageRun(stage, settings("killed"), 2, tmp_path / "killed.log")
        running.wait_for_step(tmp_path / "killed", 3 * kill + chance.randint(1, 3))
        time.sleep(chance.random() * 0.3)  # anywhere in a step, whose checkpoint takes a good part of it
        running.kill()
        killed_in_checkpoint += bool(list((tmp_path / "killed" / "checkpoints").glob(".*.partial")))
    run_stage(stage, settings("killed"), 2, tmp_path / "killed.log")
    print(f"{stage} ZeRO {zero}: {KILLS} kills, {killed_in_checkpoint} while a checkpoint was written")
    whole, resumed = (checkpoint_tensors(tmp_path / name, STEPS) for name in ("whole", "killed"))
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert sorted(whole) == sorted(resumed)
    first, second = (curves(tmp_path / name, *NAMES[stage]) for name in ("whole", "killed"))
    assert first == second
    assert sorted(first["loss"]) == list(range(1, STEPS + 1))
