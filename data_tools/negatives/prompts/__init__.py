"""Prompts of the language-model generator: PURPOSE-LANGUAGE-VERSION.txt. A changed prompt is a new file."""

from __future__ import annotations

from pathlib import Path

from data_tools.text.prompts import Prompt, load_prompt

FOLDER = Path(__file__).parent
VERSION = 1
PLACES = {"negatives": ("{phrase}", "{true_phrases}", "{count}"), "again": ("{refused}", "{count}")}


def load_negatives_prompt(purpose: str, language: str, path: Path | None = None) -> Prompt:
    """The prompt of ``purpose`` (negatives, again) in ``language``, or the file at ``path``.

    Raises:
        ValueError: there is no such file, it is empty, or a place to fill in is missing.
    """
    prompt = load_prompt(path if path is not None else f"{purpose}-{language}-{VERSION}", FOLDER)
    missing = [place for place in PLACES[purpose] if place not in prompt.text]
    if missing:
        raise ValueError(f"prompt {prompt.name} lacks {', '.join(missing)}; write them where they are to be filled in")
    return prompt
