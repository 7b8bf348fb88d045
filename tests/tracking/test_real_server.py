"""Against a real ``mlflow server`` that asks for name and password."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from pipeline.config import Stage1Settings, dump_settings
from pipeline.report.__main__ import main as report
from pipeline.tracking.compare.__main__ import main as compare
from pipeline.tracking.start import start_tracking
from pipeline.tracking.sync import main as sync
from tests.tracking.test_tracker import settings_of

pytestmark = pytest.mark.long

NAME, PASSWORD = "admin", "a-long-password-1"
START_SECONDS = 180


@contextmanager
def server(folder: Path, store: str, port: int) -> Iterator[str]:
    """An ``mlflow server`` with basic-auth; its address."""
    folder.mkdir(exist_ok=True)
    auth = folder / "auth.ini"
    auth.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = {NAME}\n"
        f"admin_password = {PASSWORD}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
        encoding="utf-8",
    )
    environment = os.environ | {"MLFLOW_AUTH_CONFIG_PATH": str(auth), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for this test"}
    words = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--artifacts-destination",
        str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--app-name", "basic-auth",
        "--workers", "1",
    ]  # fmt: skip
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(f"the server did not answer:\n{log.read_text(errors='replace')[-3000:]}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_run_reaches_a_server_with_password_also_after_it_was_gone(tmp_path, monkeypatch, capsys):
    pytest.importorskip("flask_wtf", reason="the basic-auth app needs mlflow[auth]")
    store = f"sqlite:///{tmp_path / 'server.db'}"
    port, run = free_port(), tmp_path / "跑步"
    address = f"http://127.0.0.1:{port}"
    settings = settings_of(Stage1Settings, f"tracking.uri={address}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", NAME)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with server(tmp_path / "server", store, port):
        refused = start_tracking(settings, run)
        refused.log(1, {"loss": 3.0})
        refused.end(timeout_seconds=5)
        assert refused.lost and refused.run_id is None, "a wrong password stops nothing and is counted"
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        tracker = start_tracking(settings, run, resume_step=1)
        tracker.log(2, {"loss": 2.0})
        tracker.log_images(2, {"boxes/en-1": Image.new("RGB", (300, 100), "red")})
        assert tracker.flush(120)
    for step in range(3, 6):
        tracker.log(step, {"loss": 1.0})  # the server is gone
    tracker.end(timeout_seconds=3)
    assert tracker.lost
    (run / "settings.yaml").write_text(dump_settings(settings), encoding="utf-8")
    with server(tmp_path / "server", store, port):
        assert sync([str(run)]) == 0
        points = MlflowClient(address).get_metric_history(tracker.run_id, "loss/total")
        assert sorted(point.step for point in points) == [1, 2, 3, 4, 5], "each once"
        capsys.readouterr()
        assert compare([tracker.run_id, "--uri", address]) == 0 and report([str(run)]) == 0
        shown = capsys.readouterr().out
        assert "loss/total" in shown and f"MLflow: {address}/#/experiments/" in shown
        assert PASSWORD not in shown and PASSWORD not in (run / "tracking.json").read_text(encoding="utf-8")
