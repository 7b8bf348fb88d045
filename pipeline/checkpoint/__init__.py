"""Reading checkpoints of any run: for training, export and whoever else needs a run's weights."""
