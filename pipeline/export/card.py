"""The README.md of an exported folder: how to use the model, what it was trained on and how, and how it scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.base.border import parse_yaml
from pipeline.config import with_new_names
from pipeline.model.configuration import size_of

# The lines a user copies. tests/model/test_export.py runs exactly these.
USAGE = """from PIL import Image
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)
image = Image.open("IMAGE")

scores = model.encode_image(image).embeds @ model.encode_text(["a red cup", "一只红色的杯子"]).embeds.T
regions = model.encode_regions(image, [[0.1, 0.1, 0.6, 0.8]], box_format="normalised").embeds
dense = model.dense_map(image, ["a red cup"]).features
"""

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
}


def model_card(card: Mapping[str, Any], config: Any) -> str:
    """Markdown of a model card.

    Args:
        card: any of ``run_folder``, ``step``, ``mlflow_run``, ``settings`` (YAML text or a mapping), ``scores`` and
            ``metrics`` (mappings of numbers). What is absent is said to be absent.
        config: the model's FGCLIP2Config.
    """
    settings = settings_of(card)
    text, vision = config.text_config, config.vision_config
    title, tags = FAMILY_NAMES[config.model_type.partition("_")[0]]
    parts = [
        "---",
        "license: apache-2.0",
        "library_name: transformers",
        "pipeline_tag: zero-shot-image-classification",
        "language: [en, zh]",
        f"tags: [{tags}, vision-language, region-text]",
        "---",
        "",
        f"# {title}",
        "",
        f"A two-tower vision-language model of width {vision.hidden_size} with {vision.num_hidden_layers} + "
        f"{text.num_hidden_layers} layers and {text.vocab_size} token ids: embeddings of images, of short texts "
        f"(up to {text.max_position_embeddings} ids), long texts (up to {text.longtext_len}), boxes and phrases, and "
        "of every patch, in one space.",
        "",
        "## Use",
        "",
        "The folder carries its own code, so transformers is all it needs. Boxes are (x1, y1, x2, y2), in pixels "
        'unless `box_format="normalised"` says otherwise; texts are lower-cased for you.',
        "",
        "```python",
        USAGE.rstrip(),
        "```",
        "",
        'Long texts: `model.encode_text(texts, kind="long")`; phrases for regions and patches: `kind="region"`. '
        "Every embedding has unit norm, so products are cosines.",
        "",
        "## License",
        "",
        "The code in this folder is under the Apache License 2.0. The weights also carry the terms of the checkpoint "
        "that training began from and of the data.",
        "",
        "## Data",
        "",
        *_table(_chosen(settings, DATA), "Not recorded."),
        "",
        "## Recipe",
        "",
        *_table({**_chosen(settings, RECIPE), "size": size_of(config), **_made_by(card)}, "Not recorded."),
        "",
        "## Scores",
        "",
        *_table(_numbers(card.get("scores")), "Not evaluated yet."),
    ]
    metrics = _numbers(card.get("metrics"))
    if metrics:
        parts += ["", "Last values of training:", "", *_table(metrics, "")]
    if settings:
        dumped = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip()
        parts += ["", "## All settings", "", "```yaml", dumped, "```"]
    return "\n".join(parts) + "\n"


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
        if value is not None:
            chosen[title] = value
    return chosen


def _numbers(values: Mapping[str, Any] | None) -> dict[str, str]:
    return {name: f"{value:.6g}" for name, value in (values or {}).items() if isinstance(value, int | float)}


def _table(rows: Mapping[str, Any], otherwise: str) -> list[str]:
    if not rows:
        return [otherwise]
    lines = [f"| {title} | {str(value).replace('|', '/')} |" for title, value in rows.items()]
    return ["| | |", "|---|---|", *lines]
