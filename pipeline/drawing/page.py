"""One self-contained HTML page: sections, tables, pictures, curves. Every text is escaped; nothing is fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from PIL import Image

# Scripts and styles are in the page itself; a text that slipped through could not load anything from elsewhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; font-src data:"
LARGEST_SIDE = 900  # pixels of a picture in a page
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Cell:
    """A cell of a table. ``value``: what the column is sorted by; ``note``: a smaller second line."""

    text: str
    value: float | None = None
    note: str = ""
    is_best: bool = False


def html_page(title: str, head: str, sections: Iterable[str], scripts: Sequence[str] = ()) -> str:
    """The whole page. ``head`` and ``sections`` are HTML; ``scripts`` run at its end, in order."""
    style = resource("page.css")
    code = "".join(f"<script>\n{in_script(script)}\n</script>" for script in (*scripts, resource("page.js")))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{escape(title)}</h1>{head}</header><main>{''.join(sections)}</main>{code}</body></html>\n"
    )


def section(title: str, body: str, note: str = "") -> str:
    """A part of the page; "" where the body is empty."""
    quiet = f'<p class="quiet">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{body}{quiet}</section>" if body else ""


def folded(title: str, body: str) -> str:
    """A part that is opened by a click."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>" if body else ""


def cards(facts: Iterable[tuple[str, str]]) -> str:
    """Large facts with their names below."""
    found = (f"<div><b>{escape(fact)}</b><span>{escape(name)}</span></div>" for name, fact in facts)
    return f'<div class="cards">{"".join(found)}</div>'


def table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], sortable: bool = True) -> str:
    """A table with a name before each row; a click on a head sorts by its column."""
    if not rows:
        return ""
    heads = "".join(
        f'<th scope="col"><button type="button">{escape(h)}</button></th>'
        if sortable
        else f'<th scope="col">{escape(h)}</th>'
        for h in header
    )
    lines = (f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_cell, cells))}</tr>' for name, cells in rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def warning(text: str) -> str:
    """A box that is read first."""
    return f'<p class="warning" role="alert">{escape(text)}</p>'


def picture(image: Image.Image, caption: str) -> str:
    """A picture with its caption, inside the page."""
    shown = image.convert("RGB")
    shown.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>'


def in_script(code: str) -> str:
    """Code that cannot end its element: ``</`` and ``<!--`` occur in strings only, where an escape means the same."""
    return code.replace("</", "<\\/").replace("<!--", "<\\!--")


def resource(name: str) -> str:
    """The text of a file beside this one."""
    return resources.files("pipeline.drawing").joinpath(name).read_text(encoding="utf-8")


def _cell(cell: Cell) -> str:
    note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
    kind = "number" if cell.value is not None else "text"
    best = " best" if cell.is_best else ""
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    return f'<td class="{kind}{best}"{value}>{escape(cell.text)}{note}</td>'
