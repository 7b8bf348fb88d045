"""Where the store is Databricks: wrong names stop a run before it begins, and what it takes is what it gets.

No workspace is asked: these are the limits of its documentation, held by a client that stands in for it.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException

from pipeline.config import SettingsError, Stage1Settings, load_settings
from pipeline.tracking.address import RunAddress, page_of
from pipeline.tracking.databricks import check_names, is_databricks
from pipeline.tracking.limits import limits_of
from pipeline.tracking.local_log import Entry
from pipeline.tracking.store import Store

ADDRESS = RunAddress("databricks", "/Shared/试验", None, "run")


class Client:
    """Holds what it is sent; the answers to the first batches are lost."""

    def __init__(self, lost: int) -> None:
        self.points: list[tuple[str, int, float]] = []
        self.lost = lost

    def log_batch(self, run_id: str, metrics: list) -> None:
        self.points += [(metric.key, metric.step, metric.value) for metric in metrics]
        if self.lost:
            self.lost -= 1
            raise MlflowException("API request failed with exception Read timed out")

    def get_run(self, run_id: str) -> SimpleNamespace:
        return SimpleNamespace(data=SimpleNamespace(metrics=dict.fromkeys((key for key, _, _ in self.points), 0.0)))

    def get_metric_history(self, run_id: str, name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(step=step) for key, step, _ in self.points if key == name]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "tracking.experiment=/Shared/fine-grained-vlm"),
        (["tracking.experiment=/Users/我/a", "tracking.register_as=fgclip"], "catalog.schema.model"),
        (["tracking.experiment=/Users/我/a", "tracking.register_as=main.模型.fgclip"], None),
        (["tracking.enabled=false"], None),
    ],
)
@pytest.mark.parametrize("by", ["setting", "environment"])
def test_names_that_databricks_refuses_stop_a_run_before_it_begins(monkeypatch, overrides, words, by):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if by == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks://staging")
    else:
        overrides = [*overrides, "tracking.uri=databricks"]
    settings = load_settings(Stage1Settings, None, overrides).tracking
    if words is None:
        check_names(settings)
    else:
        with pytest.raises(SettingsError, match=words):
            check_names(settings)


def test_other_stores_keep_their_names(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://databricks.example:5000")
    assert not is_databricks("http://databricks.example:5000")
    check_names(load_settings(Stage1Settings, None, ["tracking.register_as=fgclip"]).tracking)


@pytest.mark.parametrize("value", ["长" * 400, "a" * 501, "长a" * 125, "短"])
def test_a_parameter_is_cut_to_the_bytes_that_are_taken_and_stays_text(value):
    [cut] = limits_of("databricks").parameters({"data.shards": value}).values()
    assert len(cut.encode("utf-8")) <= 500
    assert cut == value if len(value.encode("utf-8")) <= 500 else cut.endswith("…") and value.startswith(cut[:-1])
    assert limits_of("http://server").parameters({"data.shards": value}) == {"data.shards": value}


def test_a_batch_whose_answer_was_lost_is_not_appended_again():
    store = Store(ADDRESS, "a" * 32, Client(lost=1))
    entries = [Entry(step, 1.0, {"loss/total": 1 / step}) for step in (1, 2)]
    with pytest.raises(MlflowException):
        store.write(entries)
    store.write([*entries, Entry(3, 2.0, {"loss/total": 0.5})])
    assert sorted(store.client.points) == [("loss/total", 1, 1.0), ("loss/total", 2, 0.5), ("loss/total", 3, 0.5)]


def test_the_page_of_a_run_is_in_the_workspace():
    command, page = page_of(ADDRESS, "77", "ab", workspace="https://x.cloud.databricks.com")
    assert command is None and page == "https://x.cloud.databricks.com/ml/experiments/77/runs/ab"
