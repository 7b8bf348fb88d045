"""What is different where the tracking store is Databricks: names, and where a run is shown.

Written from its documentation and from MLflow's client; no workspace was there to try it.
"""

from __future__ import annotations

import os
import re

from pipeline.config import SettingsError, TrackingSettings

SCHEME = "databricks"
LEVELS = re.compile(r"[^./\s]+\.[^./\s]+\.[^./\s]+")  # catalog.schema.model


def is_databricks(uri: str) -> bool:
    """Whether a tracking address is that of Databricks: ``databricks``, or ``databricks://profile``."""
    return uri == SCHEME or uri.startswith(f"{SCHEME}://")


def check_names(settings: TrackingSettings) -> None:
    """Say before the first step which names Databricks would refuse.

    Raises:
        SettingsError: the experiment is no path of a workspace, or the registered model has not three levels.
    """
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    if not settings.enabled or not is_databricks(uri):
        return
    if not settings.experiment.startswith("/"):
        raise SettingsError(
            f"tracking.experiment is {settings.experiment!r}; an experiment of Databricks is a path of the workspace: "
            f"set tracking.experiment=/Shared/{settings.experiment} or /Users/NAME/{settings.experiment}"
        )
    if settings.register_as is not None and not LEVELS.fullmatch(settings.register_as):
        raise SettingsError(
            f"tracking.register_as is {settings.register_as!r}; models of Unity Catalog have three levels: set "
            "tracking.register_as=catalog.schema.model"
        )


def workspace(uri: str) -> str:
    """The address of the workspace, from MLflow's own reading of DATABRICKS_HOST and ``~/.databrickscfg``.

    Raises:
        MlflowException: there are no credentials.
    """
    from mlflow.utils.databricks_utils import get_databricks_host_creds  # MLflow takes seconds to import

    return get_databricks_host_creds(uri).host.rstrip("/")
