"""Where the paths of settings lead, from whatever folder a program was started in."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.border import shown
from pipeline.base.provenance import PROJECT
from pipeline.config.files import SettingsError
from pipeline.config.groups import TrainSettings


def first_existing(path: str | Path, *folders: Path) -> Path:
    """``path`` as it stands if it exists, else below the first of ``folders`` that has it, else as it stands."""
    places = [Path(path), *(folder / path for folder in folders)]
    return next((place for place in places if place.exists()), Path(path))


def deepspeed_file(settings: TrainSettings) -> Path:
    """The file of ``train.deepspeed_config``: relative to this folder, or else to the project's.

    Raises:
        SettingsError: neither has it.
    """
    path = first_existing(settings.deepspeed_config, PROJECT)
    if not path.is_file():
        places = " or ".join(dict.fromkeys(map(str, (Path.cwd(), PROJECT))))
        raise SettingsError(
            f"train.deepspeed_config {shown(settings.deepspeed_config)} is not in {places}; "
            "launch/ has zero1.json to zero3.json"
        )
    return path
