"""What can be known to stop a run before it has a folder: files, names and settings that do not fit together."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.border import shown
from pipeline.base.run_folder import RunFolder
from pipeline.config import SettingsError, Stage1Settings
from pipeline.data.indexed import check_members
from pipeline.data.manifest import IndexProblem, load_manifest, load_manifests
from pipeline.data.plan import Plan
from pipeline.data.tokenizer import TokenizerError, load_tokenizer
from pipeline.evaluation.registry import find_task
from pipeline.evaluation.results import EvaluationError
from pipeline.export.folder import ExportError, check_export_folder
from pipeline.model import PRESETS
from pipeline.model.clip_configuration import CLIP_PRESETS
from pipeline.model.start import StartError
from pipeline.tracking.databricks import check_names
from pipeline.training.engine import deepspeed_config
from pipeline.training.starting import check_model


def check_inputs(settings: Stage1Settings) -> None:
    """Look at everything that the settings name; nothing is written.

    Raises:
        SettingsError: with the setting, its value and the remedy.
        OSError: a file cannot be read.
    """
    check_run_folder(settings)
    deepspeed_config(settings.train, settings.optimizer.gradient_clip_norm, world_size=1)
    check_evaluation(settings)
    check_names(settings.tracking)
    is_new = not RunFolder.at(settings.train.run_folder).exists()
    start = settings.model.start_from
    try:
        tokenizer = load_tokenizer(settings.tokenizer.path)
        known = CLIP_PRESETS if settings.model.family == "fgclip1" else PRESETS
        if not start and settings.model.preset not in known:
            raise SettingsError(f"model.preset is {settings.model.preset!r}; it must be one of {', '.join(known)}")
        if is_new:  # a resume reads its checkpoint
            check_model(settings, tokenizer)
        check_shards(settings)
    except (TokenizerError, StartError, IndexProblem, FileNotFoundError) as error:
        raise SettingsError(str(error)) from error


def check_shards(settings: Stage1Settings) -> None:
    """Read the manifests of local shards; a remote store may be away for a while, and the loader waits for it.

    Raises:
        IndexProblem, FileNotFoundError: no shards there, or a loss with a weight would have no members in them, or no
            batch can be filled.
    """
    data = settings.data
    folders = [] if data.streaming else data.shards
    local = [folder for folder in folders if "://" not in folder]
    manifests = load_manifests(local, data)
    if len(local) == len(folders) and folders:
        if settings.trains_regions:
            check_members(manifests, settings.losses_of_negatives)
        Plan(manifests, data, settings.train.seed, settings.train.global_batch_size)
    for folder in settings.evaluation.shards:
        if "://" not in folder:
            load_manifest(folder)


def check_run_folder(settings: Stage1Settings) -> None:
    """Say before the first step what would stop the last one: a name or a folder that the run cannot be written to.

    Raises:
        SettingsError: the path is not UTF-8, or its ``final`` holds something else than an export.
    """
    folder = RunFolder.at(settings.train.run_folder)
    try:
        str(folder.path.absolute()).encode("utf-8")
    except UnicodeEncodeError as error:
        raise SettingsError(
            f"train.run_folder is {shown(folder.path.absolute())}, which is not UTF-8; records and tracking could not "
            "name it: give a folder whose whole path is"
        ) from error
    try:
        check_export_folder(folder.final)
    except ExportError as error:
        raise SettingsError(f"train.run_folder: {error}; the trained model goes there") from error


def check_evaluation(settings: Stage1Settings) -> None:
    """Raise SettingsError where evaluation beside training is asked for and cannot be done."""
    chosen = settings.evaluation
    if chosen.pictures_every_steps is not None and not chosen.data:
        raise SettingsError(
            f"evaluation.pictures_every_steps is {chosen.pictures_every_steps}, but evaluation.data is {chosen.data}; "
            "name a folder of shards, or set evaluation.pictures_every_steps=null"
        )
    if chosen.every_steps is None:
        if settings.train.keep_best:
            raise SettingsError(
                f"train.keep_best is {settings.train.keep_best}, but evaluation.every_steps is null; set it too"
            )
        return
    if not (chosen.tasks and chosen.data) and not chosen.shards:
        raise SettingsError(
            f"evaluation.every_steps is {chosen.every_steps}, but evaluation.tasks is {chosen.tasks}, evaluation.data "
            f"{chosen.data} and evaluation.shards {chosen.shards}; name tasks and a folder, or held-out shards, or set "
            "evaluation.every_steps=null"
        )
    for task in chosen.tasks:
        try:
            find_task(task)
        except EvaluationError as error:
            raise SettingsError(f"evaluation.tasks: {error}") from error
    if chosen.data and not Path(chosen.data).exists():
        raise SettingsError(f"evaluation.data is {chosen.data}, which does not exist; give the evaluation set's folder")
