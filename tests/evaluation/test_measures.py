"""What stands beside a score is what guessing and the number of rows say."""

from __future__ import annotations

import pytest
import torch

from pipeline.evaluation.formats.language import the_one_language
from pipeline.evaluation.measures import fact, interval, retrieval_chances, score_lines
from pipeline.evaluation.options.base import make_options
from pipeline.evaluation.options.retrieval import RetrievalOptions
from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.tasks.retrieval import recalls
from pipeline.tracking.score_table import with_scores


def test_the_chance_of_retrieval_is_the_mean_of_random_models():
    generator = torch.Generator().manual_seed(0)
    text_image = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4])
    found = torch.zeros(2, dtype=torch.float64)
    for _ in range(3000):
        images, texts = torch.randn(5, 6, generator=generator), torch.randn(8, 6, generator=generator)
        scores = recalls(images, texts, text_image, depths=(2,))
        found += torch.tensor([scores["i2t_r2"], scores["t2i_r2"]], dtype=torch.float64) / 3000
    assert retrieval_chances(text_image, 5, 2) == pytest.approx(found.tolist(), abs=0.01)


@pytest.mark.parametrize(("share", "n", "low", "high"), [(0.5, 100, 0.404, 0.596), (0.0, 20, 0.0, 0.161)])
def test_intervals_are_wilsons(share: float, n: int, low: float, high: float):
    assert interval(share, n) == pytest.approx((low, high), abs=1e-3)


def test_the_table_goes_from_hard_to_trivial_and_shows_cosines_as_numbers():
    scores = {"by_language/zh/hard": 0.25, "trivial": 1.0, "easy": 0.9, "hard": 0.5, "mean_of_others": 0.71, "i2t": 0.2}
    facts = {"hard": fact(100, 1 / 11), "mean_of_others": fact(10, kind="number")}
    lines = score_lines(scores, facts)
    assert [line.split()[0] for line in lines[1:]] == [
        *("hard", "easy", "trivial", "mean_of_others", "i2t", "by_language/zh/hard")
    ]
    assert lines[1].split() == ["hard", "50.0", "%", "40.4", "to", "59.6", "%", "9.1", "%", "100"]
    assert "0.7100" in lines[4] and "%" not in lines[4]


def test_any_language_can_be_asked_for_and_one_that_is_not_there_is_named():
    options = make_options(RetrievalOptions, "retrieval", {"data": ("x",), "language": "DE"})
    assert options.language == "de"
    with pytest.raises(EvaluationError, match="language is 'german!'"):
        make_options(RetrievalOptions, "retrieval", {"data": ("x",), "language": "german!"})
    with pytest.raises(EvaluationError, match="--language is fr, but shards holds de and en"):
        the_one_language("fr", ["en", "de"], "shards")


def test_new_scores_take_the_place_of_old_ones_in_a_card():
    card = "# M\n\n## Scores\n\nNot evaluated yet.\n\n## Limits\n\n限制\n"
    assert with_scores(card, ["## Scores", "", "| 新 |"]) == "# M\n\n## Scores\n\n| 新 |\n\n## Limits\n\n限制\n"
    assert with_scores("# M\n", ["## Scores"]) == "# M\n"
