"""A model whose features are not numbers gets no score, in any task."""

from __future__ import annotations

import pytest
import torch

from pipeline.evaluation import EvaluationError, evaluate
from tests.evaluation.fake import FakeModel, solid


class BrokenModel(FakeModel):
    """One side's features hold a NaN in their last row."""

    def __init__(self, side: str) -> None:
        super().__init__()
        self.side = side

    def encode_images(self, prepared, dense=False):
        features = super().encode_images(prepared, dense)
        if self.side == "images":
            features.embeds[-1, 0] = torch.nan
            if features.dense is not None:
                features.dense[-1, 0, 0] = torch.nan
        return features

    def encode_texts(self, texts, kind):
        embeds = super().encode_texts(texts, kind)
        if self.side == "texts":
            embeds[-1] = torch.inf
        return embeds


@pytest.mark.parametrize("side", ["images", "texts"])
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("scenes", {}),
        ("retrieval", {"language": "zh"}),
        ("fgovd", {"language": "en"}),
        ("boxes", {"language": "zh"}),
        ("detection", {"language": "en"}),
        ("segmentation", {}),
        ("dense-maps", {"phrases": ("红色的圆",), "max_images": 2}),
    ],
)
def test_features_that_are_not_finite_are_refused(task, options, side, scenes, tmp_path):
    out = {"out": tmp_path} if task in ("detection", "dense-maps") else {}
    with pytest.raises(EvaluationError, match=r"features of \d+ of \d+ .* are not finite; .* check the checkpoint"):
        evaluate(BrokenModel(side), task, scenes, **options, **out)


def test_classification_refuses_them_too(tmp_path):
    for name in ("red", "蓝"):
        (tmp_path / name).mkdir()
        solid((250, 9, 9)).save(tmp_path / name / "0.png")
    for side in ("images", "texts"):
        with pytest.raises(EvaluationError, match="are not finite"):
            evaluate(BrokenModel(side), "classification", tmp_path)
