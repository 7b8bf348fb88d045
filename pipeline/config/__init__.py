"""Settings of a run: frozen, typed, read from YAML and dotted overrides, checked when they are made.

``load_settings(Stage1Settings, "stages/stage1.yaml", ["model.preset=base", "optimizer.peak_learning_rate=1e-5"])``
"""

from pipeline.config.augmentation import AugmentSettings
from pipeline.config.files import (
    RENAMED,
    SettingsError,
    as_overrides,
    dump_settings,
    flatten,
    load_settings,
    load_stage,
    read_saved_settings,
    read_saved_values,
    with_new_names,
)
from pipeline.config.group import Group
from pipeline.config.groups import (
    DataSettings,
    EvaluationSettings,
    GlobalLossSettings,
    LearningRates,
    OptimizerSettings,
    RegionLossSettings,
    Stage1Settings,
    Stage2Settings,
    TokenizerSettings,
    TrackingSettings,
    TrainSettings,
)
from pipeline.config.model import ModelSettings
from pipeline.config.tuning import TeacherSettings, TuneSettings

__all__ = [
    "RENAMED",
    "AugmentSettings",
    "DataSettings",
    "EvaluationSettings",
    "GlobalLossSettings",
    "Group",
    "LearningRates",
    "ModelSettings",
    "OptimizerSettings",
    "RegionLossSettings",
    "SettingsError",
    "Stage1Settings",
    "Stage2Settings",
    "TeacherSettings",
    "TokenizerSettings",
    "TrackingSettings",
    "TrainSettings",
    "TuneSettings",
    "as_overrides",
    "dump_settings",
    "flatten",
    "load_settings",
    "load_stage",
    "read_saved_settings",
    "read_saved_values",
    "with_new_names",
]
