"""Hugging Face folders of trained models: ``python -m pipeline.export RUN --out FOLDER``."""
