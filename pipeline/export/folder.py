"""The Hugging Face folder of a model: written aside, read back, compared with the model, and only then named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.base.border import read_object
from pipeline.base.files import write_folder_aside, write_json, write_text
from pipeline.base.run_folder import MODEL_CONFIG
from pipeline.data.patches import PATCH_VALUES
from pipeline.data.resolution import PATCH_SIZE
from pipeline.data.tokenizer import TOKENIZER_DIGEST, Tokenizer
from pipeline.export.card import model_card, patch_budgets_of
from pipeline.export.processor import write_processor
from pipeline.model import EXPORTED_CLIP_MODULES, EXPORTED_MODULES, DualEncoder, FamilyConfig, FGCLIP1Config
from pipeline.model import configuration as model_package
from pipeline.model.embeddings import unit
from pipeline.model.families import load_trained, model_of_config

MAX_SHARD_SIZE = "5GB"
TOLERANCE = 1e-5  # between embeddings of the model in memory and of the folder
AUTO_MAPS = {
    "FGCLIP2": {
        "AutoConfig": "configuration.FGCLIP2Config",
        "AutoModel": "modeling.FGCLIP2",
        "AutoModelForCausalLM": "modeling.FGCLIP2",  # the class by which the public checkpoints are loaded
        "AutoModelForZeroShotImageClassification": "modeling.FGCLIP2",  # that of the pipeline of the card's tag
    },
    "FGCLIP1": {
        "AutoConfig": "clip_configuration.FGCLIP1Config",
        "AutoModel": "clip_modeling.FGCLIP1",
        "AutoModelForCausalLM": "clip_modeling.FGCLIP1",
    },
}


class ExportError(RuntimeError):
    """The folder could not be made, or what was written is not the model; nothing took its name."""


def export_model(model: DualEncoder, tokenizer: Tokenizer, out_dir: str | Path, card: Mapping[str, Any]) -> Path:
    """Write ``model`` as a Hugging Face folder and check it by reloading.

    Args:
        model: with the weights to write, on any device; float32 is written.
        tokenizer: the model's own.
        out_dir: replaced if it is an earlier export; anything else that is there is refused.
        card: what pipeline/export/card.py reads.

    Raises:
        ExportError: the tokenizer is not the model's, the folder is taken, or the reloaded model differs.
    """
    out = Path(out_dir)
    rows = model.config.text_config.vocab_size
    if tokenizer.vocab_size != rows:
        raise ExportError(f"the tokenizer has {tokenizer.vocab_size} ids and the model {rows}; give the model's own")
    check_export_folder(out)
    with write_folder_aside(out, durable=True) as partial:
        _write(model, tokenizer, partial, card)
        verify_export(model, partial)
        let_others_read(partial)
    return out


def let_others_read(folder: Path) -> None:
    """Give weights the mode that every other new file has: safetensors writes them for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)


def check_export_folder(folder: str | Path) -> None:
    """Raise ExportError where ``folder`` holds something that is no earlier export, which would be lost."""
    folder = Path(folder)
    is_export = (folder / MODEL_CONFIG).is_file() and not (folder / MODEL_CONFIG).is_symlink()
    if folder.exists() and not is_export and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} exists and is no earlier export; move it away or give a new folder")


def _write(model: DualEncoder, tokenizer: Tokenizer, folder: Path, card: Mapping[str, Any]) -> None:
    weights = {name: weight.detach().float().cpu() for name, weight in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights, max_shard_size=MAX_SHARD_SIZE)
    config = read_object(folder / MODEL_CONFIG)
    config.pop("_name_or_path", None)
    family = type(model).__name__
    config |= {"architectures": [family], "auto_map": AUTO_MAPS[family], "dtype": "float32"}
    config[TOKENIZER_DIGEST] = tokenizer.digest()
    write_json(folder / MODEL_CONFIG, config, indent=2)
    source = Path(model_package.__file__).parent
    is_clip = isinstance(model.config, FGCLIP1Config)
    for name in EXPORTED_CLIP_MODULES if is_clip else EXPORTED_MODULES:
        shutil.copyfile(source / f"{name}.py", folder / f"{name}.py")
    write_processor(folder, tokenizer, model.config, patch_budgets_of(card))
    write_text(folder / "README.md", model_card(card, model.config))


def verify_export(model: DualEncoder, folder: str | Path) -> None:
    """Reload ``folder`` and compare every key and the embeddings of a probe batch with ``model``.

    Raises:
        ExportError: naming the key or the embedding that differs.
    """
    again = load_trained(folder)
    theirs = again.state_dict()
    ours = {name: weight.detach().float().cpu() for name, weight in model.state_dict().items()}
    if set(ours) != set(theirs):
        raise ExportError(f"{folder} and the model differ in these names: {', '.join(sorted(set(ours) ^ set(theirs)))}")
    for name, weight in ours.items():
        if not torch.equal(weight, theirs[name]):
            raise ExportError(f"{name} reads back from {folder} otherwise than it was written; write it again")
    for (name, first), second in zip(
        probe(model_with_weights(model.config, ours)).items(), probe(again).values(), strict=True
    ):
        worst = float((first - second).abs().max())
        if not worst <= TOLERANCE:
            raise ExportError(f"the {name} embeddings of {folder} differ by {worst:.3g} from the model's")


def model_with_weights(config: FamilyConfig, weights: dict[str, Tensor]) -> DualEncoder:
    """The model that holds ``weights`` themselves; no random weights are drawn to be thrown away."""
    with torch.device("meta"):
        model = model_of_config(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    # DeepSpeed holds scalars as one row
    weights = {n: w.reshape(shapes[n]) if w.numel() == 1 and n in shapes else w for n, w in weights.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


@torch.no_grad()
def probe(model: DualEncoder) -> dict[str, Tensor]:
    """Every kind of embedding of one small fixed batch."""
    generator = torch.Generator().manual_seed(0)
    text, vision = model.config.text_config, model.config.vision_config
    grids, values = torch.tensor([[4, 4], [2, 7]]), vision.num_channels * vision.patch_size**2
    if isinstance(model.config, FGCLIP1Config):
        grids, values = torch.full((2, 2), vision.image_size // PATCH_SIZE), PATCH_VALUES
    patches = int(grids.prod(1).max())
    mask = (torch.arange(patches) < grids.prod(1, keepdim=True)).int()
    pixels = torch.rand(2, patches, values, generator=generator) * 2 - 1
    states, image = model.encode_vision(pixels, mask, grids)
    dense = model.dense_features(states, mask)
    boxes = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0]])
    found = {"image": image, "region": model.pool_regions(dense, grids, boxes, torch.tensor([0, 1]))[0]}
    if model.temporal is not None:
        per_frame = unit(torch.randn(2, model.config.temporal_frames, image.shape[1], generator=generator))
        visible = torch.arange(model.config.temporal_frames).expand(2, -1) != torch.tensor([[0], [1]])
        moving = boxes[:, None] * torch.linspace(0.5, 1, model.config.temporal_frames)[:, None]
        found["clip region"] = model.aggregate_regions(per_frame, visible, moving)[0]
    for kind in ("short", "long", "region"):
        length = text.longtext_len if kind == "long" else text.max_position_embeddings
        ids = torch.randint(0, text.vocab_size, (2, length), generator=generator)
        found[f"{kind} text"] = model.encode_ids(ids, kind)
    return found
