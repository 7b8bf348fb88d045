"""The README.md of an exported folder: how to use the model, what it was trained on and how, and how it scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml

from pipeline.base.border import parse_yaml
from pipeline.config import with_new_names
from pipeline.model.configuration import size_of
from pipeline.model.families import model_of_config
from pipeline.tracking.score_table import scores_section

# The lines a user copies, by the form of the folder. tests/model/test_export.py and test_exits.py run exactly these.
USAGE = {
    "fgclip2": """from PIL import Image
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)
image = Image.open("IMAGE")

scores = model.encode_image(image).embeds @ model.encode_text(["a red cup", "一只红色的杯子"]).embeds.T
regions = model.encode_regions(image, [[0.1, 0.1, 0.6, 0.8]], box_format="normalised").embeds
dense = model.dense_map(image, ["a red cup"]).features
""",
    "siglip2": """import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("FOLDER").eval()
processor = AutoProcessor.from_pretrained("FOLDER")

inputs = processor(images=Image.open("IMAGE"), text=["a red cup", "一只红色的杯子"], return_tensors="pt")
inputs.pop("attention_mask", None)  # texts are read whole, padding too
with torch.no_grad():
    scores = model(**inputs).logits_per_image.sigmoid()
""",
    "onnx": """import onnxruntime
from PIL import Image
from transformers import AutoProcessor

processor = AutoProcessor.from_pretrained("FOLDER")
images = onnxruntime.InferenceSession("FOLDER/image.onnx")
texts = onnxruntime.InferenceSession("FOLDER/text.onnx")  # short texts and phrases; text-long.onnx: long ones
regions = onnxruntime.InferenceSession("FOLDER/regions.onnx")

inputs = dict(processor(images=Image.open("IMAGE"), text=["a red cup", "一只红色的杯子"], return_tensors="np"))
grid = inputs["spatial_shapes"].astype("int64")
mask = inputs["pixel_attention_mask"].astype("int64")
pixels = {"pixel_values": inputs["pixel_values"], "pixel_attention_mask": mask, "spatial_shapes": grid}
image, dense = images.run(None, pixels)
short, phrases = texts.run(None, {"input_ids": inputs["input_ids"].astype("int64")})
scores = image @ short.T
boxes = [[0.1, 0.1, 0.6, 0.8]]  # x1, y1, x2, y2 as fractions of the image
(region,) = regions.run(None, {"dense": dense[0], "grid": grid[0], "boxes": boxes})
""",
}
FORMS = {
    "fgclip2": "The folder carries its own code, so transformers is all it needs. Boxes are (x1, y1, x2, y2), in "
    'pixels unless `box_format="normalised"` says otherwise; texts are lower-cased for you.',
    "siglip2": "A plain `Siglip2Model` of transformers, the global half of an FG-CLIP 2 model: images and short "
    "texts. Long texts, phrases, boxes and patch features are not in it.",
    "onnx": "ONNX files that onnxruntime runs; images of any grid whose sides `onnx.json` allows. All files share "
    "`weights.bin`; keep them together.",
}
AFTER_USE = (
    'Long texts: `model.encode_text(texts, kind="long")`; phrases for regions and patches: `kind="region"`. '
    "Every embedding has unit norm, so products are cosines."
)
LIMITS = (
    "Texts in other languages than those named here, and kinds of pictures that the training data did not hold, were "
    "not trained on. Scores compare texts and pictures; none of them is a probability that a statement is true. What "
    "is biased in the data is biased in the model: measure on your own data before decisions about people."
)

FAMILY_NAMES = {"fgclip2": ("FG-CLIP 2", "fg-clip-2, siglip2"), "fgclip1": ("FG-CLIP 1", "fg-clip, clip")}
# Settings that a reader wants first; the whole file follows them.
RECIPE = {
    "starts from": "model.start_from",
    "global batch size": "train.global_batch_size",
    "peak learning rate": "optimizer.peak_learning_rate",
    "weight decay": "optimizer.weight_decay",
    "warm-up steps": "optimizer.warmup_steps",
    "precision": "train.precision",
    "seed": "train.seed",
}
DATA = {
    "shards": "data.shards",
    "share of each source": "data.source_weights",
    "share of each language": "data.language_weights",
    "patch budgets": "data.patch_budgets",
    "frames of clips": "data.clip_frames",
}


def model_card(card: Mapping[str, Any], config: Any, form: str = "fgclip2") -> str:
    """Markdown of a model card.

    Args:
        card: any of ``run_folder``, ``step``, ``mlflow_run``, ``settings`` (YAML text or a mapping), ``languages``,
            ``scores`` with ``score_facts``, and ``metrics`` (mappings of numbers). What is absent is said to be absent.
        config: the model's FGCLIP2Config.
        form: of the folder, a key of ``USAGE``.
    """
    settings = settings_of(card)
    languages, family = card.get("languages"), config.model_type.partition("_")[0]
    made = {**_chosen(settings, RECIPE), "size": size_of(config), "numbers": f"{num_parameters(config):,}"}
    data = {**_chosen(settings, DATA), **({"languages": ", ".join(languages)} if languages else {})}
    parts = [
        *_front_matter(form, FAMILY_NAMES[family][1], languages),
        "",
        f"# {FAMILY_NAMES[family][0]}",
        "",
        _about(config),
        "",
        "## Use",
        "",
        FORMS[form],
        "",
        "```python",
        USAGE[form].rstrip(),
        "```",
        *(["", AFTER_USE] if form == "fgclip2" else []),
        "",
        "## License",
        "",
        "The code in this folder is under the Apache License 2.0. The weights also carry the terms of the checkpoint "
        "that training began from and of the data.",
        "",
        "## Data",
        "",
        *_table(data, "Not recorded."),
        "",
        "## Recipe",
        "",
        *_table({**made, **_made_by(card)}, "Not recorded."),
        "",
        *scores_section(card.get("scores"), card.get("score_facts")),
        "",
        "## Limits",
        "",
        LIMITS,
    ]
    metrics = _numbers(card.get("metrics"))
    if metrics:
        parts += ["", "## Last values of training", "", *_table(metrics, "")]
    if settings:
        dumped = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip()
        parts += ["", "## All settings", "", "```yaml", dumped, "```"]
    return "\n".join(parts) + "\n"


def _front_matter(form: str, tags: str, languages: Sequence[str] | None) -> list[str]:
    """What the Hub reads: the licence, the task, the library; languages where they are known."""
    return [
        "---",
        "license: apache-2.0",
        f"library_name: {'onnxruntime' if form == 'onnx' else 'transformers'}",
        "pipeline_tag: zero-shot-image-classification",
        *([f"language: [{', '.join(languages)}]"] if languages else []),
        f"tags: [{tags}, vision-language, region-text]",
        "---",
    ]


def _about(config: Any) -> str:
    text, vision = config.text_config, config.vision_config
    return (
        f"A two-tower vision-language model of width {vision.hidden_size} with {vision.num_hidden_layers} + "
        f"{text.num_hidden_layers} layers and {text.vocab_size} token ids: embeddings of images, of short texts "
        f"(up to {text.max_position_embeddings} ids), long texts (up to {text.longtext_len}), boxes and phrases, and "
        "of every patch, in one space." + _about_clips(config)
    )


def _about_clips(config: Any) -> str:
    if not config.temporal_layers:
        return ""
    return (
        f" A region of a clip is read over up to {config.temporal_frames} frames by a transformer of "
        f"{config.temporal_layers} layers; a clip's embedding is the mean of its frames'."
    )


def num_parameters(config: Any) -> int:
    """Numbers of a model of that configuration; nothing is made of them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_of_config(config).parameters())


def patch_budgets_of(card: Mapping[str, Any]) -> list[int] | None:
    """The patch budgets of the run that the card is of; None where it has no settings."""
    return (settings_of(card).get("data") or {}).get("patch_budgets")


def settings_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """The run's settings as a mapping, {} where the card has none."""
    settings = card.get("settings") or {}
    return with_new_names(parse_yaml(settings) if isinstance(settings, str) else settings)


def _made_by(card: Mapping[str, Any]) -> dict[str, Any]:
    names = {"optimizer steps": "step", "run folder": "run_folder", "MLflow run": "mlflow_run"}
    return {title: card[name] for title, name in names.items() if card.get(name) is not None}


def _chosen(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """``{title: value}`` of dotted names that are there and not null."""
    chosen = {}
    for title, name in names.items():
        value: Any = settings
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and value != []:
            chosen[title] = value
    return chosen


def _numbers(values: Mapping[str, Any] | None) -> dict[str, str]:
    return {name: f"{value:.6g}" for name, value in (values or {}).items() if isinstance(value, int | float)}


def _table(rows: Mapping[str, Any], otherwise: str) -> list[str]:
    if not rows:
        return [otherwise]
    lines = [f"| {title} | {str(value).replace('|', '/')} |" for title, value in rows.items()]
    return ["| | |", "|---|---|", *lines]
