"""A proxy that fails in the middle: nothing arrives twice, and nothing is left out."""

from __future__ import annotations

import shutil

import pytest
from mlflow.tracking import MlflowClient

from pipeline.tracking import scores
from tests.tracking import failing_proxy as faults
from tests.tracking.served_store import served_store
from tests.tracking.test_tracker import quick
from tests.tracking.tracked_through import check, track

__all__ = ["quick"]  # a fixture


@pytest.fixture(autouse=True)
def patient_scores(monkeypatch):
    monkeypatch.setattr(scores, "ATTEMPTS", 200)
    monkeypatch.setattr(scores, "PAUSE_SECONDS", 0.05)


def test_each_request_may_be_cut_off_once_before_and_once_after_it_was_done(tmp_path, empty_database):
    database = tmp_path / "server.db"
    shutil.copy(empty_database, database)
    with (
        served_store(tmp_path, database) as address,
        faults.failing_proxy(address, [faults.SILENT, faults.BAD_GATEWAY]) as proxy,
    ):
        run_id = track(proxy.address, tmp_path)
        check(MlflowClient(address), run_id)
        met = dict(proxy.met)
    assert min(met.values()) >= 1 and sum(met.values()) > 30, met
    for kind in ("POST /api/2.0/mlflow/runs/create", "POST /api/2.0/mlflow/runs/log-batch"):
        assert met[kind] == 2, "done and never answered, then refused"
