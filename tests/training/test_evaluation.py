"""Evaluation beside training: all ranks share it, its scores do not depend on their number, and the best stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.checkpoint.folder import list_checkpoints
from pipeline.config import Stage1Settings
from pipeline.tracking.local_log import read_curves
from pipeline.tracking.metric_names import grouped_name
from pipeline.training.evaluation import evaluation_callback
from tests.end_to_end.runs import Material
from tests.ranks import run_ranks
from tests.training.small_runs import case, run_cases


def evaluated(material: Material, run: Path, *further: str):
    return case(
        material, run, "train.max_steps=6", "evaluation.every_steps=2", "evaluation.tasks=[fgovd, retrieval]",
        f"evaluation.data={material.test}", f"evaluation.shards=[{material.test}]", "evaluation.validation_batches=2",
        "train.checkpoint_every_steps=null", "train.keep_last_checkpoints=1", "train.keep_best=scenes/t2i_r1", *further,
    )  # fmt: skip


def test_scores_and_validation_losses_do_not_depend_on_the_ranks_and_the_best_checkpoint_stays(
    material: Material, tmp_path: Path
):
    curves = {}
    for size in (1, 2):
        run = tmp_path / f"运行 {size}"
        assert run_ranks(size, run_cases, [evaluated(material, run)], timeout_seconds=400) == [[0]] * size
        curves[size] = read_curves(run)
    names = [name for name in curves[1] if name.startswith("evaluation/")]
    assert {
        f"evaluation/{name}" for name in ("scenes.hard", "scenes.t2i_r1", "validation.loss", "validation.fgv")
    } <= set(names)
    for name in names:
        steps, values = curves[1][name]
        assert steps == [2, 4, 6] and curves[2][name][0] == steps
        assert curves[2][name][1] == pytest.approx(values, rel=1e-4, abs=1e-4), name
    best = json.loads((run / "best.json").read_text(encoding="utf-8"))
    steps, values = curves[2]["evaluation/scenes.t2i_r1"]
    assert best == {"score": "scenes/t2i_r1", "value": max(values), "step": steps[values.index(max(values))]}
    kept = {int(folder.name.removeprefix("step-")) for folder in list_checkpoints(run)}
    assert kept == {best["step"], 6}


def test_a_score_that_the_evaluation_does_not_give_is_named(material: Material, tmp_path: Path):
    wrong = evaluated(material, tmp_path / "a", "train.keep_best=fgovd/困难")
    nothing = case(material, tmp_path / "b", "train.keep_best=fgovd/hard")
    ((first, second),) = run_ranks(1, run_cases, [wrong, nothing], timeout_seconds=240)
    assert first.startswith("SettingsError") and "困难" in first and "scenes/hard" in first
    assert second.startswith("SettingsError") and "evaluation.every_steps is null" in second


@pytest.mark.parametrize(
    ("tasks", "message"), [(["fgov"], "did you mean fgovd"), (["fgovd"], "nowhere, which does not exist")]
)
def test_misspelt_tasks_and_missing_data_are_refused_before_the_first_step(tasks, message):
    evaluation = {"every_steps": 5, "tasks": tasks, "data": "nowhere"}
    with pytest.raises(ValueError, match=message):
        evaluation_callback(Stage1Settings.model_validate({"evaluation": evaluation}), None, None, None)


def run_slow_evaluation(settings: list) -> list:
    """The cases, with an evaluation in which rank 0 takes three times the limit of the process group."""
    import time

    import torch.distributed as dist

    from pipeline.evaluation import run

    fast = run.evaluate_several

    def slow(*arguments):
        if dist.get_rank() == 0:
            time.sleep(60)
        return fast(*arguments)

    run.evaluate_several = slow
    return run_cases(settings)


@pytest.mark.long
def test_an_evaluation_three_times_as_long_as_the_process_groups_limit_ends_well(material: Material, tmp_path: Path):
    one = evaluated(material, tmp_path / "run", "train.max_steps=2", "train.timeout_seconds=20")
    assert run_ranks(2, run_slow_evaluation, [one], timeout_seconds=400) == [[0]] * 2
    assert read_curves(tmp_path / "run")[grouped_name("score/scenes/hard")][0] == [2]
