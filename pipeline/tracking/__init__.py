"""Tracking: MLflow by rank 0, comparison of runs, figures."""
