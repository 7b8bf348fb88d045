"""Where weights come from: a SigLIP or SigLIP 2 folder, an FG-CLIP 2 folder of either side, or an earlier run.

Everything is compared by name and shape before anything is loaded, and a refusal lists both. ``FGCLIP2.start_from``
makes the model of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import Siglip2TextConfig, Siglip2VisionConfig

from .configuration import START_REGION_SCALE, FGCLIP2Config, FGCLIP2TextConfig, FGCLIP2VisionConfig, stretched_length
from .folder import (
    CONFIG,
    OPEN_CLIP,
    StartError,
    check_depth,
    checked_temporal,
    checked_tower,
    is_open_clip,
    read_model_config,
    shown,
    stored_shapes,
    weight_files,
)

T = TypeVar("T")
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]  # of weights, by name
KEEP_LEN = 20  # positions that short and long texts share, where the checkpoint does not say (Long-CLIP)
LISTED = 12  # names listed in an error before the rest is only counted
LONG_TABLES = (
    "text_model.embeddings.position_embedding_ori.weight",
    "text_model.embeddings.position_embedding_res.weight",
)
# What FG-CLIP 2 has and SigLIP 2 has not -> what it starts as a copy of.
COPIED_HEADS = {
    "longtext_head.": "text_model.head.",
    "boxtext_head.": "text_model.head.",
    "dense_feature_head.": "vision_model.head.",
}
TEXT_FIELDS = frozenset({*Siglip2TextConfig.__annotations__, *FGCLIP2TextConfig.__annotations__})
VISION_FIELDS = frozenset({*Siglip2VisionConfig.__annotations__, *FGCLIP2VisionConfig.__annotations__})
LOAD_ERRORS = (SafetensorError, UnpicklingError, RuntimeError, OSError, ValueError, KeyError, EOFError, TypeError)
PATCHES = "vision_model.embeddings.patch_embedding.weight"
COUNTERS = (".position_ids",)  # numbers 0, 1, 2 … that older files hold beside the weights
REGION_SCALES = ("logit_scale_finegraind", "logit_scale_hardneg")


def configuration_of(
    folder: str | Path, vocab_size: int | None = None, config: FGCLIP2Config | None = None
) -> tuple[Path, FGCLIP2Config, bool]:
    """Where the model of ``folder`` lies, its configuration, and whether it is a SigLIP 2.

    Args:
        folder: a run (its ``final/`` is taken), or a Hugging Face folder of FG-CLIP 2 or SigLIP 2 (NaFlex).
        vocab_size: the number of ids of the tokenizer that will be used with it; None: not checked.
        config: for a folder of weights without config.json.

    Raises:
        StartError: no model there, or one of another tokenizer.
    """
    found = find_model(folder, config is not None)
    config, from_siglip = read_config(found, config)
    check_vocabulary(config.text_config, vocab_size, found)
    return found, config, from_siglip


def check_vocabulary(text: Any, vocab_size: int | None, folder: Path) -> None:
    """Raise StartError where the model of ``folder``, of text configuration ``text``, has not ``vocab_size`` ids."""
    rows = text.vocab_size
    if vocab_size is not None and vocab_size != rows:
        raise StartError(
            f"the tokenizer has {vocab_size} ids but {folder} was trained with {rows} "
            f"(text_model.embeddings.token_embedding.weight [{rows}, {text.hidden_size}]); "
            "use the checkpoint's own tokenizer, or start from scratch with this one"
        )


def starting_weights(folder: Path, shapes: Shapes, config: FGCLIP2Config, from_siglip: bool) -> dict[str, Tensor]:
    """The float32 weights of ``folder`` for a model whose parameters have ``shapes``.

    Raises:
        StartError: missing, unexpected or differently shaped weights.
    """
    made = [name for name in shapes if name.startswith((*COPIED_HEADS, *LONG_TABLES, *REGION_SCALES))]
    weights = checked_weights(folder, shapes, made if from_siglip else [], patch_shapes, patch_weights)
    if from_siglip:
        add_copies(weights, COPIED_HEADS)
        add_shared_parts(weights, config.text_config.keep_len)
    return weights


def checked_weights(
    folder: Path,
    shapes: Shapes,
    may_miss: list[str],
    shapes_as: Callable[[Shapes], dict[str, tuple[int, ...]]],
    weights_as: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """The float32 weights of ``folder``, compared with ``shapes`` before and after they are read.

    Args:
        may_miss: names that the folder need not have.
        shapes_as, weights_as: what the folder holds, in the form that the model has it.

    Raises:
        StartError: missing, unexpected or differently shaped weights.
    """
    files = weight_files(folder)
    if not files:
        raise StartError(f"{folder} has a config.json but no weights; download model.safetensors as well")
    stored = stored_shapes(files)
    if stored is not None:  # before a byte of the weights is read
        check_shapes(shapes, shapes_as(stored), may_miss, folder)
    weights = weights_as({name: weight.float() for name, weight in read_weights(folder, files).items()})
    check_shapes(shapes, {name: tuple(weight.shape) for name, weight in weights.items()}, may_miss, folder)
    for name in weights.keys() & shapes.keys():
        # both forms of a scalar are in circulation: checkpoints of DeepSpeed hold one row
        weights[name] = weights[name].reshape(shapes[name])
    return weights


def find_model(folder: str | Path, without_config: bool = False) -> Path:
    """The folder that holds the model: ``folder`` itself or its ``final``."""
    folder = Path(folder)
    for candidate in (folder, folder / "final"):
        has_config = (candidate / CONFIG).is_file() or is_open_clip(candidate)
        if has_config or (without_config and weight_files(candidate)):
            return candidate
    if not folder.is_dir():
        raise StartError(f"{folder} does not exist; give a local folder: a run, an FG-CLIP 2 or a SigLIP 2 checkpoint")
    if (folder / "checkpoints").is_dir():
        raise StartError(
            f"{folder} is a run that has not ended: it has checkpoints but no final folder; "
            f"make one of them with `python -m pipeline.export {folder} --out DIR` and give DIR"
        )
    raise StartError(f"{folder} holds no {CONFIG}; give a run, an FG-CLIP 2 or a SigLIP 2 checkpoint's folder")


def read_config(folder: Path, config: FGCLIP2Config | None) -> tuple[FGCLIP2Config, bool]:
    """The configuration of a folder, and whether its model is a SigLIP 2."""
    if config is not None and not (folder / CONFIG).is_file():
        return config, False
    values, file = read_model_config(folder), f"{folder}/{CONFIG}"
    kind, text = shown(values.get("model_type")), values.get("text_config")
    if kind == OPEN_CLIP:
        raise StartError(f"{folder} holds a CLIP of open_clip, which starts with model.family=fgclip1")
    if not isinstance(text, dict) or not isinstance(values.get("vision_config"), dict):
        raise StartError(f"{file} is of model type {kind!r} without text_config and vision_config")
    from_siglip = kind in ("siglip2", "siglip")
    is_ours = kind.startswith("fgclip2") or ("longtext_len" in text and not kind.startswith("fgclip1"))
    if not from_siglip and not is_ours:
        raise StartError(
            f"{folder} holds a model of type {kind!r}; a start needs siglip2 (the NaFlex checkpoints), siglip (those "
            "of one resolution) or fgclip2; a CLIP starts with model.family=fgclip1"
        )
    text = checked_tower(text, TEXT_FIELDS, f"{file}: text_config")
    vision = checked_tower(values["vision_config"], VISION_FIELDS, f"{file}: vision_config")
    if kind == "siglip":
        square = checked_tower(values["vision_config"], {"image_size"}, f"{file}: vision_config")
        vision["num_patches"] = (square.get("image_size", 224) // vision.get("patch_size", 16)) ** 2
    if from_siglip:
        # Written-out files leave defaults out, and the defaults of the two configurations are the same.
        text = {"keep_len": KEEP_LEN, **text}
        text["longtext_len"] = stretched_length(text.get("max_position_embeddings", 64), text["keep_len"])
    temporal = {} if from_siglip else checked_temporal(values, file)
    try:
        made = FGCLIP2Config(text_config=text, vision_config=vision, **temporal)
    except ValueError as error:
        raise StartError(f"{file}: {error}") from error
    layers = {"text": made.text_config.num_hidden_layers, "vision": made.vision_config.num_hidden_layers}
    check_depth(layers, stored_shapes(weight_files(folder)), folder)
    return made, from_siglip


def read_weights(folder: Path, files: list[Path]) -> dict[str, Tensor]:
    """Every tensor of a folder by name. Pickled files are read as tensors only, never run."""
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            loaded = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        except LOAD_ERRORS as error:
            raise StartError(f"{file} does not load ({shown(error)}); download it again") from error
        if not isinstance(loaded, dict) or not all(isinstance(weight, Tensor) for weight in loaded.values()):
            raise StartError(f"{file} holds no dictionary of tensors; it is of another kind")
        weights.update({str(name): weight for name, weight in loaded.items()})
    return weights


def check_shapes(shapes: Shapes, stored: Shapes, may_miss: list[str], folder: Path) -> None:
    """Raise StartError where tensors of ``stored`` shapes are not a model's of ``shapes``; scalars may be [1]."""
    scalar = ((), (1,))
    optional = set(may_miss)
    missing = [f"{n} {list(s)}" for n, s in shapes.items() if n not in stored and n not in optional]
    wrong = [
        f"{n} is {list(stored[n])}, the model has {list(s)}"
        for n, s in shapes.items()
        if n in stored and stored[n] != s and not (s in scalar and stored[n] in scalar)
    ]
    unexpected = [f"{shown(n)} {list(s)}" for n, s in stored.items() if n not in shapes]
    problems = []
    for title, names, remedy in (
        ("of another shape", wrong, "the folder's config.json (or the preset) is of another size than its weights"),
        ("missing", missing, "give a complete FG-CLIP 2 checkpoint, or start from a SigLIP 2 folder"),
        ("unexpected", unexpected, "this is another kind of model"),
    ):
        if names:
            rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            problems.append(f"{len(names)} {title} ({remedy}): {', '.join(names[:LISTED])}{rest}")
    if problems:
        raise StartError(f"{folder} does not fit: {'; '.join(problems)}")


def without_counters(named: Mapping[str, T]) -> dict[str, T]:
    """What is not a table of positions' numbers, which older files hold."""
    return {name: value for name, value in named.items() if not name.endswith(COUNTERS)}


def patch_shapes(stored: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes after :func:`patch_weights`."""
    found = without_counters(stored)
    shape = found.get(PATCHES, ())
    if len(shape) == 4:
        found[PATCHES] = (shape[0], shape[1] * shape[2] * shape[3])
    return found


def patch_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a tower of one resolution as those of NaFlex, which cuts patches before and not by a convolution.

    [D, 3, p, p] -> [D, p p 3]: a patch is its lines, each of pixels, each of three colours. Everything else has one
    form in both; other weights are returned as they are.
    """
    found = without_counters(weights)
    if PATCHES in found and found[PATCHES].ndim == 4:
        found[PATCHES] = found[PATCHES].permute(0, 2, 3, 1).flatten(1).contiguous()
    return found


def what_is_new(folder: str | Path) -> str:
    """One line: what a start from ``folder`` takes, and what it has to make.

    Raises:
        StartError: as :func:`configuration_of`.
    """
    found, config, from_siglip = configuration_of(folder)
    if not from_siglip:
        return f"{found}: every weight is taken as it is"
    text, side = config.text_config, round(config.vision_config.num_patches**0.5)
    copies = ", ".join(f"{new.rstrip('.')} is a copy of {old.rstrip('.')}" for new, old in COPIED_HEADS.items())
    return (
        f"{found}: both towers and their heads are taken, positions of {side} x {side} patches are resized to each "
        f"image's grid; new: {copies}, the position tables for {text.longtext_len} tokens are stretched from "
        f"{text.max_position_embeddings}, the scales of the region losses start at 100"
    )


def add_copies(weights: dict[str, Tensor], copied: Mapping[str, str]) -> None:
    """Make heads that a start lacks as copies; ``copied``: beginnings of names -> those of their originals."""
    for target, source in copied.items():
        for name in [n for n in weights if n.startswith(source)]:
            weights.setdefault(target + name.removeprefix(source), weights[name].clone())


def add_shared_parts(weights: dict[str, Tensor], keep_len: int) -> None:
    """Make what a start of either family lacks: stretched tables, scales of the region losses."""
    table = weights["text_model.embeddings.position_embedding.weight"]
    for name in LONG_TABLES:
        weights.setdefault(name, stretch_table(table, keep_len))
    for name in REGION_SCALES:
        weights.setdefault(name, torch.tensor(START_REGION_SCALE))


def stretch_table(table: Tensor, keep_len: int) -> Tensor:
    """[L, D] -> [4 L - 3 keep_len, D]: the first ``keep_len`` rows stay, each later row i becomes four.

    The four mix rows i and i + 1 by 0, 1/4, 2/4, 3/4. The last row has no next one: it goes on by as much as it
    differs from the row before, as the public code does.
    """
    rest = table[keep_len:]
    beyond = 2 * table[-1:] - table[-2:-1]
    following = torch.cat([rest[1:], beyond])
    shares = torch.arange(4, dtype=table.dtype, device=table.device).view(1, 4, 1) / 4
    mixed = (1 - shares) * rest.unsqueeze(1) + shares * following.unsqueeze(1)
    return torch.cat([table[:keep_len], mixed.flatten(0, 1)])
