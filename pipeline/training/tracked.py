"""What tracking is told of a run's models and data."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.constants import DATA_CARD, DATA_CARD_JSON
from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.folder import list_checkpoints, step_of
from pipeline.config import Stage1Settings
from pipeline.tracking.data_sets import training_sets
from pipeline.tracking.figures import draw_losses
from pipeline.tracking.interface import TrackedModel, Tracker
from pipeline.training.run import Run


def kept_models(run: Run) -> list[TrackedModel]:
    """The checkpoints that are on disk now."""
    folder = run.settings.train.run_folder
    return [_model(run, path.name, step_of(path), path) for path in list_checkpoints(folder)]


def describe_inputs(settings: Stage1Settings, folder: RunFolder, tracker: Tracker) -> None:
    """Data sets with their cards, settings and versions; once a start."""
    tracker.log_data(training_sets(settings.data.shards))
    cards = [Path(shards) / name for shards in settings.data.shards for name in (DATA_CARD, DATA_CARD_JSON)]
    for path in (folder.settings, folder.versions, *(card for card in cards if card.is_file())):
        tracker.log_artifact(path)


def describe_result(run: Run) -> None:
    """The exported model with its card, and the curves; once, at the end of a finished run."""
    folder = RunFolder.at(run.settings.train.run_folder)
    run.tracker.log_export(_model(run, "export", run.state.step, folder.final))
    run.tracker.log_artifact(folder.final / "README.md")
    run.tracker.log_figure("losses", draw_losses(folder.path))


def _model(run: Run, name: str, step: int, folder: Path) -> TrackedModel:
    config = run.engine.module.config
    parameters = {
        "stage": "stage2" if run.settings.trains_regions else "stage1",
        "width": str(config.text_config.projection_size),
        "vision_layers": str(config.vision_config.num_hidden_layers),
        "text_layers": str(config.text_config.num_hidden_layers),
        "samples_seen": str(run.state.samples_seen),
    }
    return TrackedModel(name, folder, step, config.text_config.projection_size, parameters)
