"""The model that a run begins or goes on with, and its teacher; what of the start fits this run, and what is new."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.checkpoint.record import CheckpointError
from pipeline.checkpoint.tensors import CheckpointTensors
from pipeline.config import SettingsError, Stage1Settings, TuneSettings
from pipeline.data.resolution import PATCH_SIZE
from pipeline.data.tokenizer import CLIP_FILES, TOKENIZER_DIGEST, VOCABULARIES, Tokenizer, load_tokenizer
from pipeline.model import (
    FGCLIP1,
    DualEncoder,
    FamilyConfig,
    FGCLIP1Config,
    clip_preset_config,
    preset_config,
)
from pipeline.model.clip_start import clip_configuration_of
from pipeline.model.families import FAMILIES, describe_new_parts, model_of_config, read_saved_config
from pipeline.model.folder import read_model_config
from pipeline.model.start import configuration_of, find_model
from pipeline.training.teacher import Teacher
from pipeline.tuning.lora import add_lora
from pipeline.tuning.parts import choose_trained


def make_model(settings: Stage1Settings, tokenizer: Tokenizer, checkpoint: Path | None) -> DualEncoder:
    """The model with its starting weights; the same on every rank, because the seed is."""
    torch.manual_seed(settings.train.seed)
    model = model_of(checkpoint, settings.tune) if checkpoint else new_model(settings, tokenizer)
    check_images(settings, model.config)
    check_texts(settings, tokenizer, model.config)
    if not checkpoint:
        settle_temporal(settings, model)
        add_lora(model, settings.tune)
    choose_trained(model, settings.tune, settings.trains_regions)
    if isinstance(model, FGCLIP1) and settings.model.region_projection == "frozen":
        model.roi_projection.requires_grad_(False)
    return model.train()


def new_model(settings: Stage1Settings, tokenizer: Tokenizer) -> DualEncoder:
    """The model that a run begins with: from the weights of ``model.start_from``, or from random ones."""
    chosen, model = settings.model, _from_start_or_scratch(settings, tokenizer)
    if isinstance(model, FGCLIP1):
        if settings.global_loss_kind == "sigmoid" and not model.logit_bias.any():  # no sigmoid has trained it yet
            model.start_sigmoid()
        if settings.trains_regions and chosen.region_projection == "random":
            model.draw_region_projection()
    return model


def settle_temporal(settings: Stage1Settings, model: DualEncoder) -> None:
    """Give the model temporal weights where the stage trains regions of clips and the start has none.

    Raises:
        SettingsError: those of the start have fewer positions than frames are read, or are not wanted.
    """
    chosen, frames, start = settings.model, max(settings.data.clip_frames, default=0), settings.model.start_from
    if not frames or not settings.trains_regions:
        return
    if model.temporal is None:
        if chosen.region_frames == "transformer":
            model.add_temporal(chosen.temporal_layers, frames)
    elif chosen.region_frames == "mean":
        raise SettingsError(
            f"model.region_frames is mean, and model.start_from {start} has temporal weights; start from the model "
            "that they were added to, or set model.region_frames=transformer"
        )
    elif model.config.temporal_frames < frames:
        raise SettingsError(
            f"data.clip_frames goes up to {frames}, and the temporal weights of model.start_from {start} have "
            f"positions for {model.config.temporal_frames} frames; lower data.clip_frames, or start from the model "
            "that they were added to"
        )


def _from_start_or_scratch(settings: Stage1Settings, tokenizer: Tokenizer) -> DualEncoder:
    config, family = starting_config(settings, tokenizer), FAMILIES[settings.model.family]
    if settings.model.start_from:
        return family.start_from(settings.model.start_from, vocab_size=tokenizer.vocab_size)
    return family.from_scratch(config)


def starting_config(settings: Stage1Settings, tokenizer: Tokenizer) -> FamilyConfig:
    """The configuration of the model that a run begins with, of its start or of its preset; no weight is read.

    Raises:
        StartError, SettingsError: the start holds no such model, or the tokenizer or the patches are not its own.
    """
    chosen, rows = settings.model, tokenizer.vocab_size
    is_clip = chosen.family == "fgclip1"
    if chosen.start_from:
        read = clip_configuration_of if is_clip else configuration_of
        config: FamilyConfig = read(chosen.start_from, rows)[1]
        check_patches(config, chosen.start_from)
        check_tokenizer(settings, tokenizer)
        return config
    if is_clip:
        return clip_preset_config(chosen.preset, rows, tokenizer.end_id, tokenizer.start_id)
    return preset_config(chosen.preset, rows)


def check_model(settings: Stage1Settings, tokenizer: Tokenizer) -> None:
    """Raise what :func:`make_model` would raise for a new run, without reading or drawing a weight."""
    config = starting_config(settings, tokenizer)
    check_images(settings, config)
    check_texts(settings, tokenizer, config)
    with torch.device("meta"):
        model = model_of_config(config)
        settle_temporal(settings, model)
        add_lora(model, settings.tune)
    choose_trained(model, settings.tune, settings.trains_regions)


def model_of(checkpoint: Path, tune: TuneSettings) -> DualEncoder:
    """The model of a checkpoint. Its weights are read one after another, so one copy of them exists in this process.

    Raises:
        CheckpointError: it lacks a weight, has one more, or one of another size.
    """
    with torch.device("meta"):
        model = model_of_config(read_saved_config(checkpoint))
        add_lora(model, tune)
    weights = {}
    with CheckpointTensors(checkpoint) as tensors:
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        found = {name: torch.Size(tensors.shapes[f"weight/{name}"]) for name in tensors.names("weight")}
        wrong = [
            n for n in {**shapes, **found} if n not in shapes or n not in found or shapes[n].numel() != found[n].numel()
        ]
        if wrong:
            raise CheckpointError(
                f"the weights of {checkpoint} are not those of its config.json: "
                f"{', '.join(wrong[:5])}; use another checkpoint"
            )
        for name, shape in shapes.items():
            weights[name] = tensors.read("weight", name).reshape(shape).clone()
    model.load_state_dict(weights, assign=True)
    return model


def make_teacher(settings: Stage1Settings, tokenizer: Tokenizer, device: torch.device) -> Teacher | None:
    """The model of ``model.start_from``, also where the run goes on from a checkpoint; None where it has no weight."""
    folder = settings.model.start_from
    if not settings.teacher.weight or folder is None:
        return None
    start = FAMILIES[settings.model.family].start_from(folder, vocab_size=tokenizer.vocab_size)
    return Teacher(start, settings, device)


def describe_start(settings: Stage1Settings, tokenizer: Tokenizer) -> str:
    """Lines for the terminal of a run that begins from weights."""
    notes = [describe_new_parts(str(settings.model.start_from)), check_tokenizer(settings, tokenizer)]
    notes.append(_describe_temporal(settings))
    return "\n".join(f"start: {note}" for note in notes if note)


def _describe_temporal(settings: Stage1Settings) -> str | None:
    """Where the temporal weights of a run on clips come from; None where it trains none."""
    chosen, frames = settings.model, max(settings.data.clip_frames, default=0)
    if not frames or not settings.trains_regions or chosen.region_frames == "mean":
        return None
    folder = find_model(str(chosen.start_from))
    if read_model_config(folder).get("temporal_layers"):
        return f"the temporal weights of {folder} are taken"
    return (
        f"new: temporal weights of {chosen.temporal_layers} layers for {frames} frames, with which a region of a clip "
        "begins as the mean over its frames"
    )


def check_tokenizer(settings: Stage1Settings, tokenizer: Tokenizer) -> str | None:
    """Compare the start's tokenizer with the run's; a line for the user where the start has none.

    Token ids of another vocabulary, even of the same size, mean other words: training would begin from noise.

    Raises:
        SettingsError: they differ.
        StartError: the start holds no model.
    """
    if settings.model.start_from is None:
        return None
    folder = find_model(settings.model.start_from)
    theirs = read_model_config(folder).get(TOKENIZER_DIGEST)
    of_clip = all((folder / name).is_file() for name in CLIP_FILES)
    if theirs is None and (of_clip or any((folder / name).is_file() for name in VOCABULARIES[:2])):
        theirs = load_tokenizer(folder).digest()
    if theirs is None:
        return (
            f"{folder} holds no tokenizer to compare that of {settings.tokenizer.path} with: see that it is the one "
            "that the weights were trained with"
        )
    if theirs != tokenizer.digest():
        raise SettingsError(
            f"tokenizer.path {Path(settings.tokenizer.path).absolute()} gives other ids than the tokenizer that "
            f"{folder.absolute()} was trained with, so its words would mean others; set tokenizer.path to that "
            "folder, or train from scratch (model.start_from=null)"
        )
    return None


def check_images(settings: Stage1Settings, config: FamilyConfig) -> None:
    """Raise SettingsError where a CLIP tower, which takes one square, would be given other images."""
    data = settings.data
    if not isinstance(config, FGCLIP1Config):
        return
    patches = config.vision_config.loader_patches
    if data.patch_budgets != [patches] or data.keep_aspect_ratio:
        raise SettingsError(
            f"data.patch_budgets is {data.patch_budgets} and data.keep_aspect_ratio {data.keep_aspect_ratio}; the CLIP "
            f"tower takes squares of {config.vision_config.image_size} pixels: set data.patch_budgets=[{patches}] and "
            "data.keep_aspect_ratio=false"
        )


def check_texts(settings: Stage1Settings, tokenizer: Tokenizer, config: FamilyConfig) -> None:
    """Raise SettingsError where the tokenizer begins or ends texts otherwise than the text tower knows."""
    path = settings.tokenizer.path
    if not isinstance(config, FGCLIP1Config):
        if tokenizer.start_id is not None:
            raise SettingsError(
                f"tokenizer.path {path} holds CLIP's tokenizer, which begins texts with a start token; FG-CLIP 2 needs "
                "a SigLIP 2 tokenizer or one of `python -m data_tools tokenizer` (or set model.family=fgclip1)"
            )
        return
    text = config.text_config
    ids = (tokenizer.start_id, tokenizer.end_id)
    if ids != (text.bos_token_id, text.eos_token_id):
        raise SettingsError(
            f"tokenizer.path {path} begins texts with id {ids[0]} and ends them with {ids[1]}; the model was trained "
            f"with {text.bos_token_id} and {text.eos_token_id}: give the tokenizer of its folder"
        )


def check_patches(config: FamilyConfig, start: str) -> None:
    """Raise SettingsError where the model of ``start`` takes patches of another size than the loader cuts."""
    size = config.vision_config.patch_size
    if size != PATCH_SIZE and not isinstance(config, FGCLIP1Config):  # which puts the patches together again
        raise SettingsError(
            f"model.start_from {start} has patches of {size} pixels; images are cut into patches of {PATCH_SIZE}: take "
            f"a checkpoint with patch{PATCH_SIZE} in its name"
        )
