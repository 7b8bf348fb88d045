"""What a person finds in MLflow: data sets, models, images by step, lineage, studies, and few, grouped metrics."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas
import pytest
from mlflow.pyfunc import load_model
from mlflow.tracking import MlflowClient
from PIL import Image

from pipeline.config import Stage1Settings, Stage2Settings, load_settings
from pipeline.data.index import index_folder
from pipeline.export.folder import export_model
from pipeline.model import FGCLIP2, preset_config
from pipeline.tracking.data_sets import EVALUATION, any_set, shard_set, training_sets
from pipeline.tracking.images import save_step_image
from pipeline.tracking.interface import TrackedModel
from pipeline.tracking.metric_names import GROUPS, grouped_metrics, grouped_name, is_usual
from pipeline.tracking.scores import log_scores
from pipeline.tracking.served_model import ServedModel
from pipeline.tracking.start import start_tracking
from tests.data.shards import write_shards
from tests.model.material import small_tokenizer
from tests.tracking.test_tracker import client_of, quick, run, settings_of

__all__ = ["quick", "run"]  # fixtures


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = write_shards(tmp_path_factory.mktemp("数据") / "训练", [[("en", 128), ("zh", 128)], [("en", 128)]])
    index_folder(folder)
    return folder


def models_of(run: Path, run_id: str) -> dict[str, object]:
    client = client_of(run)
    experiment = client.get_run(run_id).info.experiment_id
    return {model.name: model for model in client.search_logged_models([experiment])}


def test_names_are_in_few_groups_and_stable():
    loop = {"loss": 1.0, "fgv": 2.0, "cmr/margin": 0.1, "norm/image/min": 1.0, "count/fgv/regions": 3.0,
            "replaced/truncated": 1.0, "data_wait_share": 0.1, "images_per_second": 9.0, "gradient_norm/text": 1.0,
            "score/scenes/by_language/zh/hard": 0.5, "logit/fgv/max": 3.0, "something new": 1.0}  # fmt: skip
    found = grouped_metrics(loop)
    assert {name.partition("/")[0] for name in found} <= set(GROUPS) and all(n.count("/") == 1 for n in found)
    assert found["loss/fgv"] == 2.0 and found["evaluation/scenes.by_language.zh.hard"] == 0.5
    assert found["data/count_fgv_regions"] == 3.0 and found["health/something new"] == 1.0
    assert {name: grouped_name(name) for name in found} == {name: name for name in found}, "grouping twice changes none"
    assert grouped_metrics({"learning_rate/text": 0.1, "learning_rate/vision": 0.1}) == {"health/learning_rate": 0.1}
    two = grouped_metrics({"learning_rate/text": 0.1, "learning_rate/vision": 0.2})
    assert two["health/learning_rate"] == 0.2 and two["health/learning_rate_text"] == 0.1
    assert is_usual("loss/fgv") and not is_usual("health/norm_image_min") and not is_usual("health/gradient_norm_text")


def test_the_store_gets_the_usual_metrics_and_the_file_all_of_them(run):
    tracker = start_tracking(settings_of(), run)
    tracker.log(1, {"loss": 1.0, "norm/image/min": 0.9})
    tracker.end()
    assert set(client_of(run).get_run(tracker.run_id).data.metrics) == {"loss/total"}
    assert "health/norm_image_min" in (run / "metrics.jsonl").read_text(encoding="utf-8")


def test_data_sets_have_name_digest_and_counts_and_stand_there_once(run, shards):
    tracker = start_tracking(settings_of(), run)
    for _ in range(2):  # a resume tells them again
        tracker.log_data([*training_sets([str(shards)]), shard_set(str(shards), EVALUATION)])
    tracker.end()
    inputs = client_of(run).get_run(tracker.run_id).inputs.dataset_inputs
    assert tracker.lost == 0 and {one.dataset.name for one in inputs} == {f"{shards.parent.name}/训练"}
    assert '"samples": 3' in inputs[0].dataset.profile and '"samples_zh": 1' in inputs[0].dataset.profile
    assert len({one.dataset.digest for one in inputs}) == 1
    other = write_shards(shards.parent / "other", [[("en", 128)]])
    index_folder(other)
    assert shard_set(str(other)).digest != inputs[0].dataset.digest


def test_a_list_of_rows_is_a_data_set_too(tmp_path):
    (tmp_path / "行").mkdir()
    rows = tmp_path / "行" / "hard.jsonl"
    rows.write_text("{}", encoding="utf-8")
    one, folder = any_set(rows), any_set(tmp_path / "行")
    assert (one.name, one.context, one.counts) == ("行/hard.jsonl", EVALUATION, {"files": 1})
    assert folder.counts == {"files": 1}
    rows.write_text("{}\n", encoding="utf-8")
    assert any_set(rows).digest != one.digest


def test_models_are_the_kept_checkpoints_and_the_export_with_metrics_on_their_data(run, shards, tmp_path):
    tracker = start_tracking(settings_of(Stage1Settings, "tracking.register_as=模型"), run)
    tracker.log_data(training_sets([str(shards)]))
    for step in (4, 8):
        tracker.log(step, {"loss": 1 / step})
        kept = [TrackedModel(f"step-{n:08d}", run / "checkpoints" / f"step-{n:08d}", n, 32) for n in (step - 4, step)]
        tracker.log_checkpoints(kept)
        tracker.log_checkpoints(kept)
    (run / "final").mkdir()
    (run / "final" / "README.md").write_text("# card", encoding="utf-8")
    tracker.log_export(TrackedModel("export", run / "final", 8, 32, {"width": "32"}))
    tracker.log_export(TrackedModel("export", run / "final", 8, 32, {"width": "32"}))
    tracker.end()
    assert tracker.lost == 0
    found = models_of(run, tracker.run_id)
    assert set(found) == {"step-00000004", "step-00000008", "export"}, "step 0 was pruned"
    assert found["export"].tags["folder"] == str(run / "final") and found["export"].params["width"] == "32"
    linked = {(m.key, m.dataset_name) for m in found["step-00000008"].metrics}
    assert ("loss/total", f"{shards.parent.name}/训练") in linked
    client = client_of(run)
    version = client.get_model_version_by_alias("模型", "newest")
    assert version.version == "1" or version.version == 1
    assert len(client.search_model_versions("name = '模型'")) == 1
    assert log_scores(run / "checkpoints" / "step-00000008", {"fgovd": {"hard": 0.25}}, data=[shards])
    scored = {m.key: m.value for m in models_of(run, tracker.run_id)["step-00000008"].metrics}
    assert scored["evaluation/fgovd.hard"] == 0.25
    contexts = {i.tags[0].value for i in client.get_run(tracker.run_id).inputs.dataset_inputs}
    assert "training" in contexts


def test_the_registered_export_embeds_text_and_images(run, tmp_path):
    tokenizer = small_tokenizer(tmp_path / "tokenizer")
    model = FGCLIP2.from_scratch(preset_config("tiny", tokenizer.vocab_size)).eval()
    export_model(model, tokenizer, run / "final", {})
    for upload in (True, False):
        folder = run.parent / f"run-{upload}"
        tracker = start_tracking(settings_of(Stage1Settings, f"tracking.upload_model={upload}"), folder)
        width = model.config.text_config.projection_size
        tracker.log_export(TrackedModel("export", run / "final", 1, width))
        tracker.end(timeout_seconds=120)
        assert tracker.lost == 0
        client = client_of(folder)
        experiment = client.get_run(tracker.run_id).info.experiment_id
        [made] = client.search_logged_models([experiment], filter_string=f"source_run_id = '{tracker.run_id}'")
        loaded = load_model(made.artifact_location)
        texts = loaded.predict(pandas.DataFrame({"text": ["a red cup", "红色的杯子"]}))
        assert texts.shape == (2, width) and abs((texts**2).sum(1) - 1).max() < 1e-4
        picture = tmp_path / "图.png"
        Image.new("RGB", (64, 48), "red").save(picture)
        images = loaded.predict(pandas.DataFrame({"image": [picture.read_bytes()]}))
        assert images.shape == (1, width)
        with pytest.raises(ValueError, match="either text or image"):
            ServedModel(model).predict(pandas.DataFrame({"x": [1]}))


def test_images_of_a_step_are_there_once_also_after_a_resume(run):
    for colour in ("red", "blue"):
        tracker = start_tracking(settings_of(), run, resume_step=None if colour == "red" else 1)
        tracker.log_images(2, {"boxes/en-1": Image.new("RGB", (300, 100), colour)})
        tracker.end()
        assert tracker.lost == 0, "a resume before the first metrics is up to date"
    stored = client_of(run).list_artifacts(tracker.run_id, "images")
    names = [item.path for item in stored]
    assert len(names) == 2 and all("boxes~en-1+step+2+timestamp+" in name for name in names)
    assert client_of(run).get_run(tracker.run_id).data.tags["mlflow.loggedImages"] == "True"
    with pytest.raises(ValueError, match="ASCII"):
        save_step_image(run, "图", 1, Image.new("RGB", (4, 4)))


def test_runs_of_a_study_stand_under_one_parent(run):
    parents = set()
    for seed in (0, 1):
        settings = settings_of(Stage1Settings, "tracking.group=种子 study's", f"train.seed={seed}")
        tracker = start_tracking(settings, run.parent / f"seed{seed}")
        tracker.end()
        parents.add(client_of(run).get_run(tracker.run_id).data.tags["mlflow.parentRunId"])
    assert len(parents) == 1
    assert client_of(run).get_run(parents.pop()).info.run_name == "种子 study's"


def test_a_run_says_where_it_is_shown_and_describes_itself(run, capfd):
    settings = settings_of(Stage2Settings, "tracking.description=第一次", "tracking.tags={note: 重要}")
    tracker = start_tracking(settings, run)
    tracker.end()
    printed = capfd.readouterr().out
    assert f"/runs/{tracker.run_id}?workflowType=machine_learning" in printed
    assert f"mlflow ui --backend-store-uri sqlite:///{run.parent / 'mlflow.db'}" in printed
    tags = client_of(run).get_run(tracker.run_id).data.tags
    assert tags["mlflow.note.content"].startswith("第一次\n\n**stage2**") and tags["note"] == "重要"
    assert tags["mlflow.source.name"] and tags["stage"] == "stage2"
    experiment = client_of(run).get_experiment_by_name("fine-grained-vlm")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_old_name_of_a_setting_is_answered_with_the_new_one():
    with pytest.raises(ValueError, match="tracking.continues"):
        load_settings(Stage1Settings, None, ["tracking.parent_run=runs/a"])


def test_a_store_without_the_experiment_gets_it_where_the_artifacts_lie(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    tracker = start_tracking(settings_of(), tmp_path / "run")
    tracker.end()
    location = client.get_experiment_by_name("fine-grained-vlm").artifact_location
    assert location.startswith((tmp_path / "mlflow-artifacts").as_uri())
