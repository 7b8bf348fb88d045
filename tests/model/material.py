"""Small models, batches, tokenizers and images for the model's tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_tools import tokenizer as tokenizer_tool
from pipeline.data.batch import Batch
from pipeline.model import FGCLIP1, FGCLIP2, FGCLIP1Config, FGCLIP2Config

WIDTH, VOCABULARY, SHORT, KEEP = 24, 320, 12, 4
LONG = 4 * SHORT - 3 * KEEP
CAPTIONS = [
    "a photo of a red cup on the table",
    "two small blue birds stand near a big green tree",
    "一只红色的杯子放在桌子上",
    "两只蓝色的小鸟站在一棵绿色的大树旁边",
]


def small_config(**changes) -> FGCLIP2Config:
    """A model of a few thousand parameters; changes are ``text_NAME`` and ``vision_NAME``."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": SHORT,
        "keep_len": KEEP,
        "longtext_len": LONG,
        "projection_size": WIDTH,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_patches": 16,
    }
    text |= {name.removeprefix("text_"): v for name, v in changes.items() if name.startswith("text_")}
    vision |= {name.removeprefix("vision_"): v for name, v in changes.items() if name.startswith("vision_")}
    return FGCLIP2Config(text_config=text, vision_config=vision)


def small_model(seed: int = 0, **changes) -> FGCLIP2:
    torch.manual_seed(seed)
    return FGCLIP2.from_scratch(small_config(**changes)).eval()


def small_clip_config(image_size: int = 64, patch_size: int = 16, **text) -> FGCLIP1Config:
    """An FG-CLIP 1 of a few thousand parameters; ``text`` changes its text tower."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    texts = {"vocab_size": VOCABULARY, "max_position_embeddings": SHORT, "keep_len": KEEP, "longtext_len": LONG}
    return FGCLIP1Config(
        text_config=sizes | texts | {"eos_token_id": 1, "bos_token_id": None} | text,
        vision_config=sizes | {"image_size": image_size, "patch_size": patch_size},
        projection_dim=WIDTH - 4,
    )


def small_clip_model(seed: int = 0, **changes) -> FGCLIP1:
    torch.manual_seed(seed)
    return FGCLIP1.from_scratch(small_clip_config(**changes)).eval()


def small_clip_batch(num_regions: int, num_texts: int, seed: int = 0, image_size: int = 64) -> Batch:
    """``small_batch`` with squares, and with an end token in every text."""
    batch, side = small_batch(num_regions, num_texts, seed), image_size // 16
    generator = torch.Generator().manual_seed(seed)
    texts = {name: getattr(batch, name).clone().clamp(min=2) for name in ("short_ids", "long_ids", "region_ids")}
    for ids in texts.values():
        ends = torch.randint(1, ids.shape[1], (len(ids),), generator=generator)
        ids[torch.arange(ids.shape[1]) > ends[:, None]] = 0
        ids[torch.arange(len(ids)), ends] = 1
    return replace(
        batch,
        pixel_values=torch.randint(0, 256, (3, side**2, 768), generator=generator, dtype=torch.uint8),
        pixel_attention_mask=torch.ones(3, side**2, dtype=torch.int32),
        spatial_shapes=torch.full((3, 2), side),
        **texts,
    )


def small_batch(num_regions: int, num_texts: int, seed: int = 0) -> Batch:
    """Three images of three grids in 20 patches; regions lie on the last two images only."""
    generator = torch.Generator().manual_seed(seed)
    grids = torch.tensor([[4, 5], [2, 7], [3, 3]])
    mask = (torch.arange(20) < grids.prod(1, keepdim=True)).int()
    corners = torch.rand(num_regions, 2, generator=generator) * 0.5
    sizes = torch.rand(num_regions, 2, generator=generator) * 0.4 + 0.05

    def ids(count: int, length: int) -> torch.Tensor:
        return torch.randint(0, VOCABULARY, (count, length), generator=generator)

    return Batch(
        keys=["a", "b", "c"],
        language="en",
        pixel_values=torch.rand(3, 20, 768, generator=generator) * 2 - 1,
        pixel_attention_mask=mask,
        spatial_shapes=grids,
        short_ids=ids(3, SHORT),
        short_valid=torch.ones(3, dtype=torch.bool),
        long_ids=ids(3, LONG),
        long_valid=torch.ones(3, dtype=torch.bool),
        boxes=torch.cat([corners, corners + sizes], dim=1),
        region_image=torch.randint(1, 3, (num_regions,), generator=generator),
        region_ids=ids(num_texts, SHORT),
        region_text_hash=torch.arange(num_texts),
        phrase_index=torch.zeros(num_regions, dtype=torch.int64),
        hard_region=torch.zeros(0, dtype=torch.int64),
        hard_index=torch.zeros(0, 11, dtype=torch.int64),
        hard_mask=torch.zeros(0, 11, dtype=torch.bool),
    )


def small_tokenizer(folder: Path):
    """A tokenizer of English and Chinese captions, as data_tools makes them."""
    from pipeline.data.tokenizer import load_tokenizer

    tokenizer_tool.save(tokenizer_tool.train(CAPTIONS * 3, VOCABULARY), folder)
    return load_tokenizer(folder)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth coloured picture, so that resizing it means something."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)
