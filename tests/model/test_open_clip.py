"""A folder of open_clip starts an FG-CLIP 1 with its embeddings; what its towers cannot be is refused by name.

The reference is written here from open_clip's own names and forms of weights, with torch's attention as open_clip uses
it: nothing of this project takes part in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.config import SettingsError
from pipeline.model import FGCLIP1, FGCLIP2
from pipeline.model.families import describe_new_parts, family_of
from pipeline.model.start import StartError
from pipeline.training.starting import check_tokenizer, make_model
from tests.model.material import small_tokenizer
from tests.model.test_clip import LENGTH, VOCABULARY, clip_folder, pixels_and_patches, texts, tiny_settings, unit

TOLERANCE = 1e-4  # of issue and docs; what is found is below 1e-5
WIDTH, VISION_WIDTH, JOINT, HEAD = 24, 32, 16, 8
LAYERS = 3


def layer_weights(prefix: str, width: int) -> dict[str, Tensor]:
    shapes = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (2 * width, width),
        "mlp.c_fc.bias": (2 * width,),
        "mlp.c_proj.weight": (width, 2 * width),
        "mlp.c_proj.bias": (width,),
    }
    return {f"{prefix}.{name}": torch.randn(shape) * 0.2 for name, shape in shapes.items()}


def open_clip_weights(image_size: int, patch_size: int, text: str) -> dict[str, Tensor]:
    """Random weights in open_clip's layout; ``text``: what stands before the names of the text tower."""
    torch.manual_seed(4)
    side = image_size // patch_size
    weights = {
        "visual.class_embedding": torch.randn(VISION_WIDTH),
        "visual.conv1.weight": torch.randn(VISION_WIDTH, 3, patch_size, patch_size) * 0.05,
        "visual.positional_embedding": torch.randn(side**2 + 1, VISION_WIDTH),
        "visual.proj": torch.randn(VISION_WIDTH, JOINT),
        f"{text}token_embedding.weight": torch.randn(VOCABULARY, WIDTH),
        f"{text}positional_embedding": torch.randn(LENGTH, WIDTH),
        f"{text}text_projection": torch.randn(WIDTH, JOINT),
        "logit_scale": torch.tensor(3.7),
    }
    for norm, width in (
        ("visual.ln_pre", VISION_WIDTH),
        ("visual.ln_post", VISION_WIDTH),
        (f"{text}ln_final", WIDTH),
    ):
        weights |= {f"{norm}.weight": 1 + 0.1 * torch.randn(width), f"{norm}.bias": 0.1 * torch.randn(width)}
    for number in range(LAYERS):
        weights |= layer_weights(f"visual.transformer.resblocks.{number}", VISION_WIDTH)
        weights |= layer_weights(f"{text}transformer.resblocks.{number}", WIDTH)
    return weights


def open_clip_values(image_size: int = 64, patch_size: int = 16, **model: object) -> dict:
    """open_clip_config.json as ``push_to_hf_hub`` writes it."""
    vision = {"image_size": image_size, "layers": LAYERS, "width": VISION_WIDTH, "head_width": HEAD, "mlp_ratio": 2.0}
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": WIDTH, "heads": 2, "layers": LAYERS}
    towers = {"vision_cfg": vision | {"patch_size": patch_size}, "text_cfg": text | {"mlp_ratio": 2.0}}
    pixels = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    return {"model_cfg": {"embed_dim": JOINT, **towers, **model}, "preprocess_cfg": pixels}


def write(folder: Path, values: dict, weights: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(values), encoding="utf-8")
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "open_clip_model.safetensors")
    return folder


class Reference:
    """What open_clip computes of such weights."""

    def __init__(self, weights: dict[str, Tensor], quick: bool, text: str) -> None:
        self.weights, self.quick, self.text = weights, quick, text

    def norm(self, rows: Tensor, name: str) -> Tensor:
        return F.layer_norm(rows, rows.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def layers(self, rows: Tensor, prefix: str, heads: int, mask: Tensor | None) -> Tensor:
        for number in range(LAYERS):
            name = f"{prefix}transformer.resblocks.{number}"
            attention = nn.MultiheadAttention(rows.shape[-1], heads, batch_first=True)
            start = f"{name}.attn."
            own = {n.removeprefix(start): w for n, w in self.weights.items() if n.startswith(start)}
            attention.load_state_dict(own)
            normed = self.norm(rows, f"{name}.ln_1")
            rows = rows + attention(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
            inner = F.linear(self.norm(rows, f"{name}.ln_2"), *self.linear(f"{name}.mlp.c_fc"))
            inner = inner * torch.sigmoid(1.702 * inner) if self.quick else F.gelu(inner)
            rows = rows + F.linear(inner, *self.linear(f"{name}.mlp.c_proj"))
        return rows

    def linear(self, name: str) -> tuple[Tensor, Tensor]:
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    def images(self, pixels: Tensor) -> Tensor:
        weights, patch = self.weights, self.weights["visual.conv1.weight"]
        rows = F.conv2d(pixels, patch, stride=patch.shape[-1]).flatten(2).transpose(1, 2)
        first = weights["visual.class_embedding"].expand(len(rows), 1, -1)
        rows = torch.cat([first, rows], dim=1) + weights["visual.positional_embedding"]
        rows = self.layers(self.norm(rows, "visual.ln_pre"), "visual.", VISION_WIDTH // HEAD, None)
        return unit(self.norm(rows[:, 0], "visual.ln_post") @ weights["visual.proj"])

    def texts(self, ids: Tensor) -> Tensor:
        weights, text = self.weights, self.text
        rows = weights[f"{text}token_embedding.weight"][ids] + weights[f"{text}positional_embedding"][: ids.shape[1]]
        mask = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)
        rows = self.norm(self.layers(rows, text, 2, mask), f"{text}ln_final")
        return unit(rows[torch.arange(len(ids)), ids.argmax(dim=1)] @ weights[f"{text}text_projection"])


@pytest.mark.parametrize(
    ("image_size", "patch_size", "quick", "custom"),
    [(64, 16, False, False), (112, 14, True, False), (64, 32, True, True)],
)
@torch.no_grad()
def test_images_and_texts_have_the_sources_embeddings(tmp_path, image_size, patch_size, quick, custom):
    text = "text." if custom else ""
    weights = open_clip_weights(image_size, patch_size, text)
    values = open_clip_values(image_size, patch_size, **{"quick_gelu": True} if quick else {}, custom_text=custom)
    model = FGCLIP1.start_from(write(tmp_path / "start", values, weights), vocab_size=VOCABULARY).eval()
    reference, (pixels, patches) = Reference(weights, quick, text), pixels_and_patches(image_size)
    image = model.encode_vision(patches, None, torch.full((2, 2), image_size // 16))[1]
    wanted = reference.images(pixels)
    assert (image - wanted).abs().max() <= TOLERANCE and (wanted[0] - wanted[1]).abs().max() > 10 * TOLERANCE
    short = reference.texts(texts())
    for kind in ("short", "region"):
        assert (model.encode_ids(texts(), kind) - short).abs().max() <= TOLERANCE
    assert (short[0] - short[1]).abs().max() > 10 * TOLERANCE
    assert float(model.logit_scale) == pytest.approx(3.7) and not model.logit_bias.any()
    other = Reference(weights, not quick, text)
    assert (other.images(pixels) - wanted).abs().max() > 10 * TOLERANCE, "the activation makes a difference here"


@torch.no_grad()
def test_pixels_are_normalised_as_the_source_says(tmp_path):
    values = open_clip_values() | {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.4, 0.5]}}
    model = FGCLIP1.start_from(write(tmp_path / "start", values, open_clip_weights(64, 16, "")))
    assert model.config.vision_config.image_mean == [0.5, 0.5, 0.5]
    assert model.config.vision_config.image_std == [0.5, 0.4, 0.5]
    wrong = values | {"preprocess_cfg": {"std": [0.0, 1.0, 1.0]}}
    with pytest.raises(StartError, match="std is"):
        FGCLIP1.start_from(write(tmp_path / "start", wrong, {}))


def test_a_bias_of_the_source_is_taken(tmp_path):
    weights = open_clip_weights(64, 16, "") | {"logit_bias": torch.tensor(-9.5)}
    model = FGCLIP1.start_from(write(tmp_path / "start", open_clip_values(init_logit_bias=-10), weights))
    assert float(model.logit_bias) == -9.5


def test_such_a_start_is_told_and_is_of_the_clip_family(tmp_path):
    folder = write(tmp_path / "start", open_clip_values(), open_clip_weights(64, 16, ""))
    assert family_of(folder) == "fgclip1"
    told = describe_new_parts(folder)
    assert "squares of 64 pixels" in told and "longtext_head is a copy of text_projection" in told
    with pytest.raises(StartError, match="model.family=fgclip1"):
        FGCLIP2.start_from(folder)


def test_a_run_takes_it_only_with_its_own_tokenizer(tmp_path):
    tokenizer = small_tokenizer(tmp_path / "tokenizer")
    values, weights = open_clip_values(), open_clip_weights(64, 16, "")
    values["model_cfg"]["text_cfg"]["vocab_size"] = tokenizer.vocab_size
    weights["token_embedding.weight"] = torch.randn(tokenizer.vocab_size, WIDTH)
    folder = write(tmp_path / "start", values, weights)
    data = {"patch_budgets": [16], "keep_aspect_ratio": False}
    settings = tiny_settings(model={"start_from": str(folder)}, data=data)
    with pytest.raises(SettingsError, match="give the tokenizer of its folder"):
        make_model(settings, tokenizer, None)  # CLIP's ends are the last two ids
    assert "holds no tokenizer to compare" in str(check_tokenizer(settings, tokenizer))
    tokenizer.save(folder)
    assert check_tokenizer(settings, tokenizer) is None


def test_transformers_files_are_read_where_both_lie_in_one_folder(tmp_path):
    clip = clip_folder(tmp_path / "start")
    write(tmp_path / "start", open_clip_values(), open_clip_weights(64, 16, ""))
    model = FGCLIP1.start_from(tmp_path / "start")
    assert torch.equal(model.visual_projection.weight, clip.visual_projection.weight)


@pytest.mark.parametrize(
    ("group", "changes", "named"),
    [
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_siglip_224"}, "timm_model_name"),
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool"),
        ("vision_cfg", {"no_ln_pre": True}, "no_ln_pre"),
        ("vision_cfg", {"image_size": [64, 96]}, "image_size is .64, 96.; images are squares"),
        ("vision_cfg", {"image_size": 60}, "multiple of"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "num_hidden_layers is .3, 4, 6, 3"),
        ("vision_cfg", {"mlp_ratio": "4"}, "mlp_ratio is '4'"),
        ("vision_cfg", {"ls_init_value": 1e-5}, "ls_init_value"),
        ("text_cfg", {"hf_model_name": "xlm-roberta-base"}, "hf_model_name is 'xlm-roberta-base'"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask"),
        ("text_cfg", {"pool_type": "last"}, "pool_type is 'last'"),
        ("text_cfg", {"norm_kwargs": {"elementwise_affine": False}}, "only eps"),
        ("text_cfg", {"width": 0}, "must be a whole number"),
        (None, {"multimodal_cfg": {"width": 512}}, "multimodal_cfg"),
        (None, {"vision_cfg": None}, "no vision_cfg"),
        (None, {"embed_dim": None}, "projection_dim is None"),
    ],
)
def test_another_form_is_refused_by_its_name(tmp_path, group, changes, named):
    values = open_clip_values()
    (values["model_cfg"][group] if group else values["model_cfg"]).update(changes)
    with pytest.raises(StartError, match=named):
        FGCLIP1.start_from(write(tmp_path / "start", values, open_clip_weights(64, 16, "")))


def test_weights_of_another_model_are_refused_with_names_and_shapes(tmp_path):
    weights = open_clip_weights(64, 16, "")
    weights["visual.proj"] = torch.zeros(VISION_WIDTH, JOINT + 1)
    del weights["ln_final.bias"]
    weights["visual.trunk.norm.weight"] = torch.zeros(3)
    with pytest.raises(StartError) as caught:
        FGCLIP1.start_from(write(tmp_path / "start", open_clip_values(), weights))
    message = str(caught.value)
    assert "visual_projection.weight is [17, 32], the model has [16, 32]" in message
    assert "text_model.final_layer_norm.bias [24]" in message and "visual.trunk.norm.weight [3]" in message
