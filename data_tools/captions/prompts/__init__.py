"""Prompts for captions, one file each: FIELD-LANGUAGE-VERSION.txt."""

from __future__ import annotations

from pathlib import Path

from data_tools.text.prompts import Prompt, load_prompt

FOLDER = Path(__file__).parent
FIELDS = {"long_caption": "long", "short_caption": "short"}


def load_caption_prompt(path_or_name: str | Path) -> Prompt:
    """A prompt of this folder by name (``long-en-1``), or any UTF-8 text file by path.

    Raises:
        ValueError: there is no such prompt, or it is empty.
    """
    return load_prompt(path_or_name, FOLDER)
