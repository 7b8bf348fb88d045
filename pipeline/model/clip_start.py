"""Where the weights of an FG-CLIP 1 come from: a CLIP folder of transformers or open_clip, or an earlier run.

As start.py does for FG-CLIP 2: everything is compared by name and shape before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPVisionConfig

from .clip_configuration import KEEP_LEN, FGCLIP1Config, FGCLIP1TextConfig
from .configuration import stretched_length
from .folder import (
    CONFIG,
    OPEN_CLIP,
    OPEN_CLIP_CONFIG,
    StartError,
    check_depth,
    checked_temporal,
    checked_tower,
    is_open_clip,
    read_model_config,
    read_object,
    shown,
    stored_shapes,
    weight_files,
)
from .open_clip_start import open_clip_config, open_clip_shapes, open_clip_weights
from .start import (
    LONG_TABLES,
    REGION_SCALES,
    Shapes,
    add_copies,
    add_shared_parts,
    check_vocabulary,
    checked_weights,
    find_model,
    without_counters,
)

# What FG-CLIP 1 has and CLIP has not -> what it starts as a copy of.
COPIED_PROJECTIONS = {
    "longtext_head.": "text_projection.",
    "boxtext_head.": "text_projection.",
    "roi_projection.": "visual_projection.",
}
# Fields that only matter where weights are drawn at random.
UNREAD = frozenset({"initializer_range", "initializer_factor"})
TEXT_FIELDS = frozenset({*CLIPTextConfig.__annotations__, *FGCLIP1TextConfig.__annotations__}) - UNREAD
VISION_FIELDS = frozenset({*CLIPVisionConfig.__annotations__}) - UNREAD
OLD_END_ID = 2  # in configurations written before transformers 4.32: the largest id of a text is meant
MOST_SPREAD, LEAST_SPREAD = 10.0, 1e-3  # of pixels, where an image processor's file says what divides them


def clip_configuration_of(folder: str | Path, vocab_size: int | None = None) -> tuple[Path, FGCLIP1Config, bool]:
    """Where the model of ``folder`` lies, its configuration, and whether it is a CLIP.

    Args:
        folder: a run (its ``final/`` is taken), or a folder of FG-CLIP 1, of transformers' CLIP or of open_clip.
        vocab_size: the number of ids of the tokenizer that will be used with it; None: not checked.

    Raises:
        StartError: no model there, one of another kind, or one of another tokenizer.
    """
    found = find_model(folder)
    values = read_model_config(found)
    kind = shown(values.get("model_type"))
    if kind not in ("clip", "fgclip1", OPEN_CLIP):
        raise StartError(
            f"{found} holds a model of type {kind!r}; model.family=fgclip1 starts from clip, open_clip or fgclip1. For "
            "SigLIP 2 and FG-CLIP 2 set model.family=fgclip2"
        )
    fields = _of_open_clip(found) if kind == OPEN_CLIP else _of_transformers(found, values, kind == "clip")
    try:
        config = FGCLIP1Config(**fields)
    except ValueError as error:
        raise StartError(f"{found / (OPEN_CLIP_CONFIG if kind == OPEN_CLIP else CONFIG)}: {error}") from error
    layers = {"text": config.text_config.num_hidden_layers, "vision": config.vision_config.num_hidden_layers}
    check_depth(layers, stored_shapes(weight_files(found)), found)
    check_vocabulary(config.text_config, vocab_size, found)
    return found, config, kind != "fgclip1"


def _of_transformers(folder: Path, values: Mapping[str, Any], from_clip: bool) -> dict[str, Any]:
    """What FGCLIP1Config takes, of a config.json with ``values``."""
    file, images = folder / CONFIG, folder / "preprocessor_config.json"
    text = checked_tower(values.get("text_config") or {}, TEXT_FIELDS, f"{file}: text_config")
    vision = checked_tower(values.get("vision_config") or {}, VISION_FIELDS, f"{file}: vision_config")
    width = checked_tower(values, {"projection_dim"}, str(file)).get("projection_dim", 512)
    text |= _of_clip(text) if from_clip else {}
    vision |= _normalisation(read_object(images) if images.is_file() else {}, images, ("image_mean", "image_std"))
    temporal = {} if from_clip else checked_temporal(dict(values), str(file))
    return {"text_config": text, "vision_config": vision, "projection_dim": width, **temporal}


def _of_open_clip(folder: Path) -> dict[str, Any]:
    """What FGCLIP1Config takes, of an open_clip_config.json."""
    found, file = open_clip_config(folder), folder / OPEN_CLIP_CONFIG
    vision = found["vision"] | _normalisation(found["preprocessing"], file, ("mean", "std"))
    text = found["text"] | _of_clip(found["text"])
    return {"text_config": text, "vision_config": vision, "projection_dim": found["projection_dim"]}


def _of_clip(text: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a CLIP's text configuration lacks, or holds as older files had them."""
    found: dict[str, Any] = {"keep_len": KEEP_LEN}
    found["longtext_len"] = stretched_length(text.get("max_position_embeddings", 77), KEEP_LEN)
    if text.get("eos_token_id", 49407) == OLD_END_ID:
        rows = text.get("vocab_size", 49408)
        found |= {"eos_token_id": rows - 1, "bos_token_id": rows - 2}
    return found


def _normalisation(values: Mapping[str, Any], file: Path, names: tuple[str, str]) -> dict[str, list[float]]:
    """What pixels are normalised by, of the ``values`` in ``file`` under these names; {} where it does not say."""
    found = {}
    for field, name, least, most in (
        ("image_mean", names[0], 0.0, 1.0),
        ("image_std", names[1], LEAST_SPREAD, MOST_SPREAD),
    ):
        given = values.get(name)
        if given is None:
            continue
        fits = isinstance(given, list) and len(given) == 3
        if not fits or not all(isinstance(one, int | float) and least <= one <= most for one in given):
            raise StartError(
                f"{file}: {name} is {shown(repr(given))}; it must be three numbers from {least:g} to {most:g}"
            )
        found[field] = [float(one) for one in given]
    return found


def clip_weights(folder: Path, shapes: Shapes, config: FGCLIP1Config, from_clip: bool) -> dict[str, Tensor]:
    """The float32 weights of ``folder`` for a model whose parameters have ``shapes``.

    Raises:
        StartError: missing, unexpected or differently shaped weights.
    """
    added = (*COPIED_PROJECTIONS, *LONG_TABLES, *REGION_SCALES, "logit_bias")
    may_miss = [name for name in shapes if name.startswith(added)] if from_clip else []
    if is_open_clip(folder):
        weights = checked_weights(folder, shapes, may_miss, open_clip_shapes, open_clip_weights)
    else:
        weights = checked_weights(folder, shapes, may_miss, without_counters, without_counters)
    if from_clip:
        add_copies(weights, COPIED_PROJECTIONS)
        add_shared_parts(weights, config.text_config.keep_len)
        weights.setdefault("logit_bias", torch.tensor(0.0))
    return weights


def what_is_new_to_clip(folder: str | Path) -> str:
    """One line: what a start from ``folder`` takes, and what it has to make.

    Raises:
        StartError: as :func:`clip_configuration_of`.
    """
    found, config, from_clip = clip_configuration_of(folder)
    if not from_clip:
        return f"{found}: every weight is taken as it is"
    text = config.text_config
    copies = ", ".join(f"{new.rstrip('.')} is a copy of {old.rstrip('.')}" for new, old in COPIED_PROJECTIONS.items())
    return (
        f"{found}: both towers and their projections are taken, images are squares of "
        f"{config.vision_config.image_size} pixels; new: {copies}, the position tables for {text.longtext_len} tokens "
        f"are stretched from {text.max_position_embeddings}, the scales of the region losses start at 100"
    )
