"""What a step is, and what it is told about the shard in hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_tools.execution.journal import Journal
from data_tools.execution.shards import Drop, Record


class Shard:
    """What a step is told about the shard in hand: its name, its journal, and where to count."""

    def __init__(self, name: str, journal: Journal, work_folder: Path) -> None:
        self.name, self.journal, self.work_folder = name, journal, work_folder
        self.counts: Counter[str] = Counter()
        self.failed: dict[str, str] = {}

    def count(self, what: str, number: int = 1) -> None:
        """Count something for the shard's report, as ``negatives_synonym`` or ``boxes_too_small``."""
        self.counts[what] += number

    def fail(self, key: str, why: str) -> None:
        """The sample goes on without what this step would add; ``--retry-failed`` tries it again."""
        self.failed[key] = why


class Step:
    """Base of all steps. ``name`` and ``version`` go into provenance: a change of results is a new version."""

    name = ""
    version = "1"
    batch_size = 1  # records handed to ``apply`` at once

    def settings(self) -> dict[str, Any]:
        """Everything that the results depend on, as JSON values; not addresses, limits or numbers of workers."""
        return {}

    def open(self, worker: int) -> None:
        """Load models; called once in each worker, which has the number ``worker`` on its machine."""

    def apply(self, records: list[Record], shard: Shard) -> list[Record | Drop]:
        """One result for each record, in their order."""
        raise NotImplementedError

    def close(self) -> None:
        """Called when a worker has no more shards."""


class FunctionStep(Step):
    """A step made of ``function(record) -> Record | Drop``, which must be picklable (a module's function)."""

    def __init__(
        self,
        name: str,
        version: str,
        function: Callable[[Record], Record | Drop],
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.version, self.function, self._settings = name, version, function, settings or {}

    def settings(self) -> dict[str, Any]:
        return self._settings

    def apply(self, records: list[Record], shard: Shard) -> list[Record | Drop]:
        return [self.function(record) for record in records]
