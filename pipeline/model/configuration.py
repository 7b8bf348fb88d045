"""The configuration of FG-CLIP 2: that of transformers' Siglip2 and two numbers more, named as public checkpoints do.

``preset_config("base", vocab_size=256_000)`` gives one of the published sizes; ``tiny`` is for the embedded demo.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from transformers import Siglip2Config, Siglip2TextConfig, Siglip2VisionConfig
from transformers.configuration_utils import PreTrainedConfig

# Where the scalars start: SigLIP's for the global loss from scratch, and ln 100 for the two region losses. A wrong
# start of the latter (2.6592) was one of the diagnosed causes of a region loss that would not fall.
START_LOGIT_SCALE, START_LOGIT_BIAS, START_REGION_SCALE = math.log(10.0), -10.0, math.log(100.0)
# Text ids are those of Gemma's tokenizer and of the SentencePiece models this project trains.
PAD_ID, EOS_ID, BOS_ID = 0, 1, 2


def stretched_length(short_length: int, keep_len: int) -> int:
    """Rows of the long position table: ``keep_len`` rows stay, each of the others becomes four."""
    return 4 * short_length - 3 * keep_len


class FGCLIP2TextConfig(Siglip2TextConfig):
    """Siglip2's text configuration with the long text's position tables.

    ``max_position_embeddings`` is the length of short and region texts, ``longtext_len`` that of long ones, and
    ``keep_len`` the number of first positions that both share.
    """

    model_type = "fgclip2_text_model"
    base_config_key = "text_config"

    pad_token_id: int | None = PAD_ID
    bos_token_id: int | None = BOS_ID
    eos_token_id: int | list[int] | None = EOS_ID
    keep_len: int = 20
    longtext_len: int = 196

    if TYPE_CHECKING:  # transformers allows None; __post_init__ fills it
        projection_size: int


class FGCLIP2VisionConfig(Siglip2VisionConfig):
    """Siglip2's vision configuration; ``num_patches`` is the size of the (square) position table, not of an image."""

    model_type = "fgclip2_vision_model"
    base_config_key = "vision_config"

    if TYPE_CHECKING:  # transformers allows pairs; this model's patches are square
        patch_size: int


class FGCLIP2Config(Siglip2Config):
    """Both towers' configurations, as dicts or objects.

    Raises:
        ValueError: where the towers' numbers cannot make a model.
    """

    model_type = "fgclip2"
    sub_configs = {"text_config": FGCLIP2TextConfig, "vision_config": FGCLIP2VisionConfig}

    temporal_layers: int = 0  # of the transformer over the frames of a region; 0: none
    temporal_frames: int = 0  # that it has positions for

    if TYPE_CHECKING:  # dicts and other objects are taken too; after __post_init__ they are these
        text_config: FGCLIP2TextConfig
        vision_config: FGCLIP2VisionConfig

        def __init__(
            self,
            text_config: Mapping[str, object] | PreTrainedConfig | None = None,
            vision_config: Mapping[str, object] | PreTrainedConfig | None = None,
            **kwargs: object,
        ) -> None: ...

    def __post_init__(self, **kwargs: object) -> None:
        self.text_config = as_config(self.text_config, FGCLIP2TextConfig)
        self.vision_config = as_config(self.vision_config, FGCLIP2VisionConfig)
        super().__post_init__(**kwargs)
        check_config(self)


C = TypeVar("C", bound=PreTrainedConfig)


def as_config(value: dict[str, object] | PreTrainedConfig | None, kind: type[C]) -> C:
    """A tower's configuration from a dict or another configuration; None: its defaults."""
    if value is None:
        return kind()
    if isinstance(value, kind):
        return value
    values = dict(value) if isinstance(value, dict) else value.to_dict()
    values.pop("model_type", None)
    return kind(**values)


def check_config(config: FGCLIP2Config) -> None:
    """Raise ValueError for numbers that contradict each other, naming them."""
    text, vision = config.text_config, config.vision_config
    if text.projection_size != vision.hidden_size:
        raise ValueError(
            f"text_config.projection_size is {text.projection_size} but vision_config.hidden_size is "
            f"{vision.hidden_size}; texts and images must meet in one space, make them equal"
        )
    check_kept_positions(text)
    if int(vision.num_patches**0.5) ** 2 != vision.num_patches:
        raise ValueError(
            f"vision_config.num_patches is {vision.num_patches}; the position table is a square, write a square number"
        )
    check_heads(text, vision)


def check_kept_positions(text: Any) -> None:
    """Raise ValueError where a text configuration's short and long positions do not share ``keep_len``."""
    if not 0 < text.keep_len < min(text.max_position_embeddings, text.longtext_len):
        raise ValueError(
            f"text_config.keep_len is {text.keep_len}; it must lie between 0 and both max_position_embeddings "
            f"({text.max_position_embeddings}) and longtext_len ({text.longtext_len})"
        )


def check_heads(text: Any, vision: Any) -> None:
    """Raise ValueError where attention heads do not divide a tower's width."""
    for name, tower in (("text_config", text), ("vision_config", vision)):
        if tower.hidden_size % tower.num_attention_heads:
            raise ValueError(
                f"{name}.hidden_size {tower.hidden_size} is not a multiple of num_attention_heads "
                f"{tower.num_attention_heads}"
            )


# name -> (width, MLP width, vision layers, text layers, heads, short text length, position table of the images).
# base, large and so400m are SigLIP 2's sizes; tiny is this project's own, for the embedded demo on a CPU.
PRESETS: dict[str, dict[str, dict[str, int]]] = {
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
            "num_patches": 64,
        },
    },
    "base": {
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    },
    "large": {
        "text": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    },
    "so400m": {
        "text": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
        "vision": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
    },
}


def size_of(config: FGCLIP2Config | PreTrainedConfig) -> str:
    """The name of the size that a model has, or its numbers where it is none of ``PRESETS``."""
    text, vision = config.text_config, config.vision_config
    for name, towers in PRESETS.items():
        wanted = [(text, towers["text"]), (vision, towers["vision"])]
        if all(getattr(tower, field, None) == value for tower, values in wanted for field, value in values.items()):
            return name
    return (
        f"width {vision.hidden_size} and {vision.num_hidden_layers} layers for images, width {text.hidden_size} and "
        f"{text.num_hidden_layers} layers for texts"
    )


def preset_config(name: str, vocab_size: int) -> FGCLIP2Config:
    """The configuration of a size in ``PRESETS`` for a tokenizer of ``vocab_size`` ids.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"model.preset is {name!r}; it must be one of {', '.join(PRESETS)}")
    text, vision = dict(PRESETS[name]["text"]), dict(PRESETS[name]["vision"])
    text.setdefault("max_position_embeddings", 64)
    text.setdefault("keep_len", 20)
    text["longtext_len"] = stretched_length(text["max_position_embeddings"], text["keep_len"])
    return FGCLIP2Config(
        text_config={"vocab_size": vocab_size, "projection_size": vision["hidden_size"], **text}, vision_config=vision
    )
