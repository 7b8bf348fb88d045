"""Prompts are text files; a changed prompt is a new file, so that provenance stays true."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Prompt:
    """A prompt's text and the name that provenance gives it, ``long-en-1@`` and the start of its SHA-256."""

    name: str
    text: str


def load_prompt(path_or_name: str | Path, folder: Path) -> Prompt:
    """The prompt in the UTF-8 text file of that path, or the one of ``folder`` with that name (``long-en-1``).

    Raises:
        ValueError: there is no such prompt, or it is empty.
    """
    path = Path(path_or_name)
    if not path.is_file():
        path = folder / f"{path_or_name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.txt")))
        raise ValueError(f"prompt {str(path_or_name)!r} is neither a file nor one of: {known}")
    text = path.read_text(encoding="utf-8").strip()
    if not text:
        raise ValueError(f"prompt {path} is empty; write what the model is to do")
    return Prompt(f"{path.stem}@{hashlib.sha256(text.encode()).hexdigest()[:8]}", text)
