"""Class names as texts: prompt templates in both languages, and the mean of a class's prompts as its vector.

The English templates are a small general set in the manner of CLIP's; the Chinese ones say the same. Both are this
project's own wording; ``--template`` replaces them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.evaluation.features import encode_texts
from pipeline.evaluation.formats.paths import read_json, text_lines
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.base import ClassNameOptions
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import EvaluationError

IMAGE_TEMPLATES = {
    "en": (
        "a photo of a {}.",
        "a picture of the {}.",
        "a close-up photo of a {}.",
        "a bright photo of a {}.",
        "a photo of one {}.",
        "a photo of a small {}.",
        "a photo of a large {}.",
    ),
    "zh": (
        "一张{}的照片。",
        "一幅{}的图片。",
        "一张{}的特写照片。",
        "一张明亮的{}照片。",
        "一张小的{}的照片。",
        "一张大的{}的照片。",
    ),
}
REGION_TEMPLATES = {"en": ("{}",), "zh": ("{}",)}


def templates_of(options: ClassNameOptions, kind: str) -> list[str]:
    """The templates in force for images (``short``) or regions.

    Raises:
        EvaluationError: a template without ``{}``.
    """
    own = REGION_TEMPLATES if kind == "region" else IMAGE_TEMPLATES
    templates = list(options.templates or own[options.language])
    for template in templates:
        if template.count("{}") != 1:
            raise EvaluationError(f"template {template!r} must hold {{}} once, where the class name goes")
    return templates


def class_embeddings(
    model: EvaluationModel, names: Sequence[str], templates: Sequence[str], kind: str, ranks: Ranks
) -> Tensor:
    """[C, D] unit norm: the mean of a class's prompts. A name with ``;`` or in a list of synonyms is used as it is.

    Raises:
        EvaluationError: no class, or an empty name.
    """
    if not names:
        raise EvaluationError("there are no class names; give --class-names a file with one a line")
    for number, name in enumerate(names):
        if not name.strip():
            raise EvaluationError(f"class {number} has an empty name; give every class a phrase")
    texts = [template.format(name) for name in names for template in templates]
    embeds, row_of = encode_texts(model, texts, kind, ranks)
    rows = embeds[[row_of[text] for text in texts]].view(len(names), len(templates), -1)
    return torch.nn.functional.normalize(rows.mean(1), dim=-1)


def read_class_names(path: Path) -> dict[int, str]:
    """Names by class id: a text file counts its lines from 0 (``id<tab>name`` gives ids); JSON is a list or object."""
    if path.suffix.lower() == ".json":
        content = read_json(path)
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        return {int(number): str(name) for number, name in pairs}
    names = {}
    for line_number, line in enumerate(text_lines(path)):
        number, tab, name = line.partition("\t")
        if tab and not number.strip().isdigit():
            raise EvaluationError(
                f"{path}: line {line_number + 1} is {line!r:.80}; write NAME, or ID<tab>NAME with a whole number"
            )
        names[int(number) if tab else line_number] = name.strip() if tab else line.strip()
    return names
