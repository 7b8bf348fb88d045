"""MLflow's own pages of two runs in a real browser: what tracking sent is there, nothing is fetched from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from pipeline.config import Stage1Settings, Stage2Settings, load_settings
from pipeline.tracking import tracker as tracker_module
from pipeline.tracking.data_sets import TRAINING, DataSet
from pipeline.tracking.interface import TrackedModel
from pipeline.tracking.scores import log_scores
from pipeline.tracking.start import start_tracking
from tests.browser.chromium import WIDTHS, Watched
from tests.tracking.conftest import empty_database
from tests.tracking.served_store import served_store

__all__ = ["empty_database"]  # a fixture

pytestmark = pytest.mark.browser

# MLflow's own, on every page: a route that only its login has, and what its table and its charts say of themselves
OF_MLFLOW = ("status of 404", "AG Grid", "WebGL", "ResizeObserver")
STEPS = 30
SIZE = (300, 100)  # of an image
LOADED = "[...document.images].some((one) => one.naturalWidth && one.src.includes('boxes'))"


@dataclass(frozen=True)
class Served:
    """Two runs behind a server."""

    address: str
    experiment: str
    runs: list[str]

    def page(self, place: str) -> str:
        return f"{self.address}/#/{place}{'&' if '?' in place else '?'}workflowType=machine_learning"


@pytest.fixture(scope="module")
def served(chromium, tmp_path_factory, empty_database) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(empty_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker_module, "START_TIMEOUT_SECONDS", 300.0)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        first = track(folder / "stage1", Stage1Settings)
        second = track(folder / "stage2", Stage2Settings, f"tracking.continues={folder / 'stage1'}")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_run(first).info.experiment_id
    with served_store(folder, folder / "mlflow.db") as address:
        yield Served(address, experiment, [first, second])


def track(run: Path, kind: type, *settings: str) -> str:
    """A run with metrics, data, a checkpoint and scores; its id."""
    tracker = start_tracking(load_settings(kind, None, [*settings, "tracking.description=第一次"]), run)
    tracker.log_data([DataSet("数据/train", "0123456789abcdef", "/data", TRAINING, {"samples": 8000})])
    for step in range(1, STEPS + 1):
        values = {"loss": 3 / step, "global_short": 1 / step, "images_per_second": 100.0 + step}
        tracker.log(step, values | ({"fgv": 2 / step, "cmr/margin": 0.1} if kind is Stage2Settings else {}))
    for step, colour in ((1, "red"), (STEPS, "green")):
        tracker.log_images(step, {"boxes/en-1": Image.new("RGB", SIZE, colour)})
    tracker.log_checkpoints([TrackedModel("step-00000030", run / "checkpoints" / "step-00000030", STEPS, 8)])
    tracker.end(timeout_seconds=300)
    assert tracker.lost == 0 and tracker.run_id
    assert log_scores(run, {"scenes": {"hard": 0.5}})
    return tracker.run_id


def shown(watched: Watched, *words: str) -> None:
    """Wait until each of the words is on the page."""
    for one in words:
        watched.until(f"document.body.innerText.includes({json.dumps(one)})")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_a_run_tells_of_its_data_source_and_description(chromium, served, width):
    page = served.page(f"experiments/{served.experiment}/runs/{served.runs[1]}")
    watched = Watched(chromium, page, width, served.address, OF_MLFLOW)
    shown(watched, "stage2", "Finished", "数据/train (0123456789abcdef)", "continues.", "第一次", "peak learning rate")
    watched.check("mlflow-run", may_scroll=True)


def test_two_runs_compared_stand_side_by_side(chromium, served):
    runs, experiments = json.dumps(served.runs), json.dumps([served.experiment])
    for width in WIDTHS:
        page = served.page(f"compare-runs?runs={runs}&experiments={experiments}")
        watched = Watched(chromium, page, width, served.address, OF_MLFLOW)
        shown(watched, "Comparing 2 Runs", "stage1", "stage2", "loss/total")
        watched.check("mlflow-compare", may_scroll=True)


def test_the_models_are_listed_with_their_run(chromium, served):
    watched = Watched(chromium, served.page(f"experiments/{served.experiment}/models"), 1400, served.address, OF_MLFLOW)
    shown(watched, "step-00000030", "stage1", "stage2")
    watched.check("mlflow-models", may_scroll=True)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_charts_of_a_run_and_its_image_grid_are_drawn(chromium, served, width):
    page = served.page(f"experiments/{served.experiment}/runs/{served.runs[1]}/model-metrics")
    watched = Watched(chromium, page, width, served.address, OF_MLFLOW)
    shown(watched, "loss", "boxes")
    watched.until("document.querySelectorAll('.js-plotly-plot .trace').length > 0")
    watched.check("mlflow-charts", may_scroll=True)
    # MLflow writes all parameters above an image, and begins at step 0: as docs/tracking.md says what to do
    card = watched.page.locator("[data-component-id=fullscreen_button_chartcard]").first
    card.locator("xpath=following::button[1]").click()
    watched.page.get_by_role("menuitem", name="Configure").click()
    dialog = watched.page.get_by_role("dialog")
    dialog.get_by_role("switch").click()
    dialog.get_by_role("slider").press("ArrowRight")
    dialog.get_by_role("button", name="Save").click()
    watched.until(LOADED)
    watched.check("mlflow-images", may_scroll=True)


def test_the_charts_of_two_runs_share_their_axes(chromium, served):
    page = served.page(f"experiments/{served.experiment}/runs?compareRunsMode=CHART")
    watched = Watched(chromium, page, 1400, served.address, OF_MLFLOW)
    shown(watched, "stage1", "stage2")
    watched.check("mlflow-compared-charts", may_scroll=True)
