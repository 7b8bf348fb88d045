"""The command: one subcommand a task, one-line errors with a status, the result file, and the run's own scores."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline.evaluation import EvaluationError, evaluate
from pipeline.evaluation.arguments import flags_of
from pipeline.evaluation.command import build_parser, main
from pipeline.evaluation.registry import TASKS
from pipeline.evaluation.results import Accounting
from tests.evaluation.fake import FakeModel
from tests.evaluation.test_models import our_run  # noqa: F401  (a fixture)


@pytest.fixture()
def fake(monkeypatch):
    model = FakeModel()
    monkeypatch.setattr("pipeline.evaluation.models.load.load_model", lambda *args, **kwargs: model)
    return model


def test_scenes_are_scored_in_one_pass_and_the_demos_names_stand_at_the_top(fake, scenes, tmp_path, capsys):
    path = tmp_path / "scores.json"
    assert main(["scenes", "m", "--data", str(scenes), "--json", str(path), "--part", "fgovd", "--part", "boxes"]) == 0
    content = json.loads(path.read_text(encoding="utf-8"))
    assert {"hard", "medium", "easy", "trivial", "boxes_top1", "unseen"} <= set(content) and "t2i_r1" not in content
    assert content["by_language"]["zh"]["hard"] == content["results"]["scenes"]["scores"]["by_language"]["zh"]["hard"]
    shown = capsys.readouterr().out
    assert "hard" in shown and "evaluated" in shown and fake.images_encoded == 40


def test_results_hold_the_settings_and_every_row(fake, scenes, tmp_path):
    path = tmp_path / "r.json"
    status = main(
        ["segmentation", "m", "--data", str(scenes), "--background", "class", "--json", str(path), "--batch-size", "4"]
    )
    content = json.loads(path.read_text(encoding="utf-8"))["results"]["segmentation"]
    assert (
        status == 0 and content["settings"]["background"] == "class" and content["settings"]["model"]["kind"] == "fake"
    )
    assert content["accounting"][0]["rows"] == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["boxs", "m", "--data", "x"], "task is 'boxs'; did you mean boxes?"),
        (["runs/demo", "--data", "x"], "task is 'runs/demo'; it must be one of retrieval, fgovd"),
        (["boxes", "m"], "no --data was given"),
        (["boxes", "m", "n", "--data", "x"], "'n' is too much; write python -m pipeline.evaluation boxes MODEL"),
        (["boxes", "m", "--data", "nowhere"], "nowhere does not exist"),
        (["detection", "m", "--data", ".", "--alpha", "-1"], "alpha is '-1'; it must be greater than or equal to 0"),
        (["boxes", "m", "--data", ".", "--alpha", "0.3"], "boxes does not read --alpha; detection does"),
        (["boxes", "m", "--data", ".", "--tempalte", "a {}"], "did you mean --template?"),
        (["boxes", "m", "--data", ".", "--levels", "128"], "--levels is called --patch-budgets now"),
        (["segmentation", "m", "--data", ".", "--stand-in", "mean"], "is called --class-token-substitute now"),
        (["boxes", "m", "--data", ".", "--batch-size", "0"], "batch_size is '0'; it must be greater than or equal"),
    ],
)
def test_wrong_input_is_one_line_and_a_status(fake, arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/a", "--task", "boxes", "--data", "x"], "Write python -m pipeline.evaluation boxes runs/a"),
        (
            ["fgovd", "runs/a", "--task=boxes"],
            "boxes runs/a, then python -m pipeline.evaluation fgovd runs/a",
        ),
        (
            ["runs/a", "--task", "fgovd", "--task", "boxes"],
            "in one pass: python -m pipeline.evaluation scenes runs/a",
        ),
    ],
)
def test_the_form_of_before_is_answered_with_that_of_now(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_help_of_every_task_names_its_own_options_and_imports_no_torch():
    program = "import sys; from pipeline.evaluation.command import main; main([*sys.argv[1:], '--help'])"
    watch = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); "
    for task, own in (("retrieval", "--text-kind"), ("detection", "--alpha"), ("segmentation", "--calibrate")):
        done = subprocess.run([sys.executable, "-c", watch + program, task], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "False" and own in done.stdout and "example:" in done.stdout
    assert not build_parser("boxes", TASKS["boxes"]).format_help().count("--alpha")
    for name, task in TASKS.items():
        text = build_parser(name, task).format_help()
        assert all(flag in text for flag in flags_of(task.options()))


def test_a_missing_model_is_one_line(tmp_path, scenes, capsys):
    assert main(["boxes", str(tmp_path), "--data", str(scenes)]) == 2
    assert "holds no config.json" in capsys.readouterr().err


def test_an_interrupt_ends_with_its_own_status(fake, scenes, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "encode_images", interrupted)
    assert main(["boxes", "m", "--data", str(scenes), "--language", "zh"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_scores_go_to_the_run_that_made_the_checkpoint(our_run, scenes, monkeypatch):  # noqa: F811
    told = []
    monkeypatch.setattr(
        "pipeline.tracking.scores.log_scores", lambda folder, scores, **more: told.append((folder, scores))
    )
    command = ["scenes", str(our_run), "--data", str(scenes)]
    assert main(command) == 0 and main([*command, "--no-tracking"]) == 0
    ((folder, scores),) = told
    assert folder == str(our_run) and 0 <= scores["scenes"]["boxes_top1"] <= 1


def test_unknown_options_name_the_nearest_right_one(scenes):
    with pytest.raises(EvaluationError, match="does not read tempature; did you mean temperature"):
        evaluate(FakeModel(), "detection", scenes, tempature=1)
    with pytest.raises(EvaluationError, match="boxes does not read alpha; it reads class_names"):
        evaluate(FakeModel(), "boxes", scenes, alpha=0.3)
    with pytest.raises(EvaluationError, match="levels is called patch_budgets now"):
        evaluate(FakeModel(), "boxes", scenes, levels=[128])
    for wrong in ({"temperature": 0.0}, {"max_images": 0}, {"language": "französisch"}, {"max_skipped_share": 1.5}):
        with pytest.raises(EvaluationError, match=f"{next(iter(wrong))} is .*it must be"):
            evaluate(FakeModel(), "detection", scenes, **wrong)


def test_a_model_of_one_image_size_takes_no_patch_budgets(scenes):
    with pytest.raises(EvaluationError, match="fake model of one image size; leave patch_budgets out"):
        evaluate(FakeModel(), "boxes", scenes, patch_budgets=[128])


def test_an_account_that_does_not_add_up_is_refused():
    account = Accounting("rows")
    account.take(3)
    account.skip("bad", "here", 2)
    assert account.to_json()["rows"] == 5
    account.evaluated += 1
    with pytest.raises(EvaluationError, match="every row must be accounted for"):
        account.to_json()
    with pytest.raises(EvaluationError, match="no rows to evaluate"):
        Accounting("rows").check(1.0)
