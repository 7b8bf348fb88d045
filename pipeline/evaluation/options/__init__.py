"""What each task can be told: one module a task. No module here imports torch, so that ``--help`` is quick."""
