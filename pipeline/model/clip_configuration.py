"""The configuration of FG-CLIP 1: that of transformers' CLIP, the long text's position tables, and the pixels' mean.

``clip_preset_config("base", vocab_size=49_408, end_id=49_407, start_id=49_406)`` is CLIP's ViT-B/16; ``tiny`` is for
scenes on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from transformers.configuration_utils import PreTrainedConfig

from .configuration import as_config, check_heads, check_kept_positions, stretched_length

START_CLIP_SCALE = math.log(1 / 0.07)  # of the softmax loss from scratch: CLIP's own
KEEP_LEN = 20  # positions that short and long texts share (Long-CLIP)
LOADER_PATCH = 16  # pixels a side of the patches that a batch holds, whatever the tower cuts
# OpenAI's, for folders without preprocessor_config.json
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class FGCLIP1TextConfig(CLIPTextConfig):
    """CLIP's text configuration with the long text's position tables; see FGCLIP2TextConfig.

    ``eos_token_id`` is the end token whose first place is pooled, ``bos_token_id`` the token that begins a text (None:
    texts begin with their first word).
    """

    model_type = "fgclip1_text_model"
    base_config_key = "text_config"

    keep_len: int = KEEP_LEN
    longtext_len: int = 248

    @property
    def projection_size(self) -> int:
        """Width of the joint space, under the name that FG-CLIP 2 has for it."""
        return int(self.projection_dim)


class FGCLIP1VisionConfig(CLIPVisionConfig):
    """CLIP's vision configuration, with what pixels are normalised by."""

    model_type = "fgclip1_vision_model"
    base_config_key = "vision_config"

    image_mean: list[float] | tuple[float, ...] = CLIP_MEAN
    image_std: list[float] | tuple[float, ...] = CLIP_STD

    if TYPE_CHECKING:  # transformers allows pairs; images and patches are square here
        image_size: int
        patch_size: int

    @property
    def grid_side(self) -> int:
        """Patches along a side of an image."""
        return int(self.image_size // self.patch_size)

    @property
    def loader_patches(self) -> int:
        """Patches of 16 pixels in which a batch holds an image of the tower's size."""
        return int(self.image_size // LOADER_PATCH) ** 2


class FGCLIP1Config(CLIPConfig):
    """Both towers' configurations, as dicts or objects.

    Raises:
        ValueError: where the towers' numbers cannot make a model.
    """

    model_type = "fgclip1"
    sub_configs = {"text_config": FGCLIP1TextConfig, "vision_config": FGCLIP1VisionConfig}

    temporal_layers: int = 0  # of the transformer over the frames of a region; 0: none
    temporal_frames: int = 0  # that it has positions for

    if TYPE_CHECKING:  # dicts and other objects are taken too; after __post_init__ they are these
        text_config: FGCLIP1TextConfig
        vision_config: FGCLIP1VisionConfig

        def __init__(
            self,
            text_config: Mapping[str, object] | PreTrainedConfig | None = None,
            vision_config: Mapping[str, object] | PreTrainedConfig | None = None,
            **kwargs: object,
        ) -> None: ...

    def __post_init__(self, **kwargs: object) -> None:
        self.text_config = as_config(self.text_config, FGCLIP1TextConfig)
        self.vision_config = as_config(self.vision_config, FGCLIP1VisionConfig)
        # One space, whose width CLIP's files write down three times.
        self.text_config.projection_dim = self.vision_config.projection_dim = self.projection_dim
        super().__post_init__(**kwargs)
        check_clip_config(self)


def check_clip_config(config: FGCLIP1Config) -> None:
    """Raise ValueError for numbers that contradict each other, naming them."""
    text, vision = config.text_config, config.vision_config
    if not isinstance(vision.image_size, int) or not isinstance(vision.patch_size, int):
        raise ValueError(
            f"vision_config.image_size is {vision.image_size} and patch_size {vision.patch_size}; both must be whole "
            "numbers: images and patches are square"
        )
    if vision.image_size % vision.patch_size or vision.image_size % LOADER_PATCH:
        raise ValueError(
            f"vision_config.image_size is {vision.image_size}; it must be a multiple of its patch_size, "
            f"{vision.patch_size}, and of {LOADER_PATCH}, the pixels in which images are read"
        )
    check_kept_positions(text)
    if not isinstance(text.eos_token_id, int) or not 0 <= text.eos_token_id < text.vocab_size:
        raise ValueError(
            f"text_config.eos_token_id is {text.eos_token_id}; it must be one of the {text.vocab_size} ids: its place "
            "is what the text tower pools"
        )
    check_heads(text, vision)


# base and large are OpenAI's ViT-B/16 and ViT-L/14; tiny is this project's own, for scenes on a CPU.
CLIP_PRESETS: dict[str, dict[str, dict[str, int]]] = {
    "tiny": {
        "text": {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 24,
            "keep_len": 12,
        },
        "vision": {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 128,
            "patch_size": 16,
            "projection_dim": 128,
        },
    },
    "base": {
        "text": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8},
        "vision": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 16,
            "projection_dim": 512,
        },
    },
    "large": {
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        "vision": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
            "projection_dim": 768,
        },
    },
}


def clip_preset_config(name: str, vocab_size: int, end_id: int, start_id: int | None = None) -> FGCLIP1Config:
    """The configuration of a size in ``CLIP_PRESETS`` for a tokenizer of ``vocab_size`` ids.

    Args:
        end_id, start_id: the tokens that end and begin a text; None: none begins it.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in CLIP_PRESETS:
        raise ValueError(f"model.preset is {name!r}; with model.family=fgclip1 it is one of {', '.join(CLIP_PRESETS)}")
    text = {"max_position_embeddings": 77, "keep_len": KEEP_LEN} | CLIP_PRESETS[name]["text"]
    text["longtext_len"] = stretched_length(text["max_position_embeddings"], text["keep_len"])
    vision = CLIP_PRESETS[name]["vision"]
    return FGCLIP1Config(
        text_config={"vocab_size": vocab_size, "eos_token_id": end_id, "bos_token_id": start_id, **text},
        vision_config=dict(vision),
        projection_dim=vision["projection_dim"],
    )
