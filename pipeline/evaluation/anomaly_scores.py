"""Anomaly scores: which frames one score is of, prompts as vectors, and areas under curves over frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from pipeline.base.languages import primary
from pipeline.evaluation.features import encode_texts
from pipeline.evaluation.formats.paths import read_typed_json
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import EvaluationError

Groups = list[list[str]]  # texts of one list are averaged to one vector
SIDES = ("normal", "abnormal")
# This project's own, for sets of which nothing more is known
PROMPTS: dict[str, dict[str, Groups]] = {
    "en": {
        "normal": [["a normal scene"], ["people go about their day"], ["nothing unusual happens"]],
        "abnormal": [
            ["an abnormal event"],
            ["a violent fight"],
            ["an accident"],
            ["a crime"],
            ["a fire or an explosion"],
        ],
    },
    "zh": {
        "normal": [["正常的场景"], ["人们在正常活动"], ["没有异常发生"]],
        "abnormal": [["异常事件"], ["暴力打斗"], ["事故"], ["犯罪行为"], ["火灾或爆炸"]],
    },
}


@dataclass(frozen=True)
class Prompts:
    """The prompts' vectors [N, D] of each side."""

    normal: Tensor
    abnormal: Tensor
    temperature: float

    def scores(self, vectors: Tensor) -> Tensor:
        """[R, D] -> [R]: the share of the softmax over all prompts that the abnormal ones have."""
        logits = vectors @ torch.cat([self.normal, self.abnormal]).T / self.temperature
        return logits.softmax(-1)[:, len(self.normal) :].sum(-1)


def encode_prompts(
    model: EvaluationModel, texts: Mapping[str, Groups], kind: str, temperature: float, ranks: Ranks
) -> Prompts:
    """The vectors of a language's prompts.

    Raises:
        EvaluationError: a side has none, or an empty one.
    """
    sides = []
    for side in SIDES:
        groups = texts.get(side) or []
        if not groups or not all(group and all(text.strip() for text in group) for group in groups):
            raise EvaluationError(f"there is no {side} prompt, or an empty one; give each side some texts")
        embeds, row_of = encode_texts(model, [text for group in groups for text in group], kind, ranks)
        means = torch.stack([embeds[[row_of[text] for text in group]].mean(0) for group in groups])
        sides.append(torch.nn.functional.normalize(means, dim=-1))
    return Prompts(sides[0], sides[1], temperature)


_SIDES = dict[str, list[list[str] | str]]
_FILE: TypeAdapter[dict[str, _SIDES] | _SIDES] = TypeAdapter(dict[str, _SIDES] | _SIDES)


def read_prompts(path: Path) -> dict[str, dict[str, Groups]]:
    """Prompts by language of a JSON file; one that names no language holds for all (``*``).

    Raises:
        EvaluationError: it has another form.
    """
    found = read_typed_json(path, _FILE, 'an object {"normal": [...], "abnormal": [...]}, or one of these by language')
    by_language = {"*": found} if set(found) <= set(SIDES) else found
    return {language: _grouped(sides, path) for language, sides in by_language.items()}


def _grouped(sides: object, path: Path) -> dict[str, Groups]:
    if not isinstance(sides, dict) or set(sides) != set(SIDES):
        raise EvaluationError(f"{path} needs normal and abnormal prompts; write both lists")
    return {side: [[one] if isinstance(one, str) else list(one) for one in texts] for side, texts in sides.items()}


def prompts_of(language: str, found: Mapping[str, dict[str, Groups]] | None) -> dict[str, Groups]:
    """The prompts for a language: the file's, else this project's own.

    Raises:
        EvaluationError: there are none for it.
    """
    known = PROMPTS if found is None else found
    chosen = known.get(language) or known.get(primary(language)) or known.get("*")
    if chosen is None:
        raise EvaluationError(
            f"there are no prompts in {language!r}, only in {', '.join(known)}; give --prompts a file"
        )
    return chosen


def snippet_frames(count: int, length: int, step: int) -> list[range]:
    """The frames of each snippet of a video of ``count``: all are in one at least, the last may be shorter."""
    if step > length:
        raise EvaluationError(f"snippet_step is {step}, above snippet_frames, {length}; frames between have no score")
    last = max(0, count - length)
    starts = range(0, last + step, step)
    return [range(start, min(start + length, count)) for start in starts if start < count]


def frame_scores(scores: Sequence[float], snippets: Sequence[range], count: int) -> np.ndarray:
    """[count] float64: of each frame the mean of the snippets that hold it."""
    total, number = np.zeros(count), np.zeros(count)
    for score, snippet in zip(scores, snippets, strict=True):
        total[snippet.start : snippet.stop] += score
        number[snippet.start : snippet.stop] += 1
    return total / np.maximum(number, 1)


def areas(scores: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> dict[str, float]:
    """``auc`` (ROC) and ``ap``, over all frames of all videos together (micro), by scikit-learn.

    Raises:
        EvaluationError: scikit-learn is not installed, or the frames are all of one kind.
    """
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score  # an extra, and a second to import
    except ImportError as error:
        raise EvaluationError("anomaly needs scikit-learn; pip install 'fine-grained-vlm[video]'") from error
    all_scores, all_labels = np.concatenate(scores), np.concatenate(labels)
    if all_labels.min() == all_labels.max():
        kind = "abnormal" if all_labels.min() else "normal"
        raise EvaluationError(f"all {len(all_labels)} frames are {kind}; a curve needs frames of both kinds")
    return {
        "auc": float(roc_auc_score(all_labels, all_scores)),
        "ap": float(average_precision_score(all_labels, all_scores)),
    }
