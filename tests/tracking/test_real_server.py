"""Against a real ``mlflow server`` that asks for name and password, over sqlite and over PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from pipeline.config import Stage1Settings, dump_settings
from pipeline.report.__main__ import main as report
from pipeline.tracking import scores
from pipeline.tracking.compare.__main__ import main as compare
from pipeline.tracking.start import start_tracking
from pipeline.tracking.sync import main as sync
from tests.tracking import failing_proxy as faults
from tests.tracking.postgres import free_port, postgres
from tests.tracking.served_store import wait_for
from tests.tracking.test_tracker import quick, settings_of
from tests.tracking.tracked_through import check, track

__all__ = ["quick"]  # a fixture

pytestmark = pytest.mark.long

NAME, PASSWORD = "admin", "a-long-password-1"
ANSWER_SECONDS = 5  # of a request; a server that is slower on a busy machine is asked again


@dataclass(frozen=True)
class Stores:
    """Addresses of databases."""

    runs: str
    users: str


@contextmanager
def server(folder: Path, stores: Stores, port: int) -> Iterator[str]:
    """An ``mlflow server`` with basic-auth; its address."""
    folder.mkdir(exist_ok=True)
    auth = folder / "auth.ini"
    auth.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {stores.users}\nadmin_username = {NAME}\n"
        f"admin_password = {PASSWORD}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
        encoding="utf-8",
    )
    environment = os.environ | {"MLFLOW_AUTH_CONFIG_PATH": str(auth), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for this test"}
    words = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", stores.runs, "--artifacts-destination",
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


@pytest.fixture(params=["sqlite", "postgresql"])
def stores(request, tmp_path) -> Iterator[Stores]:
    """Where a server keeps its runs, and its users."""
    if request.param == "postgresql":
        with postgres() as databases:
            yield Stores(databases["tracking"], databases["users"])
    else:
        yield Stores(f"sqlite:///{tmp_path / 'server.db'}", f"sqlite:///{tmp_path / 'users.db'}")


def test_a_run_reaches_a_server_with_password_also_after_it_was_gone(tmp_path, monkeypatch, capsys, stores):
    pytest.importorskip("flask_wtf", reason="the basic-auth app needs mlflow[auth]")
    port, run = free_port(), tmp_path / "跑步"
    address = f"http://127.0.0.1:{port}"
    settings = settings_of(Stage1Settings, f"tracking.uri={address}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", NAME)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with server(tmp_path / "server", stores, port):
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
    with server(tmp_path / "server", stores, port):
        assert sync([str(run)]) == 0
        points = MlflowClient(address).get_metric_history(tracker.run_id, "loss/total")
        assert sorted(point.step for point in points) == [1, 2, 3, 4, 5], "each once"
        capsys.readouterr()
        assert compare([tracker.run_id, "--uri", address]) == 0 and report([str(run)]) == 0
        shown = capsys.readouterr().out
        assert "loss/total" in shown and f"MLflow: {address}/#/experiments/" in shown
        assert PASSWORD not in shown and PASSWORD not in (run / "tracking.json").read_text(encoding="utf-8")


@pytest.mark.timeout(3600)  # some two hundred faults, and a wait after each
def test_every_kind_of_request_meets_every_fault_of_a_proxy(tmp_path, monkeypatch, quick):
    pytest.importorskip("flask_wtf", reason="the basic-auth app needs mlflow[auth]")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", NAME)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(ANSWER_SECONDS))
    monkeypatch.setattr(scores, "ATTEMPTS", 200)
    monkeypatch.setattr(scores, "PAUSE_SECONDS", 0.1)
    # What was done once is found and not asked again: a creation meets no fault behind the first that lets it through.
    not_done = [faults.REFUSED, faults.BAD_GATEWAY, faults.UNAVAILABLE, faults.LOGIN]
    all_of_them = [*not_done, faults.SILENT, faults.TORN, faults.LATE, faults.HANGING]
    with (
        postgres() as databases,
        server(tmp_path / "server", Stores(databases["tracking"], databases["users"]), free_port()) as address,
        faults.failing_proxy(address, all_of_them) as proxy,
    ):
        run_id = track(proxy.address, tmp_path)
        check(MlflowClient(address), run_id)
        met = dict(proxy.met)
    print(met)
    for kind in ("update", "log-batch", "log-inputs"):
        assert met[f"POST /api/2.0/mlflow/runs/{kind}"] == len(all_of_them), kind
    for kind in ("experiments/create", "runs/create", "logged-models", "model-versions/create"):
        assert met[f"POST /api/2.0/mlflow/{kind}"] > len(not_done), kind
    assert met["PUT artifacts"] == len(all_of_them) - 1, "it never hangs"
