"""Asking models behind OpenAI-compatible servers: the client, its options, its limits, and what it sends."""
