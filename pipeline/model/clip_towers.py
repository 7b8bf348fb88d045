"""CLIP's two towers under the names of transformers' ``CLIPModel``, with the long text's position tables.

A layer of CLIP is a layer of Siglip2 (layer norm, attention, layer norm, MLP), so both families share them; what
differs is the class token, the causal mask and which position is pooled.

Shape letters: B images, P patches of the tower, N texts, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import causal_mask
from .checkpointing import run_layers
from .clip_configuration import LOADER_PATCH, FGCLIP1TextConfig, FGCLIP1VisionConfig
from .towers import Encoder, EncoderLayer, TextEmbeddings


class ClipVisionEmbeddings(nn.Module):
    """A batch's patches back to an image, normalised, through CLIP's convolution; a class token before; positions."""

    def __init__(self, config: FGCLIP1VisionConfig) -> None:
        super().__init__()
        self.image_size, self.patch_size = config.image_size, config.patch_size
        self.mean, self.std = tuple(config.image_mean), tuple(config.image_std)
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(config.grid_side**2 + 1, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, P', 768] patches of 16 pixels, uint8 or in [-1, 1] -> [B, 1 + P, D].

        Raises:
            ValueError: the patches do not make a square of the tower's size.
        """
        embedded = self.patch_embedding(self.normalised(pixel_values)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.to(embedded.dtype).expand(len(embedded), 1, -1), embedded], dim=1)
        return tokens + self.position_embedding(torch.arange(tokens.shape[1], device=tokens.device))

    def normalised(self, pixel_values: Tensor) -> Tensor:
        """[B, P', 768] -> [B, 3, S, S] as CLIP's image processor gives it, S = ``image_size``."""
        side = self.image_size // LOADER_PATCH
        if pixel_values.shape[1] != side**2:
            raise ValueError(
                f"an image has {pixel_values.shape[1]} patches of {LOADER_PATCH} pixels; this tower takes squares of "
                f"{self.image_size} pixels: set data.patch_budgets=[{side**2}] and data.keep_aspect_ratio=false"
            )
        blocks = pixel_values.unflatten(1, (side, side)).unflatten(-1, (LOADER_PATCH, LOADER_PATCH, 3))
        pixels = blocks.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        if pixel_values.dtype == torch.uint8:
            unit_pixels = pixels.float() * (1 / 255)
        else:
            unit_pixels = pixels * 0.5 + 0.5
        # Python's numbers, not tensors: nothing has to be copied to the device.
        channels = zip(unit_pixels.unbind(1), self.mean, self.std, strict=True)
        normalised = torch.stack([(channel - mean) / std for channel, mean, std in channels], dim=1)
        return normalised.to(self.patch_embedding.weight.dtype)


class LastButOneEncoder(Encoder):
    """Layers one after another, and what came out before the last one."""

    def forward(self, hidden: Tensor, mask: Tensor | None, patches: int) -> tuple[Tensor, Tensor]:
        """[B, 1 + P, D] -> the last layer's and the last but one's, both so; ``patches`` as of ``Encoder``."""
        every = self.recomputation.every(patches) if self.training else 0
        last = len(self.layers) - 1
        before = run_layers(self.layers[:last], hidden, mask, every)
        return run_layers(self.layers[last:], before, mask, every, first=last), before


class ClipVisionTower(nn.Module):
    """Pixels to the class token's state and to the patches' states before the last layer."""

    def __init__(self, config: FGCLIP1VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = ClipVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # (sic) transformers' name
        self.encoder = LastButOneEncoder([EncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """[B, P', 768] -> patches [B, P, D] and class tokens [B, D], both through the final norm."""
        hidden = self.pre_layrnorm(self.embeddings(pixel_values))
        last, before = self.encoder(hidden, None, pixel_values.shape[1])
        return self.post_layernorm(before[:, 1:]), self.post_layernorm(last[:, 0])


class ClipTextTower(nn.Module):
    """Ids to the state at the first end token. Attention is causal, so what comes after it takes no part."""

    def __init__(self, config: FGCLIP1TextConfig) -> None:
        super().__init__()
        self.end_id = config.eos_token_id
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder([EncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor, long: bool, patches: int = 0) -> Tensor:
        """[N, T] -> [N, D], before any projection; ``patches`` as the encoder's. Without an end: the first position."""
        hidden = self.embeddings(ids, long)
        hidden = self.encoder(hidden, causal_mask(hidden), patches)
        end = (ids == self.end_id).int().argmax(dim=1)
        return self.final_layer_norm(hidden[torch.arange(len(ids), device=ids.device), end])
