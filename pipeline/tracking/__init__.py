"""Tracking: MLflow by rank 0, comparison of runs, figures."""

from pipeline.tracking.facts import git_revision, package_versions
from pipeline.tracking.null_tracker import NullTracker
from pipeline.tracking.scores import log_scores
from pipeline.tracking.tracker import Tracker

__all__ = ["NullTracker", "Tracker", "git_revision", "log_scores", "package_versions"]
