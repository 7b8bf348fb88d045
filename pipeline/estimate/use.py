"""Model FLOPs used: what the model's products need over what the devices could have done in the time."""

from __future__ import annotations

import torch

from pipeline.estimate.devices import Device, device_names, read_device
from pipeline.model import FamilyConfig, FGCLIP1Config, FGCLIP2Config

BACKWARD = 2  # the backward's products for each of the forward


def step_flops(
    config: FamilyConfig, images: float, patches: float, short_texts: float, long_texts: float, dense_images: float = 0
) -> float:
    """Products of a micro-batch, forward and backward, in closed form; two operations each. The losses are left out,
    and so is what activation checkpointing computes twice, for it is no use.

    Args:
        patches: of an image, padding included.
        short_texts: captions and region texts.
        dense_images: that go through the dense head.
    """
    if isinstance(config, FGCLIP1Config):
        return _clip_step_flops(config, images, short_texts, long_texts, dense_images)
    vision, text = config.vision_config, config.text_config
    width, mlp = vision.hidden_size, vision.intermediate_size
    layer = _layer(patches, width, mlp)
    values = vision.num_channels * vision.patch_size**2
    head = 2 * patches * 2 * width**2 + 2 * 2 * width**2 + 4 * patches * width + 4 * width * mlp
    flops = images * (vision.num_hidden_layers * layer + head)
    flops += dense_images * layer
    lengths = ((short_texts, text.max_position_embeddings), (long_texts, text.longtext_len))
    for number, tokens in lengths:
        flops += number * _text(config, tokens)
    # pixels need no gradient: the first layer has one product in the backward
    return (1 + BACKWARD) * flops + 2 * images * 2 * patches * values * width


def _clip_step_flops(
    config: FGCLIP1Config, images: float, short_texts: float, long_texts: float, dense_images: float
) -> float:
    """As ``step_flops``; images have as many patches as the tower cuts."""
    vision, text, joint = config.vision_config, config.text_config, config.projection_dim
    width, patches = vision.hidden_size, vision.grid_side**2
    flops = images * (vision.num_hidden_layers * _layer(patches + 1, width, vision.intermediate_size))
    flops += (images + dense_images * patches) * 2 * width * joint
    for number, tokens in ((short_texts, text.max_position_embeddings), (long_texts, text.longtext_len)):
        layers = text.num_hidden_layers * _layer(tokens, text.hidden_size, text.intermediate_size)
        flops += number * (layers + 2 * text.hidden_size * joint)
    values = vision.num_channels * vision.patch_size**2
    return (1 + BACKWARD) * flops + 2 * images * 2 * patches * values * width


def this_device(device: torch.device) -> Device | None:
    """The row of devices.yaml for the device that this process computes on; None where there is none."""
    if device.type == "cpu":
        return read_device("cpu")
    name = torch.cuda.get_device_name(device).lower().replace(" ", "")
    return next((read_device(key) for key in device_names() if key in name), None)


def _layer(tokens: float, width: int, mlp: int) -> float:
    return tokens * (8 * width**2 + 4 * width * mlp) + 4 * tokens**2 * width


def _text(config: FGCLIP2Config, tokens: int) -> float:
    text = config.text_config
    width, mlp = text.hidden_size, text.intermediate_size
    last = 4 * tokens * width**2 + 4 * width**2 + 4 * tokens * width + 4 * width * mlp  # one position's query and MLP
    return (text.num_hidden_layers - 1) * _layer(tokens, width, mlp) + last + 2 * width * text.projection_size
