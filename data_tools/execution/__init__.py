"""Running a step over shards: on this machine's cores or on Ray; see `data_tools.execution.steps.run_step`."""
