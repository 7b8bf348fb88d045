"""Similarity of near-alike texts, each with each, through the short, the long and the region path.

FG-CLIP 2, appendix H: a text path that tells texts apart which differ in one detail has small numbers off the diagonal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from pipeline.base.border import quoted
from pipeline.drawing.matrix import matrix_figure
from pipeline.drawing.save import save_picture
from pipeline.evaluation.features import EncodeSettings, encode_texts
from pipeline.evaluation.formats.paths import read_typed_json, text_lines
from pipeline.evaluation.measures import Facts, fact
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.options.text_similarity import TextSimilarityOptions
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import Accounting, EvaluationError

LARGEST_PICTURE = 24  # texts; more of them cannot be read


def run(
    model: EvaluationModel, options: TextSimilarityOptions, settings: EncodeSettings, ranks: Ranks
) -> dict[str, Any]:
    """The task on text files, one text a line or a JSON list; a matrix a file and text path."""
    scores: dict[str, Any] = {}
    facts: Facts = {}
    accounting = Accounting("texts")
    for path in options.data:
        texts = read_texts(path)
        accounting.take(len(texts))
        for kind in options.text_kinds:
            embeds, row_of = encode_texts(model, texts, kind, ranks)
            rows = embeds[[row_of[text] for text in texts]].double()
            matrix = rows @ rows.T
            others = matrix[~torch.eye(len(texts), dtype=torch.bool)]
            name = kind if len(options.data) == 1 else f"{path.stem}/{kind}"
            scores[name] = {
                "mean_of_others": others.mean().item(),
                "largest_of_others": others.max().item(),
                "least_of_others": others.min().item(),
                "matrix": matrix.tolist(),
            }
            pairs = len(texts) * (len(texts) - 1) // 2
            facts |= {f"{name}/{of}_of_others": fact(pairs, kind="number") for of in ("mean", "largest", "least")}
            if options.out is not None and ranks.is_main and len(texts) <= LARGEST_PICTURE:
                figure = matrix_figure(matrix.numpy(), texts, f"{kind} texts, cosine")
                save_picture(figure, options.out / f"{path.stem}-{kind}.png")
    return {
        "scores": scores,
        "facts": facts,
        "settings": {
            "data": [str(path) for path in options.data],
            "text_paths": {kind: model.text_path(kind) for kind in options.text_kinds},
        },
        "accounting": [accounting.to_json()],
    }


_TEXTS: TypeAdapter[list[str]] = TypeAdapter(list[str])


def read_texts(path: Path) -> list[str]:
    """Two texts or more.

    Raises:
        EvaluationError: fewer, or a text that is empty or no string.
    """
    texts = read_typed_json(path, _TEXTS, "a list of texts") if path.suffix.lower() == ".json" else text_lines(path)
    if len(texts) < 2:
        raise EvaluationError(f"{path} holds fewer than two texts; write one a line, or a JSON list of them")
    for number, text in enumerate(texts):
        if not text.strip():
            raise EvaluationError(f"{path}: text {number} is {quoted(text)}; it must be a string with something in it")
    return [text.strip() for text in texts]
