"""Both stages as a user starts them: ranks agree, a killed run goes on exactly, scores come out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.end_to_end.runs import Material, StageRun, checkpoint_tensors, curves, python, run_stage

STAGE1_LOSSES = ("loss", "global_short", "global_long")
STAGE2_LOSSES = (*STAGE1_LOSSES, "fgv", "fgt", "cmr", "tic", "cmr/margin")
STEPS = 9
THREADS = ("train.threads_per_rank=2",)  # with one there is no order of additions to get wrong


@pytest.fixture(scope="module")
def two_processes(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1, then stage 2 from it, with two processes; the folder holds stage1/ and stage2/."""
    folder = tmp_path_factory.mktemp("two")
    for stage in ("stage1", "stage2"):
        run_stage(stage, _settings(material, folder, stage, *THREADS), 2, folder / f"{stage}.log")
    return folder


def _settings(material: Material, folder: Path, stage: str, *further: str, start: Path | None = None) -> list[str]:
    settings = material.settings(folder / stage, f"train.max_steps={STEPS}", *further)
    if stage == "stage2":
        begin = start or folder / "stage1"
        settings += [f"model.start_from={begin}", f"tracking.continues={begin}"]
    return settings


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_one_process_gives_the_losses_of_two(material: Material, two_processes: Path, stage: str, tmp_path: Path):
    settings = _settings(material, tmp_path, stage, start=two_processes / "stage1")
    run_stage(stage, settings, 1, tmp_path / "log")
    names = STAGE1_LOSSES if stage == "stage1" else STAGE2_LOSSES
    two, one = curves(two_processes / stage, *names), curves(tmp_path / stage, *names)
    for name in names:
        assert sorted(two[name]) == sorted(one[name]) == list(range(1, STEPS + 1))
        for step in range(1, STEPS + 1):
            # float32 sums in another order, through at most 9 updates of learning rate 1e-3
            assert two[name][step] == pytest.approx(one[name][step], rel=1e-5, abs=1e-5), (name, step)


def test_a_run_killed_in_stage_2_ends_as_if_it_had_not_been(material: Material, two_processes: Path, tmp_path: Path):
    """Kill -9 of everything, twice, at steps that are no checkpoint's; then weights, moments, τ equal to the bit."""
    settings = _settings(material, tmp_path, "stage2", *THREADS, start=two_processes / "stage1")
    for step in (5, 7):
        running = StageRun("stage2", settings, 2, tmp_path / "log")
        running.wait_for_step(tmp_path / "stage2", step)
        running.kill()
    run_stage("stage2", settings, 2, tmp_path / "log")
    whole, resumed = (checkpoint_tensors(run / "stage2", STEPS) for run in (two_processes, tmp_path))
    assert sorted(whole) == sorted(resumed)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert curves(two_processes / "stage2", *STAGE2_LOSSES) == curves(tmp_path / "stage2", *STAGE2_LOSSES)


def test_the_result_is_evaluated_and_holds_every_score(material: Material, two_processes: Path, tmp_path: Path):
    done = python("-m", "pipeline.evaluation", "scenes", two_processes / "stage2", "--data", material.test,
                  "--json", tmp_path / "scores.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    for part in (scores, scores["by_language"]["en"], scores["by_language"]["zh"]):
        for name in ("hard", "medium", "easy", "trivial", "boxes_top1", "t2i_r1", "i2t_r1"):
            assert 0 <= part[name] <= 1


def test_both_stages_are_one_comparison(two_processes: Path, tmp_path: Path):
    done = python("-m", "pipeline.tracking.compare", two_processes / "stage1", two_processes / "stage2",
                  "--out", tmp_path / "curves.png")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "model.start_from" in done.stdout
    assert (tmp_path / "curves.png").stat().st_size > 10_000
