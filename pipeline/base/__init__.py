"""What every package stands on: ranks, files, a run's folder, shared constants. Imports nothing of the project."""
