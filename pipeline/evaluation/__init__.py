"""What the trained model is for: one task, one file. ``evaluate`` for programs, ``python -m pipeline.evaluation``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.evaluation.results import EvaluationError

if TYPE_CHECKING:
    from pipeline.evaluation.run import evaluate

__all__ = ["EvaluationError", "evaluate"]


def __getattr__(name: str) -> Any:
    """``evaluate`` when it is asked for: it imports torch, which ``--help`` must not."""
    if name == "evaluate":
        from pipeline.evaluation.run import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
