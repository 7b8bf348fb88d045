"""The doctor: checks with a name for every failure of training that was once found by hand (docs/diagnosis.md)."""
