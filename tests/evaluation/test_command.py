"""The command: both forms, one-line errors with a status, the result file, and the run's own scores."""

from __future__ import annotations

import json

import pytest

from pipeline.evaluation import EvaluationError, evaluate
from pipeline.evaluation.__main__ import main
from pipeline.evaluation.options import Options
from pipeline.evaluation.results import Accounting
from tests.evaluation.fake import FakeModel
from tests.evaluation.test_models import our_run  # noqa: F401  (a fixture)


@pytest.fixture()
def fake(monkeypatch):
    model = FakeModel()
    monkeypatch.setattr("pipeline.evaluation.models.load_model", lambda *args, **kwargs: model)
    return model


def test_both_forms_give_the_same_scores_and_the_demos_names(fake, scenes, tmp_path, capsys):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert main(["m", "--task", "fgovd", "--task", "boxes", "--data", str(scenes), "--json", str(one)]) == 0
    assert main(["fgovd", "m", "--task", "boxes", "--data", str(scenes), "--json", str(two)]) == 0
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in (one, two))
    assert first["hard"] == second["hard"] and {"medium", "easy", "trivial", "boxes_top1", "unseen"} <= set(first)
    assert first["by_language"]["zh"]["hard"] == second["by_language"]["zh"]["hard"]
    shown = capsys.readouterr().out
    assert "hard" in shown and "evaluated" in shown


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
        (["m", "--data", "x"], "no task was given"),
        (["m", "--task", "boxes"], "no --data was given"),
        (["m", "n", "--task", "boxes", "--data", "x"], "should be one model"),
        (["boxes", "m", "--data", "nowhere"], "nowhere does not exist"),
        (["detection", "m", "--data", ".", "--alpha", "-1"], "alpha is -1.0; it must be at least 0"),
    ],
)
def test_wrong_input_is_one_line_and_a_status(fake, arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error


def test_a_missing_model_is_one_line(tmp_path, scenes, capsys):
    assert main(["boxes", str(tmp_path), "--data", str(scenes)]) == 2
    assert "holds no config.json" in capsys.readouterr().err


def test_an_interrupt_ends_with_its_own_status(fake, scenes, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "encode_images", interrupted)
    assert main(["m", "--task", "boxes", "--data", str(scenes)]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_scores_go_to_the_run_that_made_the_checkpoint(our_run, scenes, monkeypatch):  # noqa: F811
    told = []
    monkeypatch.setattr("pipeline.tracking.scores.log_scores", lambda folder, scores: told.append((folder, scores)))
    command = [str(our_run), "--task", "boxes", "--data", str(scenes)]
    assert main(command) == 0 and main([*command, "--no-tracking"]) == 0
    ((folder, scores),) = told
    assert folder == str(our_run) and 0 <= scores["scenes"]["boxes_top1"] <= 1


def test_unknown_options_name_the_nearest_right_one(scenes):
    with pytest.raises(EvaluationError, match="unknown option tempature; did you mean temperature"):
        evaluate(FakeModel(), "boxes", scenes, tempature=1)
    with pytest.raises(EvaluationError, match="it must be one of fgovd, retrieval"):
        evaluate(FakeModel(), "boxing", scenes)
    for wrong in ({"temperature": 0.0}, {"max_images": 0}, {"language": "fr"}, {"max_skipped_share": 1.5}):
        with pytest.raises(EvaluationError):
            Options.make(**wrong)


def test_an_option_that_the_task_does_not_read_is_refused_instead_of_ignored(scenes):
    with pytest.raises(EvaluationError, match="boxes does not read alpha; it reads class_names"):
        evaluate(FakeModel(), "boxes", scenes, alpha=0.3)


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
