"""Tracking holds each step once and never stands in training's way."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipeline.base.run_folder import METRICS
from pipeline.config import Stage1Settings, Stage2Settings, dump_settings, load_settings
from pipeline.tracking import tracker as tracker_module
from pipeline.tracking.address import find_run
from pipeline.tracking.interface import NoTracking, Tracker
from pipeline.tracking.local_log import read_curves
from pipeline.tracking.scores import log_scores, log_table
from pipeline.tracking.start import start_tracking
from pipeline.tracking.sync import main as sync_main


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracker_module, "START_TIMEOUT_SECONDS", 300.0)  # a busy machine must not decide a test
    monkeypatch.setattr(tracker_module, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(tracker_module, "FLUSH_SECONDS", 0.05)


@pytest.fixture
def run(tmp_path, empty_database) -> Path:
    """Where a run can go, beside a store that is ready."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path / "run"


def settings_of(kind=Stage1Settings, *overrides: str):
    return load_settings(kind, None, list(overrides))


def client_of(run: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    history = client_of(run).get_metric_history(find_run(run)[1], name)
    return [(point.step, point.value) for point in history]


def test_a_run_holds_settings_versions_metrics_figures_and_lies_beside_the_run_folder(tmp_path):
    run = tmp_path / "runs" / "stage1"
    settings = settings_of(Stage1Settings, "data.short_caption_prefix={zh: 一张照片}", "tracking.run_name=erster",
                           "tracking.metrics=all")  # fmt: skip
    tracker = start_tracking(settings, run)
    tracker.log(10, {"loss/total": 2.5, "loss/图像": 1.0, "odd:name": 3.0, "loss/nan": math.nan})
    tracker.log_figure("curves", _figure())
    tracker.set_tags({"note": "第一"})
    tracker.end()
    assert tracker.lost == 0
    stored = client_of(run).get_run(tracker.run_id)
    assert stored.info.status == "FINISHED" and stored.info.run_name == "erster"
    assert stored.data.params["optimizer.peak_learning_rate"] == "1e-06"
    assert "一张照片" in stored.data.params["data.short_caption_prefix"]
    assert stored.data.tags["version.torch"].startswith("2.") and stored.data.tags["note"] == "第一"
    assert stored.data.metrics["loss/图像"] == 1.0 and stored.data.metrics["health/odd_name"] == 3.0
    assert math.isnan(stored.data.metrics["loss/nan"]) and math.isnan(read_curves(run)["loss/nan"][1][0])
    assert stored.info.artifact_uri.startswith((tmp_path / "runs").as_uri())
    assert [item.path for item in client_of(run).list_artifacts(tracker.run_id, "figures")] == ["figures/curves.png"]


def test_a_long_setting_is_cut_and_more_than_a_hundred_metrics_and_params_are_written(run):
    settings = settings_of(
        Stage1Settings, "data.shards=[" + ", ".join(f"长路径{n}" for n in range(2000)) + "]", "tracking.metrics=all"
    )
    tracker = start_tracking(settings, run)
    tracker.log(1, {f"value/{n}": n for n in range(2500)})
    tracker.end()
    stored = client_of(run).get_run(tracker.run_id)
    assert len(stored.data.params["data.shards"]) == 6000 and stored.data.params["data.shards"].endswith("…")
    assert len(stored.data.metrics) == 2500 and tracker.lost == 0


def test_only_rank_0_tracks(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    tracker = start_tracking(settings_of(), tmp_path / "run")
    assert type(tracker) is NoTracking
    tracker.log(1, {"a": 1.0})
    tracker.end()
    assert not (tmp_path / "run").exists()


def test_tracking_switched_off_keeps_the_local_file_only(tmp_path):
    tracker = start_tracking(settings_of(Stage1Settings, "tracking.enabled=false"), tmp_path / "run")
    tracker.log(1, {"a": 1.0})
    tracker.end()
    assert read_curves(tmp_path / "run") == {"health/a": ([1], [1.0])} and not (tmp_path / "mlflow.db").exists()


def test_after_a_resume_the_same_run_holds_each_step_once(run):
    first = start_tracking(settings_of(), run)
    for step in range(1, 8):
        first.log(step, {"loss": float(step)})
    first.flush()
    second = start_tracking(settings_of(Stage1Settings, "train.max_steps=9"), run, first.run_id, resume_step=4)
    assert second.run_id == first.run_id
    for step in range(5, 10):
        second.log(step, {"loss": float(step)})
        second.log(step, {"loss": float(step)})
    second.end()
    once = [(step, float(step)) for step in range(1, 10)]
    assert curve(run, "loss/total") == once and list(zip(*read_curves(run)["loss/total"], strict=True)) == once
    stored = client_of(run).get_run(second.run_id)
    assert stored.data.params["train.max_steps"] == "None"
    assert stored.data.tags["resumed_with.train.max_steps"] == "9" and stored.data.tags["resumed_at_step"] == "4"


def test_a_kill_between_the_local_line_and_the_store_leaves_no_gap(run):
    program = (
        "import os, sys; from pipeline.config import Stage1Settings\n"
        "from pipeline.tracking.start import start_tracking\n"
        "t = start_tracking(Stage1Settings(), sys.argv[1])\n"
        "for s in (1, 2): t.log(s, {'loss': s})\n"
        "t.flush()\n"
        "for s in (3, 4, 5): t.log(s, {'loss': s})\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(run)], check=False)
    with open(run / METRICS, "a", encoding="utf-8") as file:
        file.write('{"step": 6, "time": 1.0, "val')  # torn by the kill
    resumed = start_tracking(settings_of(), run, resume_step=4)
    resumed.log(5, {"loss": 5.0})
    resumed.end()
    assert curve(run, "loss/total") == [(step, float(step)) for step in range(1, 6)]
    assert read_curves(run)["loss/total"][0] == [1, 2, 3, 4, 5]


def test_a_new_run_in_an_old_folder_sets_the_old_metrics_aside(run):
    ids = []
    for value in (1.0, 2.0):
        tracker = start_tracking(settings_of(), run)
        tracker.log(1, {"loss": value})
        tracker.end()
        ids.append(tracker.run_id)
    assert len(set(ids)) == 2 and read_curves(run)["loss/total"] == ([1], [2.0])
    assert json.loads((run / "metrics.1.jsonl").read_text())["values"] == {"loss/total": 1.0}


def test_stage_2_points_to_the_run_it_continues(tmp_path, run):
    parent = start_tracking(settings_of(), tmp_path / "stage1")
    parent.end()
    (tmp_path / "stage1" / "final").mkdir()
    for override in (f"tracking.continues={tmp_path / 'stage1'}", f"model.start_from={tmp_path / 'stage1' / 'final'}"):
        child = start_tracking(settings_of(Stage2Settings, override), tmp_path / "stage2")
        child.end()
        tags = client_of(tmp_path / "stage2").get_run(child.run_id).data.tags
        assert tags["continues.run_id"] == parent.run_id and tags["stage"] == "stage2"
        assert "mlflow.parentRunId" not in tags


def test_a_locked_store_delays_metrics_and_loses_none(run, tmp_path):
    tracker = start_tracking(settings_of(), run)
    tracker.flush()
    lock = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    assert train(tracker, range(1, 51)) < 1.0
    assert not tracker.flush(timeout_seconds=1.5)
    lock.execute("ROLLBACK")
    lock.close()
    tracker.end()
    assert tracker.lost == 0 and len(curve(run, "loss/total")) == 50


def test_a_store_locked_from_the_start_is_counted_and_synced_later(run, tmp_path, capsys):
    first = start_tracking(settings_of(), tmp_path / "other")
    first.end()
    lock = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    tracker = start_tracking(settings_of(), run)
    assert tracker.run_id is None
    train(tracker, range(1, 11))
    tracker.end(timeout_seconds=0.5)
    lock.execute("ROLLBACK")
    lock.close()
    assert tracker.lost == 10 and len(read_curves(run)["loss/total"][0]) == 10
    (run / "settings.yaml").write_text(dump_settings(settings_of()), encoding="utf-8")
    assert sync_main([str(run)]) == 0 and "10 values" in capsys.readouterr().out
    assert [step for step, _ in curve(run, "loss/total")] == list(range(1, 11))
    assert sync_main([str(run)]) == 0 and ": 0 values" in capsys.readouterr().out


def test_a_full_store_delays_metrics_and_loses_none(run):
    tracker = start_tracking(settings_of(), run)
    tracker.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the database is larger, so no page can be added
    try:
        assert train(tracker, range(1, 201)) < 2.0  # its own file fills up on the way
        assert not tracker.flush(timeout_seconds=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    tracker.end()
    assert tracker.lost == 0
    assert [step for step, _ in curve(run, "loss/total")] == read_curves(run)["loss/total"][0] == list(range(1, 201))


def test_a_store_that_is_gone_is_counted_and_one_that_comes_back_is_brought_up_to_date(tmp_path, empty_database):
    (tmp_path / "store").mkdir()
    shutil.copy(empty_database, tmp_path / "store" / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    tracker = start_tracking(settings_of(Stage1Settings, f"tracking.uri={uri}"), tmp_path / "run")
    tracker.flush()
    (tmp_path / "store").rename(tmp_path / "unmounted")
    train(tracker, range(1, 6))
    assert not tracker.flush(timeout_seconds=0.5)
    (tmp_path / "unmounted").rename(tmp_path / "store")
    assert tracker.flush()
    assert len(MlflowClient(uri).get_metric_history(tracker.run_id, "loss/total")) == 5
    shutil.rmtree(tmp_path / "store")
    train(tracker, range(6, 10))
    tracker.end(timeout_seconds=0.5)
    assert tracker.lost == 4 and not (tmp_path / "store").exists()


def test_training_goes_on_when_the_run_folder_itself_is_removed(tmp_path, empty_database):
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs" / "mlflow.db")
    tracker = start_tracking(settings_of(), tmp_path / "runs" / "run")
    tracker.flush()
    shutil.rmtree(tmp_path / "runs")
    train(tracker, range(1, 6))
    tracker.end(timeout_seconds=0.5)
    assert tracker.lost == 5


def test_an_overflowing_memory_is_refilled_from_the_local_file(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tracker_module, "MAX_WAITING_VALUES", 20)
    monkeypatch.setattr(tracker_module, "ENTRIES_PER_CHUNK", 7)
    tracker = start_tracking(settings_of(), run)
    train(tracker, range(1, 5))
    tracker.flush()
    lock = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    train(tracker, range(5, 101))
    lock.execute("ROLLBACK")
    lock.close()
    tracker.end()
    assert tracker.lost == 0 and [step for step, _ in curve(run, "loss/total")] == list(range(1, 101))


def test_a_value_that_mlflow_refuses_is_counted_and_holds_up_nothing(run, tmp_path):
    tracker = start_tracking(settings_of(), run)
    tracker.log_artifact(tmp_path / "never made.png")
    tracker.log(1, {"loss": 1.0})
    tracker.end()
    assert tracker.lost == 1 and curve(run, "loss/total") == [(1, 1.0)]


def test_system_metrics_are_kept_when_mlflow_is_asked_for_them(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    tracker = start_tracking(settings_of(), run)
    name = "system/cpu_utilization_percentage"
    deadline = time.monotonic() + 20
    while name not in client_of(run).get_run(tracker.run_id).data.metrics and time.monotonic() < deadline:
        time.sleep(0.1)
    tracker.end()
    assert name in client_of(run).get_run(tracker.run_id).data.metrics


def test_scores_join_the_run_that_made_the_checkpoint(run, tmp_path, capsys):
    tracker = start_tracking(settings_of(), run)
    tracker.log(12, {"loss": 1.0})
    tracker.end()
    (run / "final").mkdir()
    (run / "checkpoints" / "step-000007").mkdir(parents=True)
    assert log_scores(run / "final", {"fgovd": {"hard": 0.4, "by_language": {"zh": 0.3}, "data": "text"}})
    assert log_scores(run / "checkpoints" / "step-000007", {"fgovd": {"hard": 0.2}, "t2i_r1": 0.5})
    assert curve(run, "evaluation/fgovd.hard") == [(12, 0.4), (7, 0.2)]
    assert client_of(run).get_run(tracker.run_id).info.status == "FINISHED"
    scores = json.loads((run / "scores.json").read_text())
    assert scores == {"fgovd": {"hard": 0.2, "by_language": {"zh": 0.3}, "data": "text"}, "t2i_r1": 0.5}
    assert not log_scores(tmp_path, {"a": 1.0}) and "no tracked run" in capsys.readouterr().err


def test_a_table_joins_the_run_and_is_shown_as_one(run, tmp_path, capsys):
    tracker = start_tracking(settings_of(), run)
    tracker.log(1, {"loss": 1.0})
    tracker.end()
    for name in ("集 one", "two", "two"):
        assert log_table(run, name, ["set", "模型"], [["boxes", "74.9"]])
    client = client_of(run)
    content = json.loads(Path(client.download_artifacts(tracker.run_id, "tables/集-one.json")).read_text("utf-8"))
    assert content == {"columns": ["set", "模型"], "data": [["boxes", "74.9"]]}
    shown = json.loads(client.get_run(tracker.run_id).data.tags["mlflow.loggedArtifacts"])
    assert [one["path"] for one in shown] == ["tables/集-one.json", "tables/two.json"]
    assert not log_table(tmp_path, "a", [], []) and "no tracked run" in capsys.readouterr().err


def train(tracker: Tracker, steps) -> float:
    """Log like a loop; the seconds that took."""
    started = time.monotonic()
    for step in steps:
        tracker.log(step, {"loss": float(step)})
    return time.monotonic() - started


def _figure():
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    return figure
