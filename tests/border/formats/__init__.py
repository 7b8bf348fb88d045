"""The formats at the border: whole input of each, how it is damaged, and what of the project reads it."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.border.damage import Damage

# Format -> the module here that describes it; a module's imports take seconds, and not every run needs all.
MODULES = {
    "record": "shards",
    "tar": "shards",
    "clip_record": "shards",
    "clips": "shards",
    "index": "shards",
    "manifest": "shards",
    "manifest_columns": "shards",
    "image": "shards",
    "settings": "runs",
    "hostfile": "runs",
    "tracking": "runs",
    "model": "models",
    "clip": "models",
    "open_clip": "models",
    "tokenizer": "models",
    "instances": "annotations",
    "captions": "annotations",
    "fgovd": "annotations",
    "coco": "building",
    "table": "building",
    "build_state": "building",
    "provenance": "building",
    "finehard": "finehard",
    "checkpoint": "checkpoints",
    "server": "servers",
    "suite": "evaluating",
    "scenes": "evaluating",
    "lists": "evaluating",
    "videos": "videos",
    "tracks": "videos",
    "video_rows": "videos",
    "anomaly": "videos",
}


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        title: for the table of figures.
        make: writes whole input into an empty folder.
        damage: one damage of it, a function of the random numbers alone.
        read: what the project does with the folder; writes nowhere but below it.
        errors: what may be raised for input that is wrong; everything else is a finding.
        check: what is wrong with a result that came back, or None.
        bound_megabytes: how much the process may grow while it reads.
    """

    title: str
    make: Callable[[Path], None]
    damage: Callable[[random.Random, Path], Damage]
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]
    check: Callable[[Any], str | None] | None = None
    bound_megabytes: int = 256


def load_format(name: str) -> Format:
    """The format of a name in ``MODULES``."""
    module = importlib.import_module(f"tests.border.formats.{MODULES[name]}")
    return module.FORMATS[name]
