"""A source and the steps after it, as one command."""
