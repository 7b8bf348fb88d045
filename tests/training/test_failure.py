"""A step that is not finite leaves a bundle and no update; a full disk costs a checkpoint, not the run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.checkpoint.folder import find_resume, list_checkpoints
from tests.end_to_end.runs import Material, python
from tests.ranks import run_ranks
from tests.training.small_runs import case, run_cases


@pytest.fixture(scope="module")
def broken(material: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run whose first update throws the weights away, and what its two ranks said."""
    folder = tmp_path_factory.mktemp("broken") / "run"
    steep = case(material, folder, "train.max_steps=6", "optimizer.peak_learning_rate=1e30", "optimizer.warmup_steps=0",
                 "train.accumulation_steps=2")  # fmt: skip
    return folder, [outcomes[0] for outcomes in run_ranks(2, run_cases, [steep], timeout_seconds=240)]


def test_a_loss_that_is_not_finite_stops_every_rank_before_the_update(broken: tuple[Path, list[str]]):
    folder, words = broken
    for rank, said in enumerate(words):
        assert said.startswith("NonFiniteStep: step 1,"), said
        assert f"rank {rank}" in said and "python -m pipeline.training.failure" in said
    assert list_checkpoints(folder) == []
    for rank in (0, 1):
        record = json.loads((folder / f"failures/step-00000001/rank-0000{rank}.json").read_text(encoding="utf-8"))
        assert len(record["keys"]) == 4 and "global_short" in record["losses"] and record["last_metrics"]["loss"] > 0
        assert [len(keys) for keys in record["micro_batches"]] == [2, 2], "the whole batch of the rank"


def test_one_command_replays_the_step(broken: tuple[Path, list[str]]):
    done = python("-m", "pipeline.training.failure", broken[0] / "failures" / "step-00000001")
    assert done.returncode == 1, done.stderr
    assert "rank-00001 keys=" in done.stdout and "nan" in done.stdout
    assert "inputs not finite: none" in done.stdout


def test_a_full_disk_costs_one_checkpoint_and_leaves_the_earlier_ones(material: Material, tmp_path: Path):
    run = tmp_path / "run"
    full = case(material, run, "train.max_steps=5", "train.checkpoint_every_steps=2", "train.keep_last_checkpoints=9",
                stage=1, full_at=4)  # fmt: skip
    assert run_ranks(2, run_cases, [full], timeout_seconds=240) == [[0]] * 2
    assert [path.name for path in list_checkpoints(run)] == ["step-00000002", "step-00000005"]
    assert not list((run / "checkpoints").glob(".*"))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(material: Material, tmp_path: Path):
    run = tmp_path / "run"
    steps = case(material, run, "train.max_steps=4", "train.checkpoint_every_steps=2", stage=1)
    assert run_ranks(1, run_cases, [steps], timeout_seconds=240) == [[0]]
    newest = list_checkpoints(run)[-1]
    assert find_resume(run, "auto") == newest and find_resume(run, "never") is None
    tensors = next(newest.glob("tensors-*.safetensors"))
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    assert find_resume(run, "auto").name == "step-00000002"


def test_when_every_checkpoint_is_damaged_a_run_refuses_instead_of_beginning_anew(material: Material, tmp_path: Path):
    run = tmp_path / "损坏 run"
    steps = case(material, run, "train.max_steps=2", "train.checkpoint_every_steps=1", stage=1)
    assert run_ranks(1, run_cases, [steps], timeout_seconds=240) == [[0]]
    first, second = list_checkpoints(run)
    next(first.glob("tensors-*.safetensors")).write_bytes(b"")
    (second / "checkpoint.json").unlink()
    again = replace(steps, overrides=(*steps.overrides, "train.max_steps=3"))
    ((outcome,), (other,)) = run_ranks(2, run_cases, [again], timeout_seconds=240)
    assert outcome == other and outcome.startswith("CheckpointError: every checkpoint")
    for words in (str(first / "tensors-00000-of-00001.safetensors"), str(second), "train.resume=never"):
        assert words in outcome
    assert first.is_dir() and second.is_dir()
    anew = replace(again, overrides=(*again.overrides, "train.resume=never"))
    assert run_ranks(1, run_cases, [anew], timeout_seconds=240) == [[0]]
    assert list_checkpoints(run)[-1].name == "step-00000003"
