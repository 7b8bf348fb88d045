"""One module a task, each with ``run(model, options, settings, ranks)``; its options are in ``options/``."""
