"""A store that stays away longer than the setting ends all ranks with one clear line, and the run resumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.data.index import index_folder
from tests.data.test_outages import stormy
from tests.end_to_end.runs import Material, StageRun, curves

STEPS = 16


@pytest.mark.long
def test_a_store_that_stays_away_ends_both_ranks_and_the_same_command_resumes(material: Material, tmp_path: Path):
    shards = Path(shutil.copytree(material.train, tmp_path / "shards"))
    index_folder(shards, force=True, piece_bytes=1, patch_budgets=(48, 64, 80))  # every step needs the store
    with stormy(shards) as (url, weather):
        settings = material.settings(
            tmp_path / "run", f"train.max_steps={STEPS}", f"data.shards=[{url}]", f"data.cache_folder={tmp_path / 'c'}",
            "data.prefetch_gigabytes=0", "data.prefetch_batches=1", "data.store_patience_seconds=3",
            "train.checkpoint_every_steps=1",
        )  # fmt: skip
        first = StageRun("stage1", settings, 2, tmp_path / "first.log")
        first.wait_for_step(tmp_path / "run", 3)
        weather.absent = True
        assert first.wait() != 0
        assert not first.members()
        told = [line for line in first.text().splitlines() if "longer than data.store_patience_seconds = 3" in line]
        errors = [line for line in told if line.startswith("error: rank ")]
        assert 1 <= len(errors) <= 2, told  # a line of each rank that met it; heartbeats end the other
        assert all("could not be read for " in line and "it resumes (last: " in line for line in errors)
        assert "Traceback" not in first.text()
        weather.absent = False
        again = StageRun("stage1", settings, 2, tmp_path / "again.log")
        assert again.wait() == 0, again.text()[-3000:]
    assert "goes on from" in again.text()
    assert sorted(curves(tmp_path / "run", "loss")["loss"]) == list(range(1, STEPS + 1))
