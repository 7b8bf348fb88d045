"""Models of an MLflow run: a logged model for each kept checkpoint and for the export, with signature and metrics.

Everything is found again before it is made, and what was left half made is completed, so calling twice makes nothing
twice and leaves nothing out. A model's files are its MLmodel and, where the settings ask for it, its weights; otherwise
the folder in which the weights are is noted.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from pipeline.tracking.data_sets import DataSet
from pipeline.tracking.interface import TrackedModel
from pipeline.tracking.limits import metric_name, quoted
from pipeline.tracking.local_log import Entry
from pipeline.tracking.metric_names import grouped_metrics
from pipeline.tracking.store import Store

CHECKPOINT = "checkpoint"
EXPORT = "export"
MODEL_TYPE = "image-text encoder"
LOADER = "pipeline.tracking.served_model"
LOCATION_FILE = "location.json"
FOLDER_TAG, STEP_TAG = "folder", "step"


def sync_checkpoints(
    store: Store, checkpoints: Sequence[TrackedModel], entry: Entry | None, data: Sequence[DataSet]
) -> None:
    """Make the store's models of checkpoints those of ``checkpoints``.

    Args:
        entry: the newest metrics; they become those of the checkpoint of the same step.
        data: what the run trains on, linked with those metrics.
    """
    known = {model.name: model for model in run_models(store) if model.tags.get("kind") == CHECKPOINT}
    wanted, noted = {model.name for model in checkpoints}, _outputs(store)
    for model in checkpoints:
        made = _completed(store, known.get(model.name), model, CHECKPOINT, None, noted)
        if entry is not None and entry.step == model.step and not made.metrics:
            link_metrics(store, made.model_id, entry, data)
    for name, logged in known.items():
        if name not in wanted:
            store.client.delete_logged_model(logged.model_id)


def log_export(
    store: Store,
    model: TrackedModel,
    entry: Entry | None,
    data: Sequence[DataSet],
    *,
    upload: bool,
    register_as: str | None,
    alias: str,
) -> None:
    """The exported model; with ``register_as`` also a version of a registered model that ``alias`` points to."""
    known = [m for m in run_models(store) if m.tags.get("kind") == EXPORT and m.tags.get(STEP_TAG) == str(model.step)]
    made = _completed(store, known[0] if known else None, model, EXPORT, upload, _outputs(store))
    if entry is not None and not made.metrics:
        link_metrics(store, made.model_id, entry, data)
    if register_as:
        _register(store, made, register_as, alias)


def run_models(store: Store) -> list[LoggedModel]:
    """The models that the store has of this run."""
    experiment = store.client.get_run(store.run_id).info.experiment_id
    found: list[LoggedModel] = []
    token = None
    while True:
        page = store.client.search_logged_models(
            [experiment], filter_string=f"source_run_id = '{store.run_id}'", page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


def link_metrics(store: Store, model_id: str, entry: Entry, data: Sequence[DataSet]) -> None:
    """Note metrics of the run as the model's, on the first data set where there is one."""
    milliseconds = int(entry.time * 1000)
    where = {"dataset_name": data[0].name, "dataset_digest": data[0].digest} if data else {}
    rows = [
        Metric(metric_name(name), value, milliseconds, entry.step, model_id=model_id, run_id=store.run_id, **where)
        for name, value in grouped_metrics(entry.values).items()
        if store.takes(name)
    ]
    if rows:
        store.client.log_batch(store.run_id, metrics=rows)


def signature_of(width: int) -> ModelSignature:
    """Either column, text or image, gives one unit vector a row."""
    inputs = Schema([ColSpec("string", "text", required=False), ColSpec("binary", "image", required=False)])
    return ModelSignature(inputs, Schema([TensorSpec(np.dtype(np.float32), (-1, width), "embedding")]))


def _completed(
    store: Store, made: LoggedModel | None, model: TrackedModel, kind: str, upload: bool | None, noted: Container[str]
) -> LoggedModel:
    """The model with its files, and noted as an output of the run; ``made`` may lack either, or be None.

    Args:
        upload: None: a checkpoint, which only this project reads.
        noted: the models that are outputs already.
    """
    made = made or _create(store, model, kind, upload)
    if made.status != LoggedModelStatus.READY:
        _upload(store, made.model_id, model, upload)
        store.client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
    if made.model_id not in noted:
        store.client.log_outputs(store.run_id, [LoggedModelOutput(made.model_id, model.step)])
    return made


def _outputs(store: Store) -> set[str]:
    """The models that the store has as outputs of the run."""
    outputs = store.client.get_run(store.run_id).outputs
    return {output.model_id for output in (outputs.model_outputs if outputs else [])}


def _create(store: Store, model: TrackedModel, kind: str, upload: bool | None) -> LoggedModel:
    run = store.client.get_run(store.run_id)
    tags = {"kind": kind, STEP_TAG: str(model.step), FOLDER_TAG: str(model.folder.resolve())}
    if upload is None:
        tags["mlflow.model.isExternal"] = "true"
    return store.client.create_logged_model(
        run.info.experiment_id,
        name=model.name,
        source_run_id=store.run_id,
        tags=tags,
        params={name: str(value)[:250] for name, value in model.parameters.items()},
        model_type=MODEL_TYPE,
    )


def _upload(store: Store, model_id: str, model: TrackedModel, upload: bool | None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        description = Model(model_id=model_id, run_id=store.run_id, signature=signature_of(model.width))
        if upload is not None:
            _add_weights(folder / "model", model.folder, upload)
            description.add_flavor("python_function", loader_module=LOADER, data="model")
        description.save(str(folder / "MLmodel"))
        store.client.log_model_artifacts(model_id, temporary)


def _add_weights(target: Path, source: Path, upload: bool) -> None:
    target.mkdir(parents=True)
    card = source / "README.md"
    if upload:
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif card.is_file():
        shutil.copy(card, target)
    text = json.dumps({"folder": str(source.resolve()), "uploaded": upload}, ensure_ascii=False)
    (target / LOCATION_FILE).write_text(text, encoding="utf-8")


def _register(store: Store, model: LoggedModel, name: str, alias: str) -> None:
    client = store.client
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = [v for v in client.search_model_versions(f"name = {quoted(name)}") if v.source == model.artifact_location]
    version = (
        known[0]
        if known
        else client.create_model_version(name, model.artifact_location, store.run_id, model_id=model.model_id)
    )
    client.set_registered_model_alias(name, alias, version.version)
