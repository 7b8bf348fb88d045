"""open_clip's ViT models in the words of transformers' CLIP: configuration, names and forms of weights.

A folder as ``open_clip.push_to_hf_hub`` writes it: ``open_clip_config.json`` and ``open_clip_model.safetensors``. The
two towers compute what transformers' ``CLIPModel`` does; what they can have beyond that is refused by name.
Source of names and defaults: open_clip 2.24 to 3.2, ``model.py`` (CLIPVisionCfg, CLIPTextCfg) and ``transformer.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .folder import OPEN_CLIP_CONFIG, StartError, checked_tower, read_object, shown

HEAD_WIDTH, MLP_RATIO = 64, 4.0  # open_clip's defaults
MOST_RATIO = 64  # of an MLP's width to the tower's; far beyond every published model
TEXT_HEADS, TEXT_WIDTH, VISION_WIDTH = 8, 512, 768
TOP = frozenset(
    {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"}
)
# What changes nothing that is computed here, or has that value where it does.
UNREAD: dict[str, tuple[object, ...] | None] = {
    **dict.fromkeys(("patch_dropout", "output_tokens", "cast_dtype", "output_dict", "nonscalar_logit_scale")),
    **dict.fromkeys(("hf_tokenizer_name", "tokenizer_kwargs", "pad_id", "eos_id", "pos_embed_type")),
    **dict.fromkeys(("attn_pooler_queries", "attn_pooler_heads", "timm_proj", "timm_drop", "timm_drop_path")),
    "pool_type": ("tok", "argmax"),
    "proj_type": ("linear",),
    "block_type": ("default",),
    "hf_model_pretrained": (True,),
    "timm_pool": ("avg",),
}
VISION = frozenset({"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs"})
TEXT = frozenset({"layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size", "norm_kwargs"})
BUFFERS = ("attn_mask", "input_resolution", "context_length", "vocab_size")  # that some files hold beside the weights
# Beginnings of open_clip's names -> transformers'
NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
}
IN_LAYER = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
PACKED = ".attn.in_proj_"  # queries, keys and values one below the other
PARTS = ("q_proj", "k_proj", "v_proj")


def open_clip_config(folder: Path) -> dict[str, Any]:
    """``text``, ``vision`` (fields of transformers' CLIP towers), ``projection_dim`` and ``preprocessing``.

    Raises:
        StartError: a model of another form than CLIP's two ViT towers, or a number out of range.
    """
    file = folder / OPEN_CLIP_CONFIG
    values = read_object(file)
    model = values.get("model_cfg", values)
    if not isinstance(model, dict):
        raise StartError(f"{file}: model_cfg is {shown(repr(model))}; it must be an object")
    _refuse_others(model, TOP, f"{file}: model_cfg")
    text, vision = (_tower(model, name, known, file) for name, known in (("text_cfg", TEXT), ("vision_cfg", VISION)))
    where = f"{file}: {{}}_cfg"
    activation = {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    width = vision.get("width", VISION_WIDTH)
    vision_head = vision.get("head_width", HEAD_WIDTH)
    heads = width // vision_head if _whole(width) and _whole(vision_head) and vision_head else width
    vision_fields = _common(vision, VISION_WIDTH, where.format("vision")) | activation
    vision_fields |= {"num_attention_heads": heads, "patch_size": vision.get("patch_size", 16)}
    vision_fields["image_size"] = _square(vision.get("image_size", 224), where.format("vision"))
    text_fields = _common(text, TEXT_WIDTH, where.format("text")) | activation
    rows = text.get("vocab_size", 49408)
    text_fields |= {"num_attention_heads": text.get("heads", TEXT_HEADS), "vocab_size": rows}
    text_fields["max_position_embeddings"] = text.get("context_length", 77)
    if _whole(rows):  # the pooled position is that of the largest id, which is the end token; before it the start
        text_fields |= {"eos_token_id": rows - 1, "bos_token_id": rows - 2}
    top = checked_tower({"projection_dim": model.get("embed_dim")}, {"projection_dim"}, f"{file}: embed_dim")
    preprocessing = values.get("preprocess_cfg")
    return {
        "text": checked_tower(text_fields, set(text_fields), where.format("text")),
        "vision": checked_tower(vision_fields, set(vision_fields), where.format("vision")),
        "projection_dim": top["projection_dim"],
        "preprocessing": preprocessing if isinstance(preprocessing, dict) else {},
    }


def _tower(model: Mapping[str, Any], name: str, known: frozenset[str], file: Path) -> dict[str, Any]:
    values = model.get(name)
    if not isinstance(values, dict):
        raise StartError(f"{file} has no {name}; it must hold the numbers of both towers")
    _refuse_others(values, known, f"{file}: {name}")
    return values


def _refuse_others(values: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    """Raise StartError for a field that asks for something which CLIP's towers do not compute."""
    for name, value in values.items():
        allowed = UNREAD.get(name, ())
        is_off = value is None or value is False or value in ({}, [], "")
        if name in known or is_off or allowed is None or value in allowed:
            continue
        raise StartError(
            f"{where}.{shown(name)} is {shown(repr(value))}; a start from open_clip needs CLIP's own two towers (ViT "
            "with a class token, causal text), so take another model, or its transformers folder where there is one"
        )


def _common(tower: Mapping[str, Any], width: int, where: str) -> dict[str, Any]:
    """Width, layers, MLP and norms of a tower."""
    width, ratio = tower.get("width", width), tower.get("mlp_ratio", MLP_RATIO)
    if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 < ratio <= MOST_RATIO:
        raise StartError(f"{where}.mlp_ratio is {shown(repr(ratio))}; it must be a number above 0, up to {MOST_RATIO}")
    fields = {"hidden_size": width, "num_hidden_layers": tower.get("layers", 12)}
    fields["intermediate_size"] = int(width * ratio) if _whole(width) else width
    norms = tower.get("norm_kwargs") or {}
    if not isinstance(norms, dict) or set(norms) - {"eps"}:
        raise StartError(f"{where}.norm_kwargs is {shown(repr(norms))}; only eps can be given")
    return fields | {"layer_norm_eps": norms.get("eps", 1e-5)}


def _square(size: object, where: str) -> object:
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        return size[0]
    if isinstance(size, list):
        raise StartError(f"{where}.image_size is {shown(repr(size))}; images are squares here, so take another model")
    return size


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def clip_names(name: str) -> Iterator[str]:
    """transformers' name of an open_clip weight; three for queries, keys and values in one; none for a buffer.

    A name that is not known comes back as it is.
    """
    plain = name.removeprefix("text.")  # where the text tower is a module of its own (custom_text)
    if plain.rpartition(".")[2] in BUFFERS:
        return
    for theirs, ours in NAMES.items():
        if plain == theirs or (theirs.endswith(".") and plain.startswith(theirs)):
            plain = ours + plain.removeprefix(theirs)
            break
    for theirs, ours in IN_LAYER.items():
        plain = plain.replace(theirs, ours)
    layer, packed, kind = plain.partition(PACKED)
    if packed:
        yield from (f"{layer}.self_attn.{part}.{kind}" for part in PARTS)
    else:
        yield plain


def open_clip_shapes(stored: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes after :func:`open_clip_weights`."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in stored.items():
        names = list(clip_names(name))
        for new in names:
            if len(names) > 1:
                found[new] = (shape[0] // len(names), *shape[1:]) if shape else ()
            else:
                found[new] = tuple(reversed(shape)) if _is_transposed(name, new) else tuple(shape)
    return found


def open_clip_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under transformers' names and in its forms: a projection [in, out] -> [out, in], q, k and v apart."""
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        names = list(clip_names(name))
        if len(names) > 1 and weight.ndim:
            found |= zip(names, weight.tensor_split(len(names)), strict=True)
        elif names:
            found[names[0]] = weight.mT if weight.ndim == 2 and _is_transposed(name, names[0]) else weight
    return {name: weight.contiguous() for name, weight in found.items()}


def _is_transposed(theirs: str, ours: str) -> bool:
    """A projection is a bare matrix [in, out] in open_clip; as a linear layer, [out, in], its name would say weight."""
    return ours in ("visual_projection.weight", "text_projection.weight") and not theirs.endswith(".weight")
