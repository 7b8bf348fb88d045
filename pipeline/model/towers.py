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
from transformers.models.siglip2.modeling_siglip2 import Siglip2EncoderLayer, Siglip2MLP

from .attention import PackedAttention, attend, project_together
from .checkpointing import Recomputation, run_layers
from .configuration import FGCLIP2TextConfig, FGCLIP2VisionConfig
from .layout import ImageLayout, image_layout
from .positions import PositionTable


class VisionEmbeddings(nn.Module):
    """Patches through a linear layer, plus their positions."""

    def __init__(self, config: FGCLIP2VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = PositionTable(config.num_patches, config.hidden_size)

    def forward(self, pixel_values: Tensor, spatial_shapes: Tensor, layout: ImageLayout | None = None) -> Tensor:
        """[B, P, 768], uint8 or in [-1, 1] -> [B, P, D]. Without ``layout`` the grids are read back."""
        num_patches = pixel_values.shape[1]
        if pixel_values.dtype == torch.uint8:  # as images.write_patches normalises
            pixel_values = pixel_values.float().mul_(1 / 127.5).sub_(1.0)
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        layout = layout or image_layout(spatial_shapes, num_patches)
        return patches + self.position_embedding(layout, num_patches)


class PoolingHead(nn.Module):
    """SigLIP's attention pooling head; as the dense head, every patch is its own query instead of the probe."""

    def __init__(self, config: FGCLIP2VisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = PackedAttention(config.hidden_size, config.num_attention_heads)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Siglip2MLP(config)

    def forward(self, hidden: Tensor, mask: Tensor | None, dense: bool = False) -> Tensor:
        """[B, P, D] -> [B, D], or with ``dense`` [B, P, D]; ``mask`` as ``additive_mask`` makes it."""
        if dense:
            # The public checkpoints hold a probe here as well, which nothing reads. Its weight of 0 keeps it in the
            # graph, so that no optimizer meets a parameter without a gradient.
            attended = self.attention(hidden, mask) + 0.0 * self.probe
        else:
            attended = self.attention(hidden, mask, self.probe.to(hidden.dtype).expand(hidden.shape[0], -1, -1))
        pooled = attended + self.mlp(self.layernorm(attended))
        return pooled if dense else pooled[:, 0]


class EncoderLayer(Siglip2EncoderLayer):
    """Siglip2's layer with q, k and v from one product."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[B, T, D] -> [B, T, D]; the mask broadcasts to [B, H, T, T]."""
        attention = self.self_attn
        normed = self.layer_norm1(hidden_states)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        queries, keys, values = project_together(normed, projections)
        attended = attend(queries, keys, values, attention.num_heads, attention_mask, attention.scale)
        hidden_states = hidden_states + attention.out_proj(attended)
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class Encoder(nn.ModuleDict):
    """Layers one after another, under the name that the checkpoints have for them: ``encoder.layers.0``."""

    layers: nn.ModuleList

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__({"layers": nn.ModuleList(layers)})
        self.recomputation = Recomputation()

    def forward(self, hidden: Tensor, mask: Tensor | None, patches: int) -> Tensor:
        """``patches``: of the batch's images, by which activations are kept or recomputed."""
        return run_layers(self.layers, hidden, mask, self.recomputation.every(patches) if self.training else 0)


class VisionTower(nn.Module):
    """Patches to features; ``head`` pools them into the image's embedding."""

    def __init__(self, config: FGCLIP2VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = VisionEmbeddings(config)
        self.encoder = Encoder([EncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = PoolingHead(config)

    def forward(
        self,
        pixel_values: Tensor,
        mask: Tensor | None,
        spatial_shapes: Tensor,
        layout: ImageLayout | None = None,
    ) -> Tensor:
        """[B, P, 768] -> [B, P, D]. Rows of padding are finite but mean nothing. ``mask``: see ``additive_mask``."""
        hidden = self.embeddings(pixel_values, spatial_shapes, layout)
        return self.post_layernorm(self.encoder(hidden, mask, hidden.shape[1]))


class TokenTable(nn.Embedding):
    """A row for each id of the vocabulary."""

    def forward(self, ids: Tensor) -> Tensor:
        """[N, T] -> [N, T, D]."""
        weight = self.weight
        # On CPUs torch adds the gradients of a row up in its own type; in bf16 an id that occurs often, as the
        # padding's, loses nearly all of them. On GPUs they are added up in float32.
        if weight.dtype == torch.bfloat16 and not weight.is_cuda:
            return F.embedding(ids, weight.float()).to(weight.dtype)
        return F.embedding(ids, weight)


class TextEmbeddings(nn.Module):
    """Tokens plus positions: the short table, or the stretched pair for long texts."""

    def __init__(self, config: FGCLIP2TextConfig) -> None:
        super().__init__()
        self.keep_len = config.keep_len
        self.token_embedding = TokenTable(config.vocab_size, config.hidden_size)
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
        query = attention.q_proj(normed[:, -1:])
        keys, values = project_together(normed, (attention.k_proj, attention.v_proj))
        attended = attend(query, keys, values, attention.num_heads, None, attention.scale)
        last = hidden_states[:, -1] + attention.out_proj(attended[:, 0])
        return last + self.mlp(self.layer_norm2(last))


class TextTower(nn.Module):
    """Ids to the last position's hidden state; ``head`` projects it for short texts.

    There is no attention mask: padding takes part, and the last position, mostly padding, is what is pooled (SigLIP).
    """

    def __init__(self, config: FGCLIP2TextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        layers: list[nn.Module] = [EncoderLayer(config) for _ in range(config.num_hidden_layers - 1)]
        self.encoder = Encoder([*layers, LastPositionLayer(config)])
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.projection_size)

    def forward(self, ids: Tensor, long: bool, patches: int = 0) -> Tensor:
        """[N, T] -> [N, D], before any head; ``patches`` as the encoder's."""
        return self.final_layer_norm(self.encoder(self.embeddings(ids, long), None, patches))
