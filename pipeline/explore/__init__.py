"""A local page to try a model: search, heat maps, boxes against phrases, two models side by side."""
