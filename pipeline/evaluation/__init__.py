"""What the trained model is for: one task, one file. ``evaluate`` for programs, ``python -m pipeline.evaluation``."""

from __future__ import annotations

from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.run import evaluate
from pipeline.evaluation.scenes import scene_scores

__all__ = ["EvaluationError", "evaluate", "scene_scores"]
