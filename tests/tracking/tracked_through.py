"""A run with everything that tracking sends, and the proof that a server has each thing exactly once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mlflow.tracking import MlflowClient
from PIL import Image

from pipeline.config import Stage1Settings, dump_settings, load_settings
from pipeline.tracking.data_sets import TRAINING, DataSet
from pipeline.tracking.interface import TrackedModel
from pipeline.tracking.scores import log_scores
from pipeline.tracking.start import start_tracking

STEPS = 20
DATA = DataSet("训练/a", "0123456789abcdef", "/data/训练", TRAINING, {"samples": 3})
PATIENCE_SECONDS = 400.0  # every fault costs a wait; on a busy machine a long one


def track(address: str, folder: Path) -> str:
    """A run of :data:`STEPS` steps through ``address``; the id of its MLflow run."""
    settings = load_settings(
        Stage1Settings, None,
        [f"tracking.uri={address}", "tracking.experiment=代理", "tracking.group=study", "tracking.register_as=模型"],
    )  # fmt: skip
    run = folder / "跑步"
    tracker = start_tracking(settings, run)
    tracker.log_data([DATA])
    (run / "note.txt").write_text("一", encoding="utf-8")
    for step in range(1, STEPS + 1):
        tracker.log(step, {"loss": float(step), "fgv": 1 / step})
        if step in (5, 10):
            tracker.flush(PATIENCE_SECONDS)
            tracker.log_images(step, {"boxes/en-1": Image.new("RGB", (30, 10), "red")})
            tracker.log_checkpoints([TrackedModel(f"step-{step:08d}", run / f"step-{step:08d}", step, 8)])
    tracker.log_artifact(run / "note.txt")
    (run / "final").mkdir()
    tracker.log_export(TrackedModel("export", run / "final", STEPS, 8))
    assert tracker.flush(PATIENCE_SECONDS), "everything arrives in the end"
    (run / "settings.yaml").write_text(dump_settings(settings), encoding="utf-8")
    tracker.end(timeout_seconds=PATIENCE_SECONDS)
    assert tracker.lost == 0 and tracker.run_id
    assert log_scores(run / "final", {"fgovd": {"hard": 0.5}}, files=[run / "note.txt"])
    return tracker.run_id


def check(client: MlflowClient, run_id: str) -> None:
    """The server has the run, its parent and all that they hold, once."""
    experiment = client.get_experiment_by_name("代理").experiment_id
    runs = {run.info.run_id: run for run in client.search_runs([experiment])}
    assert Counter(run.info.status for run in runs.values()) == {"FINISHED": 2}, "the run and its parent"
    run = runs[run_id]
    assert run.data.tags["mlflow.parentRunId"] in runs.keys() - {run_id}
    assert run.data.params["optimizer.peak_learning_rate"] and run.data.tags["version.torch"]
    for name, values in (("loss/total", lambda step: float(step)), ("loss/fgv", lambda step: 1 / step)):
        points = [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        assert sorted(points) == [(step, values(step)) for step in range(1, STEPS + 1)], name
    assert len(client.get_metric_history(run_id, "evaluation/fgovd.hard")) == 1
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == [DATA.name]
    models = {one.name: one for one in client.search_logged_models([experiment])}
    assert sorted(models) == ["export", "step-00000010"] and {one.status for one in models.values()} == {"READY"}
    kept = {one.model_id for one in models.values()}
    noted = Counter(one.model_id for one in run.outputs.model_outputs)
    assert kept <= set(noted) and set(noted.values()) == {1}
    assert {one.key for one in models["step-00000010"].metrics} >= {"loss/total", "loss/fgv"}
    assert [str(one.version) for one in client.search_model_versions("name = '模型'")] == ["1"]
    images = [item.path for item in client.list_artifacts(run_id, "images")]
    assert len(images) == 4, "two steps, each with its small copy"
    assert Path(client.download_artifacts(run_id, "note.txt")).read_text(encoding="utf-8") == "一"
    assert [item.path for item in client.list_artifacts(run_id, "evaluation")] == ["evaluation/note.txt"]
