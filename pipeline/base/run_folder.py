"""The names in a run's folder, and the way to the folder from anything inside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.base.files import partial_path

SETTINGS = "settings.yaml"
VERSIONS = "versions.json"
METRICS = "metrics.jsonl"
TRACKING = "tracking.json"
CHECKPOINTS = "checkpoints"
FINAL = "final"
FAILURES = "failures"
STACKS = "stacks"
EVALUATION = "evaluation"
FIGURES = "figures"
MODEL_CONFIG = "config.json"
DRY_RUN = "dry-run"


class NoRunFolder(ValueError):
    """A path is neither a run's folder nor inside one."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what; nothing here touches the disk but :meth:`exists` and :meth:`containing`."""

    path: Path

    @classmethod
    def at(cls, path: str | Path) -> RunFolder:
        """The folder of a run that is, or will be, at ``path``."""
        return cls(Path(path))

    @classmethod
    def containing(cls, path: str | Path) -> RunFolder:
        """The run that ``path`` belongs to: its folder, or anything in it (a checkpoint, the export, a log).

        Raises:
            NoRunFolder: neither the path nor a folder above it holds settings.yaml.
        """
        path = Path(path)
        for folder in (path, *path.absolute().parents):
            if (folder / SETTINGS).is_file():
                return cls(folder)
        raise NoRunFolder(f"{path} holds no {SETTINGS}, nor does a folder above it; give the folder of a run")

    @property
    def settings(self) -> Path:
        """The settings as they were used, every value resolved."""
        return self.path / SETTINGS

    @property
    def versions(self) -> Path:
        """Git revision, packages and host of the newest start."""
        return self.path / VERSIONS

    @property
    def metrics(self) -> Path:
        """One line a logged step."""
        return self.path / METRICS

    @property
    def tracking(self) -> Path:
        """Which MLflow run this is, and where."""
        return self.path / TRACKING

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.path / CHECKPOINTS

    @property
    def final(self) -> Path:
        """The exported model of a finished run."""
        return self.path / FINAL

    @property
    def failures(self) -> Path:
        """One folder for each step that was not finite."""
        return self.path / FAILURES

    @property
    def stacks(self) -> Path:
        """Where every rank was when the run was ended for a hang."""
        return self.path / STACKS

    @property
    def evaluation(self) -> Path:
        """Results of evaluations of this run."""
        return self.path / EVALUATION

    @property
    def dry_run(self) -> Path:
        """Where a dry run writes: beside the folder, so on its disk; it is gone when the dry run has ended."""
        return partial_path(self.path.absolute(), DRY_RUN)

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.settings.is_file()
