"""Restarts: what a failed start leaves behind, and whether another one is worth it."""
