"""Readers of evaluation sets: one file a family of formats. They touch no model and decode no image."""
