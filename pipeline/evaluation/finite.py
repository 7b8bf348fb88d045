"""Scores of features that are not numbers are refused: comparisons with NaN would count as hits or misses at random."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pipeline.evaluation.results import EvaluationError


def require_finite(features: Tensor, what: str, name_of: Callable[[int], str]) -> None:
    """Refuse rows that hold NaN or an infinity.

    Args:
        features: [N, D]. what: of what they are, in the plural. name_of: names a row by its number.
    Raises:
        EvaluationError: with the count and the first row's name.
    """
    bad = (~features.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise not_finite(f"features of {len(bad)} of {len(features)} {what} (first: {name_of(bad[0])[:80]!r})")


def not_finite(what: str) -> EvaluationError:
    """The error that a score would be made of ``what``."""
    return EvaluationError(
        f"{what} are not finite; the model's weights are damaged or its precision is too small: check the checkpoint, "
        "or try --dtype float32"
    )
