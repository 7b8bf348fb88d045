"""What a run was made of, kept in its checkpoints, and what a resume says of each difference.

Every difference is one of three: exact, and nothing is said; allowed, with a line that says what changes; or refused,
because the position in the data or the weights would silently mean something else. A refusal names both values and the
way out: put the old value back, begin another run from these weights, or name the setting in ``train.accept_changes``.

Exact, so not kept here: the number of processes, ZeRO's stage, workers, caches, logging, checkpoint settings.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.base.border import as_read_back
from pipeline.config import DataSettings, SettingsError, Stage1Settings, flatten
from pipeline.data.manifest import load_manifest

# The plan of the batches is a function of these: with another value step n has other samples than it had.
PLAN = (
    "train.seed",
    "train.global_batch_size",
    "data.patch_budgets",
    "data.clip_frames",
    "data.one_budget_per_batch",
    "data.window_shards",
    "data.source_weights",
    "data.language_weights",
    "data.keep_last_batch",
    "data.last_batch_multiple",
)
# Of the checkpoint's weights: its own model is loaded, and which of them there are and have moments was chosen.
MODEL = ("model.preset", "model.region_frames", "model.temporal_layers", "tune.")
# What changes from this step on, and how the line puts it.
ALLOWED = {
    "train.precision": "the arithmetic changes",
    "train.weights": "the weights compute in another type; those that are trained go on in float32",
    "train.epochs": "the schedule of the learning rate changes with the length of the run",
    "train.max_steps": "the schedule of the learning rate changes with the length of the run",
    "train.accumulation": "what the micro-batches of a step mean changes",
    "train.accumulation_steps": "the micro-batches change",
    "train.micro_batch_size": "the micro-batches change",
    "data.keep_aspect_ratio": "images are resized otherwise",
    "data.max_regions_per_image": "other regions are drawn",
    "data.max_negatives": "other negatives are drawn",
    "data.long_phrase_probability": "other phrases are drawn",
    "data.short_caption_prefix": "short captions are read otherwise",
}
ALLOWED_GROUPS = {
    "optimizer.": "the updates change",
    "data.augment.": "images are seen otherwise",
    "teacher.": "the loss changes",
    "global_loss.": "the loss changes",
    "region_loss.": "the losses change",
}
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")


def make_fingerprint(settings: Stage1Settings) -> dict[str, Any]:
    """Settings and digests of what the settings name. Reads the tokenizer and the manifests.

    Raises:
        OSError, IndexProblem: one of them cannot be read.
    """
    flat = flatten(settings)
    kept = {name: value for name, value in flat.items() if _rule(name) is not None}
    fingerprint = {
        "stage": "stage2" if settings.trains_regions else "stage1",
        "tokenizer": _tokenizer_digest(Path(settings.tokenizer.path)),
        "shards": _shards_digest(settings.data),
        "settings": kept,
    }
    return as_read_back(fingerprint)  # what is compared with it comes from a file


def compare_fingerprints(then: dict[str, Any], now: dict[str, Any], accepted: list[str], checkpoint: Path) -> list[str]:
    """Lines that say what a resume changes.

    Args:
        accepted: names in ``train.accept_changes``.

    Raises:
        SettingsError: a difference that is not allowed.
    """
    if not then:
        return [f"{checkpoint} does not say what its run was made of; tokenizer, shards and settings are not compared"]
    lines, refused = [], []
    for name, old, new, rule in _differences(then, now):
        what = f"{name} was {_short(old)} and is {_short(new)}"
        if rule is not None:
            lines.append(f"from here on {rule}: {what}")
        elif name in accepted:
            lines.append(f"accepted by train.accept_changes: {what}; samples may be seen again or left out this epoch")
        else:
            refused.append((name, what))
    if refused:
        names = ",".join(name for name, _ in refused)
        raise SettingsError(
            f"{checkpoint} is of another run: {'; '.join(what for _, what in refused)}. Put the old value back; or "
            "begin a new run from these weights (python -m pipeline.export, then model.start_from and another "
            f"train.run_folder); or go on all the same with 'train.accept_changes=[{names}]'"
        )
    return lines


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any, str | None]]:
    """``(name, old, new, rule)``; the rule is None for what is refused."""
    found: list[tuple[str, Any, Any, str | None]] = []
    for name, shown in (("stage", "stage"), ("tokenizer", "tokenizer.path"), ("shards", "data.shards")):
        if then.get(name) != now.get(name):
            found.append((shown, then.get(name), now.get(name), None))
    old, new = then.get("settings", {}), now["settings"]
    for name in new:
        if name in old and old[name] != new[name]:
            found.append((name, old[name], new[name], _rule(name) or None))
    return found


def _rule(name: str) -> str | None:
    """How an allowed difference is told; "" for a refused one; None for what is not compared."""
    if name in PLAN or name.startswith(MODEL):
        return ""
    if name in ALLOWED:
        return ALLOWED[name]
    return next((told for group, told in ALLOWED_GROUPS.items() if name.startswith(group)), None)


def _tokenizer_digest(folder: Path) -> str:
    for name in TOKENIZER_FILES:
        path = folder / name if folder.is_dir() else folder
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()
    raise FileNotFoundError(f"{folder} holds none of {', '.join(TOKENIZER_FILES)}; give tokenizer.path such a folder")


def _shards_digest(data: DataSettings) -> str:
    """Of the shards' contents, in order: equal for copies elsewhere, whatever they were counted with."""
    digest = hashlib.sha256()
    for folder in data.shards:
        # Tars that are streamed have no manifest; their names are all that is known of them.
        known = folder if data.streaming else load_manifest(folder, cache_folder=data.cache_folder).digest
        digest.update(known.encode("utf-8"))
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:24]}…{text[-12:]}"
