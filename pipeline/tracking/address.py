"""Which MLflow run belongs to a run's folder, and where its store is; nothing here opens the store."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter
from sqlalchemy import make_url

from pipeline.base.border import BorderError, read_bounded, validated
from pipeline.base.files import write_json
from pipeline.base.run_folder import RunFolder
from pipeline.config import Stage1Settings

SQLITE = "sqlite:///"
ENCODED = {"%": "%25", "?": "%3F"}  # what SQLAlchemy takes for an escape, or for the beginning of a query
MAX_ADDRESS = 4096  # characters of an address or a name in tracking.json
UI_PORT = 5000  # mlflow ui's default


@dataclass(frozen=True)
class RunAddress:
    """Which store and experiment a run belongs to, and under which name."""

    uri: str
    experiment: str
    artifact_location: str | None  # None: the server's choice
    run_name: str


def sqlite_uri(path: Path) -> str:
    """The address of a database file, whatever its folder is called.

    Raises:
        ValueError: a name with % or ? and a SQLAlchemy before 2.1, which reads no escapes.
    """
    text = str(path)
    if any(letter in text for letter in ENCODED):
        text = "".join(ENCODED.get(letter, letter) for letter in text)
        if make_url(SQLITE + text).database != str(path):
            raise ValueError(f"{path} has % or ? in its name, which this SQLAlchemy cannot open; install 2.1 or later")
    return SQLITE + text


def sqlite_path(uri: str) -> Path | None:
    """The database file of a sqlite address, else None."""
    if not uri.startswith(SQLITE):
        return None
    return Path(make_url(uri).database or "").resolve()


def run_address(settings: Stage1Settings, run_folder: str | Path) -> RunAddress:
    """Where a run is tracked: its own setting, else what MLFLOW_TRACKING_URI says, else sqlite beside the run."""
    folder = Path(run_folder).resolve()
    uri = settings.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(folder.parent / "mlflow.db")
    path = sqlite_path(uri)
    # without a location of its own an experiment's artifacts land in whatever folder the process was started from
    location = (path.parent / "mlflow-artifacts" / settings.tracking.experiment).as_uri() if path else None
    return RunAddress(uri, settings.tracking.experiment, location, settings.tracking.run_name or folder.name)


def save_run(run_folder: str | Path, address: RunAddress, run_id: str | None, registration: str | None = None) -> None:
    """Write tracking.json, from which evaluation, later stages and sync find the run."""
    record = {"run_id": run_id} | asdict(address) | ({"registration": registration} if registration else {})
    write_json(RunFolder.at(run_folder).tracking, record)


@dataclass(frozen=True)
class _Record:
    """What tracking.json holds."""

    run_id: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")] | None
    uri: Annotated[str, Field(min_length=1, max_length=MAX_ADDRESS)]
    experiment: Annotated[str, Field(min_length=1, max_length=MAX_ADDRESS)]
    artifact_location: Annotated[str, Field(max_length=MAX_ADDRESS)] | None
    run_name: Annotated[str, Field(max_length=MAX_ADDRESS)]
    registration: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None


_RECORD: TypeAdapter[_Record] = TypeAdapter(_Record)


def find_run(folder: str | Path) -> tuple[Path, str | None, RunAddress] | None:
    """The run folder that ``folder`` is or lies in (as its final/ or a checkpoint), its MLflow run and where that is.

    None where no tracking.json is found; the run's id is None when no store ever answered.

    Raises:
        ValueError: tracking.json is damaged.
    """
    folder = Path(folder).resolve()
    for candidate in (folder, *list(folder.parents)[:2]):
        if RunFolder.at(candidate).tracking.is_file():
            record = _read_record(candidate)
            address = RunAddress(record.uri, record.experiment, record.artifact_location, record.run_name)
            return candidate, record.run_id, address
    return None


def find_registration(run_folder: str | Path) -> str | None:
    """The name under which the run of this very folder was being registered, if it was."""
    return _read_record(Path(run_folder)).registration if RunFolder.at(run_folder).tracking.is_file() else None


def _read_record(folder: Path) -> _Record:
    path = RunFolder.at(folder).tracking
    try:
        return validated(_RECORD, read_bounded(path), "it does not fit")
    except BorderError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and the next resume begins a new run") from error


def lineage_tags(settings: Stage1Settings) -> dict[str, str]:
    """Tags that name the run this one goes on from: the one in the settings, else the one whose weights it starts from.

    Not MLflow's parent: stage 2 is no part of stage 1, and MLflow's page would fold it away under it.
    """
    folder = settings.tracking.continues or settings.model.start_from
    found = find_run(folder) if folder else None
    if found is None:
        return {}
    tags = {"continues.run_folder": str(found[0])}
    return tags | ({"continues.run_id": found[1]} if found[1] else {})


def page_of(
    address: RunAddress, experiment_id: str, run_id: str, workspace: str | None = None
) -> tuple[str | None, str]:
    """The command that shows a store (None for a server, which is up), and the address of the run's page.

    Without ``workflowType`` MLflow opens an experiment on its page for generative models, which is empty.

    Args:
        workspace: of Databricks, whose pages have addresses of their own.
    """
    if workspace is not None:
        return None, f"{workspace}/ml/experiments/{experiment_id}/runs/{run_id}"
    local = sqlite_path(address.uri) is not None
    server = f"http://127.0.0.1:{UI_PORT}" if local else address.uri.rstrip("/")
    page = f"{server}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
    return (f"mlflow ui --backend-store-uri {address.uri}" if local else None), page
