"""A store that is made by several at once, left half made, silent, or beside a folder of an odd name."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import threading
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipeline.config import Stage1Settings, load_settings
from pipeline.tracking import database
from pipeline.tracking import start as start_module
from pipeline.tracking import tracker as tracker_module
from pipeline.tracking.address import find_run, sqlite_path, sqlite_uri
from pipeline.tracking.database import prepare_database
from pipeline.tracking.start import start_tracking
from pipeline.tracking.sync import main as sync_main


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracker_module, "START_TIMEOUT_SECONDS", 300.0)
    monkeypatch.setattr(tracker_module, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(tracker_module, "FLUSH_SECONDS", 0.05)


@pytest.fixture
def quick_tables(monkeypatch, empty_database):
    """MLflow's tables without the seconds that they take."""

    class Client:
        def __init__(self, uri: str) -> None:
            self.path = sqlite_path(uri)

        def search_experiments(self, max_results: int) -> None:
            shutil.copy(empty_database, self.path)

    monkeypatch.setattr(database, "MlflowClient", Client)


def tracked(run: Path):
    tracker = start_tracking(load_settings(Stage1Settings, None, ["tracking.experiment=试验"]), run)
    tracker.log(1, {"loss/total": 2.0})
    tracker.end()
    return tracker


def test_only_one_of_many_makes_the_database_and_the_others_wait_their_turn(tmp_path, quick_tables, monkeypatch):
    made, refused, gate = [], [], threading.Barrier(8)
    original = database.MlflowClient

    class Counting(original):
        def search_experiments(self, max_results: int) -> None:
            made.append(self.path)
            super().search_experiments(max_results)

    monkeypatch.setattr(database, "MlflowClient", Counting)

    def begin() -> None:
        gate.wait()
        try:
            prepare_database(sqlite_uri(tmp_path / "mlflow.db"))
        except BlockingIOError:
            refused.append(1)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and made[0].name != "mlflow.db"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


def test_a_database_that_was_left_half_made_is_moved_away_and_the_run_tracked(tmp_path, quick_tables):
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("CREATE TABLE runs (run_uuid TEXT)")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    tracker = tracked(tmp_path / "run")
    assert tracker.lost == 0 and tracker.run_id
    assert (tmp_path / "mlflow.1.db").is_file()


@pytest.mark.parametrize("name", ["a%20b", "a?b=c", "100%", "跑 步#1"])
def test_runs_are_tracked_beside_a_folder_of_any_name(tmp_path, quick_tables, name):
    folder = tmp_path / name
    tracker = tracked(folder / "run")
    assert tracker.lost == 0
    assert sorted(path.name for path in folder.glob("*.db")) == ["mlflow.db"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    stored = MlflowClient(find_run(folder / "run")[2].uri).get_run(tracker.run_id)
    assert stored.data.metrics == {"loss/total": 2.0}


def test_a_run_that_was_killed_while_it_was_registered_is_gone_on_with(tmp_path, quick_tables, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(start_module, "save_run", kept := start_module.save_run)

    def killed(folder, address, run_id, registration=None):
        if run_id is not None:  # the store knows the run, tracking.json does not
            raise SystemExit
        kept(folder, address, run_id, registration)

    monkeypatch.setattr(start_module, "save_run", killed)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    start_tracking(load_settings(Stage1Settings, None, []), run)
    assert json.loads((run / "tracking.json").read_text())["run_id"] is None
    monkeypatch.setattr(start_module, "save_run", kept)
    again = start_tracking(load_settings(Stage1Settings, None, []), run, resume_step=0)
    again.log(1, {"loss/total": 1.0})
    again.end()
    client = MlflowClient(find_run(run)[2].uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert [(one.info.run_id, one.info.status) for one in runs] == [(again.run_id, "FINISHED")]


def test_sync_gives_up_on_a_server_that_accepts_and_never_answers(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = {"uri": f"http://127.0.0.1:{server.getsockname()[1]}", "experiment": "x", "artifact_location": None}
        (run / "tracking.json").write_text(json.dumps({"run_id": None, "run_name": "r"} | address))
        (run / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "values": {"a": 1}}\n')
        assert sync_main([str(run), "--timeout-seconds", "0.5"]) == 2
    assert "has not answered for 0.5 s" in capsys.readouterr().err
