"""Marking in HTML which words of a negative differ from its phrase."""

from __future__ import annotations

import difflib
import re
from html import escape

PIECE = re.compile(r"[^\W\d_㐀-鿿]+|\d+|\s+|.", re.DOTALL)  # a word of letters, a number, blanks, or one character


def marked(phrase: str, negative: str) -> str:
    """``negative`` as HTML with what is not in ``phrase`` in <mark>; what was only taken away is a <del>."""
    mine, others = PIECE.findall(phrase), PIECE.findall(negative)
    parts = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, mine, others, autojunk=False).get_opcodes():
        old, new = "".join(mine[a:b]), "".join(others[c:d])
        if tag == "equal":
            parts.append(escape(new))
        elif new.strip():
            parts.append(f'<mark title="was: {escape(old or "nothing", quote=True)}">{escape(new)}</mark>')
        elif old.strip():
            parts.append(f"<del>{escape(old)}</del>{escape(new)}")
        else:
            parts.append(escape(new))
    return "".join(parts)


def marked_spans(caption: str, spans: list[tuple[int, int]]) -> str:
    """``caption`` as HTML with the stretches ``spans`` underlined; nested ones count as one."""
    parts, position = [], 0
    for start, end in sorted(spans):
        start = max(start, position)
        if end <= start or end > len(caption):
            continue
        parts.append(f"{escape(caption[position:start])}<u>{escape(caption[start:end])}</u>")
        position = end
    return "".join(parts) + escape(caption[position:])
