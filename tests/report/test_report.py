"""A run's page tells what it was trained on, what happened, how it scores, and what it cost; and reaches MLflow."""

from __future__ import annotations

import json
import shutil

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from pipeline.base.run_folder import RunFolder
from pipeline.config import Stage2Settings, dump_settings, load_settings
from pipeline.report.__main__ import main
from pipeline.report.history import read_history
from pipeline.report.page import run_page
from pipeline.tracking.images import save_step_image
from pipeline.tracking.local_log import read_entries
from pipeline.tracking.scores import log_scores
from pipeline.tracking.start import start_tracking
from tests.tracking.conftest import empty_database
from tests.tracking.made_runs import make_run

__all__ = ["empty_database"]  # a fixture

SCORES = {"scenes": {"hard": 0.5, "by_language": {"en": {"hard": 0.61}, "zh": {"hard": 0.39}}, "seen": {"hard": 0.55}}}


@pytest.fixture
def run(tmp_path):
    """A run that was killed at step 6, went on from step 4, and skipped an update at step 8."""
    folder = make_run(tmp_path / "跑步", losses={step: 3 / step for step in range(1, 11)}, scores=SCORES)
    lines = []
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        step = entry["step"]
        entry["values"] |= {"health/skipped_steps": float(step >= 8), "speed/training_hours": step / 10}
        entry["values"] |= {"data/replaced_truncated": float(2 * (step >= 9)), "speed/images_per_second": 100.0}
        entry["time"] = 1000.0 + 10 * step + (500 if step > 4 else 0)
        lines.append(json.dumps(entry))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    notes = [{"start": 1000.0}, {"verdict": "rank 1 (host b) is silent <b>"}, {"failed": 1100.0, "step": 6},
             {"start": 1500.0}, {"end": 2000.0, "status": 143}]  # fmt: skip
    (folder / "attempts.jsonl").write_text("\n".join(map(json.dumps, notes)) + "\n", encoding="utf-8")
    for step, colour in ((1, "red"), (10, "blue")):
        save_step_image(folder, "boxes/zh-1", step, Image.new("RGB", (80, 40), colour))
        save_step_image(folder, "worst/1", step, Image.new("RGB", (80, 40), colour))
    return folder


def test_what_happened_stands_at_its_steps(run):
    history = read_history(RunFolder.at(run), list(read_entries(run)))
    told = {event.step: event.text for event in history.events}
    assert told == {5: "start 2 went on from here", 6: "failed: rank 1 (host b) is silent <b>",
                    8: "updates skipped up to here: 1"}  # fmt: skip
    assert history.starts == 2 and history.skipped == 1 and history.replaced == {"truncated": 2}
    assert history.status == "stopped with status 143"


def test_the_page_holds_every_part_and_no_foreign_html(run):
    page = run_page(RunFolder.at(run))
    body = page[: page.index("<script>")]
    for title in ("What was trained on what", "Scores", "Curves", "What happened", "What it still gets wrong",
                  "What it learned", "Health", "Speed", "Cost", "Settings and versions"):  # fmt: skip
        assert f"<h2>{title}" in body, title
    assert "<b>en" not in body and "0.6100" in body and "0.3900" in body and ">zh<" in body
    assert body.count("<img") == 3, "the boxes at two steps, the worst at the last"
    assert "silent &lt;b&gt;" in body and "://" not in body
    assert "1.000" in body, "training hours"


def test_a_run_that_has_barely_begun_has_a_page_too(tmp_path):
    folder = make_run(tmp_path / "run", losses={1: 3.0})
    assert "Nothing: no restart" in run_page(RunFolder.at(folder))
    (folder / "metrics.jsonl").unlink()
    assert "<h2>Curves" not in run_page(RunFolder.at(folder))


def test_the_page_is_kept_in_mlflow_and_its_address_printed(tmp_path, empty_database, capsys):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    settings = load_settings(Stage2Settings, None, ["tracking.uri=null"])
    tracker = start_tracking(settings, tmp_path / "run")
    (tmp_path / "run" / "settings.yaml").write_text(dump_settings(settings), encoding="utf-8")
    tracker.log(1, {"loss": 1.0})
    tracker.end()
    log_scores(tmp_path / "run", {"fgovd": {"hard": 0.5}})
    capsys.readouterr()
    assert main([str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert f"/runs/{tracker.run_id}/artifacts/report/report.html?workflowType=machine_learning" in printed
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert [item.path for item in client.list_artifacts(tracker.run_id, "report")] == ["report/report.html"]


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "holds no settings.yaml" in error and error.count("\n") == 1
