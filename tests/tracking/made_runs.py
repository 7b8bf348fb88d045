"""Run folders without a training: settings, metrics and scores as a run leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import Stage2Settings, dump_settings, load_settings


def make_run(
    folder: Path,
    *settings: str,
    seed: int = 0,
    losses: Mapping[int, float] | None = None,
    scores: Mapping[str, object] | None = None,
) -> Path:
    """A run of stage 2 whose ``loss/total`` was logged at the steps of ``losses``."""
    folder.mkdir(parents=True)
    chosen = load_settings(Stage2Settings, None, [*settings, f"train.seed={seed}", f"train.run_folder={folder}"])
    (folder / "settings.yaml").write_text(dump_settings(chosen), encoding="utf-8")
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for step, loss in (losses or {1: 3.0, 2: 2.0}).items():
            values = {"loss/total": loss, "speed/samples_seen": 32.0 * step, "health/norm_image_min": 1.0}
            file.write(json.dumps({"step": step, "time": 1.7e9 + step, "values": values}) + "\n")
    if scores is not None:
        (folder / "scores.json").write_text(json.dumps(scores, ensure_ascii=False), encoding="utf-8")
    return folder
