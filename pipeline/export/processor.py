"""What an exported folder needs to turn pictures and strings into inputs: tokenizer, image processor, AutoProcessor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from pipeline.base.border import read_object
from pipeline.base.files import write_json
from pipeline.data.tokenizer import Tokenizer
from pipeline.model import FamilyConfig, FGCLIP1Config

PROCESSOR = "Siglip2Processor"  # transformers' own: an image processor and a tokenizer
TOKENIZER_FILE, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
MACHINE_FIELDS = ("vocab_file", "is_local", "local_files_only", "name_or_path")


def write_processor(folder: Path, tokenizer: Tokenizer, config: FamilyConfig, budgets: Sequence[int] | None) -> None:
    """Files by which ``AutoProcessor``, ``AutoTokenizer`` and ``AutoImageProcessor`` give a model's inputs.

    Args:
        budgets: the patch budgets of training; None: not known.
    """
    images = image_processor_config(config, budgets)
    if isinstance(config, FGCLIP1Config):  # its tokenizer and image processor are CLIP's, as they stand
        _write_tokenizer(folder, tokenizer, {})
        write_json(folder / "preprocessor_config.json", images, indent=2)
        return
    # transformers' Siglip2Processor has 64 ids and 256 patches as its own; the tokenizer's entries alone go before them
    sizes = {"max_length": config.text_config.max_position_embeddings, "max_num_patches": images["max_num_patches"]}
    _write_tokenizer(folder, tokenizer, {"processor_class": PROCESSOR, **sizes})
    _lower_case(folder)
    write_json(folder / "preprocessor_config.json", images | {"processor_class": PROCESSOR}, indent=2)
    write_json(folder / "processor_config.json", {"processor_class": PROCESSOR}, indent=2)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, further: Mapping[str, Any]) -> None:
    """Tokenizer files that pad on the right and end texts, whoever loads them; without this machine's paths.

    ``further``: entries of tokenizer_config.json; AutoProcessor takes sizes from there.
    """
    tokenizer.save(folder)
    # CLIP's own files begin and end texts by themselves
    ending = {"padding_side": "right", "add_eos_token": True} if tokenizer.start_id is None else {}
    saved = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True, **ending)
    saved.save_pretrained(str(folder))
    config = read_object(folder / TOKENIZER_CONFIG)
    for name in MACHINE_FIELDS:
        config.pop(name, None)
    write_json(folder / TOKENIZER_CONFIG, config | dict(further), indent=2)


def _lower_case(folder: Path) -> None:
    """Let tokenizer.json itself lower-case, as training does before it."""
    rules = read_object(folder / TOKENIZER_FILE)
    normalizer: Any = rules.get("normalizer")
    if "'Lowercase'" not in str(normalizer):
        in_sequence = normalizer is not None and normalizer["type"] == "Sequence"
        parts = normalizer["normalizers"] if in_sequence else [normalizer] if normalizer else []
        first = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *parts]}
        write_json(folder / TOKENIZER_FILE, rules | {"normalizer": first})


def image_processor_config(config: FamilyConfig, budgets: Sequence[int] | None) -> dict[str, Any]:
    """What transformers' SigLIP 2 image processor reads, and ``patch_budgets``, which encode_image chooses from; or
    CLIP's."""
    if isinstance(config, FGCLIP1Config):
        return clip_processor_config(config)
    values: dict[str, Any] = {
        "image_processor_type": "Siglip2ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 1 / 255,
        "patch_size": config.vision_config.patch_size,
        "max_num_patches": max(budgets) if budgets else config.vision_config.num_patches,
    }
    return values | ({"patch_budgets": list(budgets)} if budgets else {})


def clip_processor_config(config: FGCLIP1Config) -> dict[str, Any]:
    """What transformers' CLIP image processor reads: squeezed to the tower's square, as training does, not cropped."""
    side = config.vision_config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_center_crop": False,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(config.vision_config.image_mean),
        "image_std": list(config.vision_config.image_std),
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
        "crop_size": {"height": side, "width": side},
    }
