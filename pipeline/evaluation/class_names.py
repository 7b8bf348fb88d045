"""Class names as texts, and the mean of a class's prompts as its vector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, TypeAdapter
from torch import Tensor

from pipeline.evaluation.features import encode_texts
from pipeline.evaluation.formats.language import language_of
from pipeline.evaluation.formats.paths import read_typed_json, text_lines
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.base import ClassNameOptions
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import EvaluationError


def class_embeddings(
    model: EvaluationModel, names: Sequence[str], templates: Sequence[str], kind: str, ranks: Ranks
) -> Tensor:
    """[C, D] unit norm: the mean of the unit vectors of a class's prompts.

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


def language_of_classes(options: ClassNameOptions, names: Sequence[str]) -> str:
    """The language that was asked for, else that of the names."""
    return language_of(names) if options.language == "auto" else options.language


_Listed = Annotated[list[str], AfterValidator(lambda names: dict(enumerate(names)))]
_NAMES: TypeAdapter[Any] = TypeAdapter(dict[int, str] | _Listed)  # of either, an object


def read_class_names(path: Path) -> dict[int, str]:
    """Names by class id: a text file counts its lines from 0 (``id<tab>name`` gives ids); JSON is a list or object."""
    if path.suffix.lower() == ".json":
        return read_typed_json(path, _NAMES, "a list of names, or an object of id -> name")
    names = {}
    for line_number, line in enumerate(text_lines(path)):
        number, tab, name = line.partition("\t")
        if tab and not number.strip().isdigit():
            raise EvaluationError(
                f"{path}: line {line_number + 1} is {line!r:.80}; write NAME, or ID<tab>NAME with a whole number"
            )
        names[int(number) if tab else line_number] = name.strip() if tab else line.strip()
    return names
