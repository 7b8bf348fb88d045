"""The two towers: transformers' Siglip2 layers, with the position tables and heads of FG-CLIP 2.

Every parameter is used inside the forward of the module that holds it, so that DeepSpeed's ZeRO-3, which gathers
parameters by module, needs no special care. Parameter names are those of the public checkpoints.

Shape letters: B images, P patches, N texts, T tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.siglip2.modeling_siglip2 import Siglip2EncoderLayer, Siglip2MLP

from .configuration import FGCLIP2TextConfig, FGCLIP2VisionConfig


class PositionTable(nn.Embedding):
    """A square table of positions, resized (bilinear, antialiased) to the grid of each image."""

    def forward(self, spatial_shapes: Tensor, num_patches: int) -> Tensor:
        """[B, 2] heights and widths in patches -> [B, num_patches, D]; padding is 0.

        Each grid that occurs is resized once, however many images share it.
        """
        side = int(self.num_embeddings**0.5)
        # Antialiased resizing does not exist in bfloat16 on CPUs; float32 everywhere gives one result on all devices.
        table = self.weight.float().view(1, side, side, -1).permute(0, 3, 1, 2)
        numbers: dict[tuple[int, int], int] = {}
        which = [numbers.setdefault((height, width), len(numbers)) for height, width in spatial_shapes.tolist()]
        resized = []
        for height, width in numbers:
            if not 0 < height * width <= num_patches:
                raise ValueError(
                    f"spatial_shapes holds ({height}, {width}); height and width must be positive and their product at "
                    f"most the {num_patches} patches of pixel_values"
                )
            with torch.autocast(table.device.type, enabled=False):
                grid = F.interpolate(table, (height, width), mode="bilinear", align_corners=False, antialias=True)
            grid = grid.flatten(2).squeeze(0).transpose(0, 1)
            resized.append(F.pad(grid, (0, 0, 0, num_patches - height * width)))
        return torch.stack(resized).to(self.weight.dtype)[torch.tensor(which, device=table.device)]


class VisionEmbeddings(nn.Module):
    """Patches through a linear layer, plus their positions."""

    def __init__(self, config: FGCLIP2VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = PositionTable(config.num_patches, config.hidden_size)

    def forward(self, pixel_values: Tensor, spatial_shapes: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        return patches + self.position_embedding(spatial_shapes, pixel_values.shape[1])


class PackedAttention(nn.Module):
    """Multi-head attention with the parameters of ``nn.MultiheadAttention`` (q, k, v in one matrix).

    torch's own module reads its children's weights without calling them, which ZeRO-3 cannot see.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """``query`` [B, Q, D], or ``hidden`` itself, over ``hidden`` [B, P, D]; ``mask`` [B, 1, 1, P], True to see."""
        width = hidden.shape[-1]
        if query is hidden:
            queries, keys, values = F.linear(hidden, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            queries = F.linear(query, self.in_proj_weight[:width], self.in_proj_bias[:width])
            keys, values = F.linear(hidden, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        queries, keys, values = (_split_heads(x, self.num_heads) for x in (queries, keys, values))
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


def _split_heads(states: Tensor, num_heads: int) -> Tensor:
    """[B, T, D] -> [B, H, T, D / H]."""
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class PoolingHead(nn.Module):
    """SigLIP's attention pooling head; as the dense head, every patch is its own query instead of the probe."""

    def __init__(self, config: FGCLIP2VisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = PackedAttention(config.hidden_size, config.num_attention_heads)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Siglip2MLP(config)

    def forward(self, hidden: Tensor, pixel_attention_mask: Tensor | None, dense: bool = False) -> Tensor:
        """[B, P, D] -> [B, D], or with ``dense`` [B, P, D]."""
        mask = None if pixel_attention_mask is None else pixel_attention_mask[:, None, None, :].bool()
        if dense:
            # The public checkpoints hold a probe here as well, which nothing reads. Its weight of 0 keeps it in the
            # graph, so that no optimizer meets a parameter without a gradient.
            attended = self.attention(hidden, hidden, mask) + 0.0 * self.probe
        else:
            attended = self.attention(self.probe.to(hidden.dtype).expand(hidden.shape[0], -1, -1), hidden, mask)
        pooled = attended + self.mlp(self.layernorm(attended))
        return pooled if dense else pooled[:, 0]


class Encoder(nn.ModuleDict):
    """Layers one after another, under the name that the checkpoints have for them: ``encoder.layers.0``."""

    layers: nn.ModuleList

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__({"layers": nn.ModuleList(layers)})

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden


class VisionTower(nn.Module):
    """Patches to features; ``head`` pools them into the image's embedding."""

    def __init__(self, config: FGCLIP2VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = VisionEmbeddings(config)
        self.encoder = Encoder([Siglip2EncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = PoolingHead(config)

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor | None, spatial_shapes: Tensor) -> Tensor:
        """[B, P, 768] -> [B, P, D]. Rows of padding are finite but mean nothing."""
        hidden = self.embeddings(pixel_values, spatial_shapes)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=pixel_attention_mask)
        return self.post_layernorm(self.encoder(hidden, mask))


class TextEmbeddings(nn.Module):
    """Tokens plus positions: the short table, or the stretched pair for long texts."""

    def __init__(self, config: FGCLIP2TextConfig) -> None:
        super().__init__()
        self.keep_len = config.keep_len
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.position_embedding_ori = nn.Embedding(config.longtext_len, config.hidden_size)
        self.position_embedding_res = nn.Embedding(config.longtext_len, config.hidden_size)

    def forward(self, ids: Tensor, long: bool) -> Tensor:
        """[N, T] -> [N, T, D]."""
        limit = (self.position_embedding_res if long else self.position_embedding).num_embeddings
        if ids.shape[1] > limit:
            raise ValueError(
                f"a {'long' if long else 'short'} text has {ids.shape[1]} ids; only {limit} have a position, cut it"
            )
        positions = torch.arange(ids.shape[1], device=ids.device)
        if long:
            first = self.position_embedding_ori(positions[: self.keep_len])
            places = torch.cat([first, self.position_embedding_res(positions[self.keep_len :])])
        else:
            places = self.position_embedding(positions)
        return self.token_embedding(ids) + places


class LastPositionLayer(Siglip2EncoderLayer):
    """The text tower's last layer, computed for the last position only: the only one that is pooled.

    Keys and values are needed of all positions; the query, the output projection and the MLP of one. Exact.
    """

    def forward(self, hidden_states: Tensor, attention_mask: None = None) -> Tensor:
        """[N, T, D] -> [N, D]."""
        attention = self.self_attn
        normed = self.layer_norm1(hidden_states)
        query = _split_heads(attention.q_proj(normed[:, -1:]), attention.num_heads)
        keys = _split_heads(attention.k_proj(normed), attention.num_heads)
        values = _split_heads(attention.v_proj(normed), attention.num_heads)
        attended = F.scaled_dot_product_attention(query, keys, values, scale=attention.scale)
        last = hidden_states[:, -1] + attention.out_proj(attended.transpose(1, 2).flatten(2)[:, 0])
        return last + self.mlp(self.layer_norm2(last))


class TextTower(nn.Module):
    """Ids to the last position's hidden state; ``head`` projects it for short texts.

    There is no attention mask: padding takes part, and the last position, mostly padding, is what is pooled (SigLIP).
    """

    def __init__(self, config: FGCLIP2TextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        layers: list[nn.Module] = [Siglip2EncoderLayer(config) for _ in range(config.num_hidden_layers - 1)]
        self.encoder = Encoder([*layers, LastPositionLayer(config)])
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.projection_size)

    def forward(self, ids: Tensor, long: bool) -> Tensor:
        """[N, T] -> [N, D], before any head."""
        return self.final_layer_norm(self.encoder(self.embeddings(ids, long), None))
