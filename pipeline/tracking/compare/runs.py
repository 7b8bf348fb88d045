"""What a comparison needs of a run, read from its folder or from MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.border import one_line, read_object
from pipeline.base.run_folder import CHECKPOINTS, NoRunFolder, RunFolder
from pipeline.checkpoint.record import CheckpointError, read_record
from pipeline.config import SettingsError, read_saved_settings, read_saved_values
from pipeline.data.manifest import IndexProblem, load_manifest
from pipeline.drawing.sampling import AXES, Curves
from pipeline.tracking.data_sets import DIGEST_LENGTH
from pipeline.tracking.local_log import read_curves
from pipeline.tracking.metric_names import is_first
from pipeline.tracking.parameters import settings_as_text, value_as_text
from pipeline.tracking.scores import read_scores

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SEED = "train.seed"


@dataclass
class RunView:
    """One run. Settings and versions are texts by their full names."""

    name: str
    place: str  # its folder, or its MLflow id
    settings: dict[str, str]
    curves: Curves
    scores: dict[str, float]
    versions: dict[str, str]
    data: dict[str, str] = field(default_factory=dict)  # "training" and the like -> digest of what was read
    known_metrics: frozenset[str] = frozenset()  # logged, whether their curves were read or not

    @property
    def seed(self) -> str | None:
        """The seed as text; None where the run does not say."""
        return self.settings.get(SEED)

    @property
    def last_step(self) -> int | None:
        """The highest logged step; None without curves."""
        return max((int(steps[-1]) for steps, _ in self.curves.values() if len(steps)), default=None)


def runs_of_folder(folder: Path) -> list[RunView]:
    """The run of a folder (or of its final/, or of a checkpoint), or every run directly below a folder of runs.

    Raises:
        ValueError: there is none.
    """
    try:
        return [_from_folder(RunFolder.containing(folder.resolve()))]
    except NoRunFolder:
        found = [RunFolder.at(below) for below in sorted(folder.iterdir()) if RunFolder.at(below).exists()]
        if not found:
            raise
        return [_from_folder(one) for one in found]


def read_settings(path: Path) -> dict[str, str]:
    """Settings of a run by their full names, as they are named in MLflow; those of another version as they stand."""
    try:
        return settings_as_text(read_saved_settings(path))
    except SettingsError:
        return _flat(read_saved_values(path))


def _from_folder(run: RunFolder) -> RunView:
    settings = read_settings(run.settings)
    curves = read_curves(run.path) if run.metrics.is_file() else {}
    facts = read_object(run.versions) if run.versions.is_file() else {}
    scores = read_scores(run.path)
    return RunView(
        run.path.name, str(run.path), settings, curves, scores, _flat(facts), _data_of(run), frozenset(curves)
    )


def _data_of(run: RunFolder) -> dict[str, str]:
    """Digests of the training data: as the newest checkpoint names it, and as it is on disk now."""
    found = {}
    for checkpoint in sorted(run.path.glob(f"{CHECKPOINTS}/step-*"), reverse=True)[:1]:
        try:
            digest = read_record(checkpoint).fingerprint.get("shards")
        except CheckpointError:
            continue
        if isinstance(digest, str):
            found["training, at the last checkpoint"] = digest[:DIGEST_LENGTH]
    shards = (read_saved_values(run.settings).get("data") or {}).get("shards") or []
    try:
        digests = [load_manifest(str(folder)).digest[:DIGEST_LENGTH] for folder in shards]
    except (IndexProblem, OSError):  # shards that were moved since say nothing about the run
        return found
    return found | ({"training": " ".join(sorted(digests))} if digests else {})


def runs_of_store(run_ids: Sequence[str], uri: str | None, wanted: Sequence[str] | None) -> list[RunView]:
    """Runs of an MLflow store.

    Args:
        wanted: metrics whose curves are read; None: all. A curve is one request of the store, so few are quicker.

    Raises:
        ValueError: the store does not answer, or knows no such run.
    """
    from mlflow.exceptions import MlflowException  # here, because MLflow takes seconds to import
    from mlflow.tracking import MlflowClient

    from pipeline.tracking.store import quieten_mlflow

    quieten_mlflow()
    views = []
    for run_id in run_ids:
        try:
            views.append(_from_store(MlflowClient(uri), run_id, wanted))
        except MlflowException as error:
            raise ValueError(
                f"{run_id} is no folder, and the MLflow store {uri or address_in_words()} says: "
                f"{one_line(error)}; give a run's folder, or its id and --uri"
            ) from error
    return views


def _from_store(client: MlflowClient, run_id: str, wanted: Sequence[str] | None) -> RunView:
    run = client.get_run(run_id)
    curves, scores = {}, {}
    for name, value in run.data.metrics.items():
        if name.startswith("evaluation/"):
            scores[name.removeprefix("evaluation/").replace(".", "/")] = value
        elif wanted is None or name in wanted or name in AXES.values() or is_first(name):
            points = sorted(client.get_metric_history(run_id, name), key=lambda point: (point.step, point.timestamp))
            curves[name] = ([point.step for point in points], [point.value for point in points])
    versions = {n.removeprefix("version."): v for n, v in run.data.tags.items() if n.startswith("version.")}
    data: dict[str, list[str]] = {}
    for one in run.inputs.dataset_inputs if run.inputs else []:
        context = next((tag.value for tag in one.tags if tag.key == "mlflow.data.context"), "training")
        data.setdefault(context, []).append(one.dataset.digest)
    return RunView(
        run.info.run_name or run_id[:8],
        run_id,
        dict(run.data.params),
        curves,
        scores,
        versions,
        {context: " ".join(sorted(digests)) for context, digests in data.items()},
        frozenset(name for name in run.data.metrics if not name.startswith("evaluation/")),
    )


def address_in_words() -> str:
    """The store that is asked where none is named."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "of MLFLOW_TRACKING_URI (not set)"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value_as_text(value)}
        )
    return flat
