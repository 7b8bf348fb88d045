"""What is wrong with shards, their index or their place; apart, because all that reads them raises it."""


class IndexProblem(ValueError):
    """Shards or their index are missing or do not fit; one line with the remedy."""
