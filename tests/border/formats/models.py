"""Model folders: configurations, headers of weights and tokenizers of this project's models, CLIP's and SigLIP's."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from pipeline.data.tokenizer import TokenizerError, load_tokenizer
from pipeline.evaluation.models.load import load_model
from pipeline.evaluation.results import EvaluationError
from pipeline.model import FGCLIP1, FGCLIP2
from pipeline.model.folder import StartError
from tests.border.damage import Damage, damage_bytes, damage_document
from tests.border.formats import Format
from tests.model.material import CAPTIONS, VOCABULARY, small_model, small_tokenizer
from tests.model.test_open_clip import open_clip_values, open_clip_weights
from tests.model.test_open_clip import write as write_open_clip

MODEL_ERRORS = (StartError, TokenizerError, EvaluationError)
NUMBERS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "intermediate_size")
HUGE_NUMBERS = (0, -1, 10**5, 10**9, 10**12, 2**63, 1.5, "8", None, [])


def make_model(folder: Path) -> None:
    small_model().save_pretrained(folder)
    small_tokenizer(folder / "bare").save(folder)
    (folder / "preprocessor_config.json").write_text('{"patch_budgets": [16, 64], "max_num_patches": 64}')


def damage_model(rng: random.Random, base: Path) -> Damage:
    file = rng.choice(
        ("config.json", "config.json", "model.safetensors", "model.safetensors", "preprocessor_config.json")
    )
    data = (base / file).read_bytes()
    if file == "config.json" and rng.random() < 0.4:
        tower = rng.choice(("text_config", "vision_config"))
        return Damage(file, [["set", [tower, rng.choice(NUMBERS)], rng.choice(HUGE_NUMBERS)]])
    return damage_document(rng, file, data)


def read_model(folder: Path) -> Any:
    model = FGCLIP2.load(folder)
    return model, model.patch_budgets


def check_model(found: Any) -> str | None:
    model, _ = found
    with torch.no_grad():
        ids = torch.zeros(1, model.config.text_config.max_position_embeddings, dtype=torch.int64)
        embeds = model.encode_ids(ids, "short")
    return None if embeds.shape == (1, model.config.text_config.projection_size) else f"embeddings {embeds.shape}"


def make_tokenizer(folder: Path) -> None:
    small_tokenizer(folder / "bare").save(folder)


def damage_tokenizer(rng: random.Random, base: Path) -> Damage:
    files = sorted(path.name for path in base.iterdir() if path.is_file())
    file = rng.choice(files)
    if Path(file).suffix != ".json":
        return damage_bytes(rng, file)
    return damage_document(rng, file, (base / file).read_bytes())


def read_tokenizer(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    return tokenizer, tokenizer(CAPTIONS, 16)


def check_tokenizer(found: Any) -> str | None:
    tokenizer, ids = found
    return None if int(ids.max()) < tokenizer.vocab_size else f"the id {int(ids.max())} of {tokenizer.vocab_size}"


TINY = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}


def make_clips(folder: Path) -> None:
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    text = TINY | ids | {"vocab_size": VOCABULARY, "max_position_embeddings": 24}
    vision = TINY | {"image_size": 32, "patch_size": 16}
    clip = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    siglip = SiglipConfig(text_config=text | {"projection_size": 16}, vision_config=vision)
    tokenizer = small_tokenizer(folder / "bare")
    for name, model in (("clip", CLIPModel(clip)), ("siglip", SiglipModel(siglip))):
        model.save_pretrained(folder / name)
        tokenizer.save(folder / name)
        channels = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(channels))


def damage_clips(rng: random.Random, base: Path) -> Damage:
    damage = damage_model(rng, base / (kind := rng.choice(("clip", "siglip"))))
    return Damage(f"{kind}/{damage.file}", damage.steps)


def read_clips(folder: Path) -> Any:
    return [*(load_model(folder / name) for name in ("clip", "siglip")), FGCLIP1.start_from(folder / "clip")]


def make_open_clip(folder: Path) -> None:
    write_open_clip(folder, open_clip_values(), open_clip_weights(64, 16, ""))


def damage_open_clip(rng: random.Random, base: Path) -> Damage:
    file = rng.choice(("open_clip_config.json", "open_clip_config.json", "open_clip_model.safetensors"))
    if file.endswith(".json") and rng.random() < 0.5:
        tower, name = rng.choice(("text_cfg", "vision_cfg")), rng.choice(("width", "layers", "heads", "head_width"))
        return Damage(file, [["set", ["model_cfg", tower, name], rng.choice(HUGE_NUMBERS)]])
    return damage_document(rng, file, (base / file).read_bytes())


FORMATS = {
    "model": Format("model folders", make_model, damage_model, read_model, MODEL_ERRORS, check_model, 384),
    "clip": Format("CLIP's and SigLIP's folders", make_clips, damage_clips, read_clips, MODEL_ERRORS, None, 384),
    "open_clip": Format(
        "open_clip's folders", make_open_clip, damage_open_clip, FGCLIP1.start_from, (StartError,), None, 384
    ),
    "tokenizer": Format(
        "tokenizers", make_tokenizer, damage_tokenizer, read_tokenizer, (TokenizerError,), check_tokenizer, 384
    ),
}
