"""The model that a run begins or goes on with, and its teacher; what of the start fits this run, and what is new."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.checkpoint.record import CheckpointError
from pipeline.checkpoint.tensors import CheckpointTensors
from pipeline.config import SettingsError, Stage1Settings, TuneSettings
from pipeline.data.resolution import PATCH_SIZE
from pipeline.data.tokenizer import TOKENIZER_DIGEST, VOCABULARIES, Tokenizer, load_tokenizer
from pipeline.model import FGCLIP2, FGCLIP2Config, preset_config
from pipeline.model.folder import read_object
from pipeline.model.start import find_model, what_is_new
from pipeline.training.teacher import Teacher
from pipeline.tuning.lora import add_lora
from pipeline.tuning.parts import choose_trained


def make_model(settings: Stage1Settings, tokenizer: Tokenizer, checkpoint: Path | None) -> FGCLIP2:
    """The model with its starting weights; the same on every rank, because the seed is."""
    torch.manual_seed(settings.train.seed)
    if checkpoint:
        model = model_of(checkpoint, settings.tune)
    elif settings.model.start_from:
        model = FGCLIP2.start_from(settings.model.start_from, vocab_size=tokenizer.vocab_size)
        check_patches(model.config, settings.model.start_from)
        check_tokenizer(settings, tokenizer)
    else:
        model = FGCLIP2.from_scratch(preset_config(settings.model.preset, tokenizer.vocab_size))
    if not checkpoint:
        add_lora(model, settings.tune)
    choose_trained(model, settings.tune, settings.trains_regions)
    return model.train()


def model_of(checkpoint: Path, tune: TuneSettings) -> FGCLIP2:
    """The model of a checkpoint. Its weights are read one after another, so one copy of them exists in this process.

    Raises:
        CheckpointError: it lacks a weight, has one more, or one of another size.
    """
    with torch.device("meta"):
        model = FGCLIP2(FGCLIP2Config.from_pretrained(checkpoint))
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
    return Teacher(FGCLIP2.start_from(folder, vocab_size=tokenizer.vocab_size), settings, device)


def describe_start(settings: Stage1Settings, tokenizer: Tokenizer) -> str:
    """Lines for the terminal of a run that begins from weights."""
    notes = [what_is_new(str(settings.model.start_from)), check_tokenizer(settings, tokenizer)]
    return "\n".join(f"start: {note}" for note in notes if note)


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
    theirs = read_object(folder / "config.json").get(TOKENIZER_DIGEST)
    if theirs is None and any((folder / name).is_file() for name in VOCABULARIES[:2]):
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


def check_patches(config: FGCLIP2Config, start: str) -> None:
    """Raise SettingsError where the model of ``start`` takes patches of another size than the loader cuts."""
    size = config.vision_config.patch_size
    if size != PATCH_SIZE:
        raise SettingsError(
            f"model.start_from {start} has patches of {size} pixels; images are cut into patches of {PATCH_SIZE}: take "
            f"a checkpoint with patch{PATCH_SIZE} in its name"
        )
