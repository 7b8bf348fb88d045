"""Many sets in one pass: a YAML file names the rows, one table compares the models."""
