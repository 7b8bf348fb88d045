"""What a tracking store takes: names, lengths, and how much at once; MLflow's own store and Databricks' differ."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.tracking.databricks import is_databricks
from pipeline.tracking.interface import RefusedError
from pipeline.tracking.parameters import MAX_VALUE_LENGTH, shorten

METRICS_PER_BATCH = 1000  # mlflow.utils.validation, 3.17: the most that one log_batch takes
PARAMS_PER_BATCH = TAGS_PER_BATCH = 100
MAX_NAME_LENGTH = 250
MAX_TAG_LENGTH = 8000
FORBIDDEN_IN_NAMES = re.compile(r"[^/\w.\- ]")


@dataclass(frozen=True)
class Limits:
    """Of one kind of store."""

    parameter_bytes: int | None = None  # None: MAX_VALUE_LENGTH characters
    keeps_one_of_equal: bool = True  # a metric that is written twice stands there once

    def parameters(self, values: dict[str, str]) -> dict[str, str]:
        """Parameters under names, and cut to a length, that the store takes."""
        return {metric_name(name): self._cut(value) for name, value in values.items()}

    def _cut(self, value: str) -> str:
        if self.parameter_bytes is None:
            return shorten(value, MAX_VALUE_LENGTH)
        whole = value.encode("utf-8")
        if len(whole) <= self.parameter_bytes:
            return value
        mark = "…"
        kept = whole[: self.parameter_bytes - len(mark.encode("utf-8"))]
        return kept.decode("utf-8", errors="ignore") + mark


# docs.databricks.com/api/experiments: log-param takes 500 bytes; log-batch "appends" metrics and names no exception
DATABRICKS = Limits(parameter_bytes=500, keeps_one_of_equal=False)


def limits_of(uri: str) -> Limits:
    """Those of the store at an address."""
    return DATABRICKS if is_databricks(uri) else Limits()


def metric_name(name: str) -> str:
    """``name`` with what MLflow refuses replaced; letters of every script stay."""
    return FORBIDDEN_IN_NAMES.sub("_", name).strip("/")[:MAX_NAME_LENGTH]


def limited_tags(tags: dict[str, str]) -> dict[str, str]:
    """Tags under names, and cut to a length, that every store takes."""
    return {metric_name(name): shorten(str(value), MAX_TAG_LENGTH) for name, value in tags.items()}


def quoted(text: str) -> str:
    """``text`` as a value of a search, in quotes; MLflow's searches know no escapes.

    Raises:
        RefusedError: the text has both kinds of quotes.
    """
    if "'" in text and '"' in text:
        raise RefusedError(f"{text!r} has single and double quotes, which MLflow cannot search for; leave one kind out")
    mark = '"' if "'" in text else "'"
    return f"{mark}{text}{mark}"
