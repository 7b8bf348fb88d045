"""Bar charts as inline SVG and HTML, without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from data_tools.report.statistics import Histogram

WIDTH, HEIGHT, BASE, TOP = 420, 190, 150, 16


def histogram_svg(histogram: Histogram) -> str:
    """A histogram with its counts as tooltips and the bins' lower edges below the bars."""
    counts, edges = histogram.counts, histogram.edges
    highest = max(counts) or 1
    step = WIDTH / len(counts)
    bars = []
    for number, (count, edge) in enumerate(zip(counts, edges, strict=True)):
        height = (BASE - TOP) * count / highest
        left, middle = number * step + 2, number * step + step / 2
        end = f"– {edges[number + 1]:g}" if number + 1 < len(edges) else "and more"
        share = 100 * count / (histogram.total or 1)
        bars.append(
            f'<rect x="{left:.1f}" y="{BASE - height:.1f}" width="{step - 4:.1f}" height="{height:.1f}">'
            f"<title>{edge:g} {end}: {count:,} ({share:.1f} %)</title></rect>"
            f'<text x="{middle:.1f}" y="{BASE + 15}" text-anchor="middle">{edge:g}</text>'
        )
        if share >= 0.5:
            label = f"{share:.0f}%"
            bars.append(f'<text class="share" x="{middle:.1f}" y="{BASE - height - 3:.1f}">{label}</text>')
    return (
        f'<figure><figcaption>{escape(histogram.title)} <span class="quiet">n = {histogram.total:,}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(histogram.title)}">'
        f'<line x1="0" x2="{WIDTH}" y1="{BASE}" y2="{BASE}"/>{"".join(bars)}'
        f'<text class="unit" x="{WIDTH}" y="{HEIGHT - 6}" text-anchor="end">{escape(histogram.unit)}, from</text>'
        "</svg></figure>"
    )


def bars_html(rows: Iterable[tuple[str, int]], total: int) -> str:
    """Named counts as horizontal bars with their shares of ``total``."""
    lines = []
    for name, count in rows:
        share = 100 * count / (total or 1)
        lines.append(
            f'<tr><td>{escape(name)}</td><td class="number">{count:,}</td><td class="number">{share:.1f} %</td>'
            f'<td class="bar"><i style="width:{min(share, 100):.1f}%"></i></td></tr>'
        )
    return f"<table>{''.join(lines)}</table>"


def table_html(header: Sequence[str], rows: Iterable[Sequence[str | int]]) -> str:
    """A table; numbers are set to the right."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = []
    for row in rows:
        cells = (
            f'<td class="number">{cell:,}</td>' if isinstance(cell, int) else f"<td>{escape(str(cell))}</td>"
            for cell in row
        )
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
