"""The report as HTML pages: no scripts, no links but to each other, images inside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from urllib.parse import quote

from data_tools.phrases.interface import found_phrases
from data_tools.report.charts import bars_html, histogram_svg, table_html
from data_tools.report.choice import Chosen, image_uri
from data_tools.report.marking import marked, marked_spans
from data_tools.report.statistics import Statistics
from pipeline.data.schema import Region

LANGUAGE_NAMES = {"en": "English", "zh": "中文 (Chinese)"}
MAX_REGIONS = 8  # drawn and listed of one sample, those with negatives first
MAX_CATEGORIES = 20
COLORS = ("#e6194b", "#0074d9", "#2ca02c", "#ff7f0e", "#8e44ad", "#008b8b", "#d4a017", "#c2185b")


def page(statistics: Statistics) -> str:
    """Everything on one page.

    Raises:
        OSError: a shard cannot be read.
    """
    return next(pages(statistics, ["report.html"], max(1, len(statistics.chosen))))


def page_names(first: str, num_samples: int, per_page: int) -> list[str]:
    """File names of the pages: ``report.html``, ``report-2.html`` …; one where there are no samples."""
    stem, point, ending = first.rpartition(".")
    stem, ending = (stem, f".{ending}") if point else (first, "")
    count = max(1, -(-num_samples // per_page))
    return [first, *(f"{stem}-{number}{ending}" for number in range(2, count + 1))]


def pages(statistics: Statistics, names: Sequence[str], per_page: int) -> Iterator[str]:
    """The pages of ``names`` one after another: the first with all statistics, all with ``per_page`` samples.

    Raises:
        OSError: a shard cannot be read.
    """
    for number, start in enumerate(range(0, max(1, len(statistics.chosen)), per_page)):
        some = statistics.chosen[start : start + per_page]
        samples = "".join(_sample(place, chosen) for place, chosen in enumerate(some, start=start + 1))
        links = _links(names, number)
        body = f"{links}{samples}{links}" if samples else '<p class="quiet">No sample has an image.</p>'
        title = f"Samples {start + 1:,} to {start + len(some):,} of {len(statistics.chosen):,}"
        section = _section(title if len(names) > 1 else "Samples", body)
        yield _page(statistics, f"{_about(statistics)}{section}" if number == 0 else section, number)


def _links(names: Sequence[str], here: int) -> str:
    """The way to the other pages."""
    if len(names) == 1:
        return ""
    parts = [
        f'<b aria-current="page">{n + 1}</b>' if n == here else f'<a href="{escape(quote(name))}">{n + 1}</a>'
        for n, name in enumerate(names)
    ]
    return f'<nav aria-label="pages">page {" ".join(parts)}</nav>'


def _about(statistics: Statistics) -> str:
    """Everything but the samples."""
    return (
        f"{_section('Languages and fields', _fields(statistics))}"
        f"{_section('What the negatives change', _attributes(statistics))}"
        f"{_section('Histograms', _histograms(statistics))}"
        f"{_section('How it was made', _steps(statistics))}"
        f"{_section('What was left out, and why', _left_out(statistics))}"
    )


def _page(statistics: Statistics, body: str, number: int) -> str:
    style = resources.files("data_tools.report").joinpath("style.html").read_text(encoding="utf-8")
    title = f"Shards in {statistics.folder}{f', page {number + 1}' if number else ''}"
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>{style}</head><body>"
        f"<header><h1>{escape(title)}</h1>{_totals(statistics)}{_warning(statistics)}</header><main>"
        f"{body}</main></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _totals(statistics: Statistics) -> str:
    fields = statistics.fields
    totals = [
        ("shards", statistics.shards),
        ("images", statistics.samples),
        *([("of these clips", fields["clips"])] if fields["clips"] else []),
        ("regions", fields["regions"]),
        ("regions with negatives", fields["regions with negatives"]),
        ("negatives", fields["negatives"]),
    ]
    cards = "".join(f"<div><b>{number:,}</b><span>{escape(name)}</span></div>" for name, number in totals)
    return f'<div class="totals">{cards}</div>'


def _warning(statistics: Statistics) -> str:
    """A box for what stage 2 cannot train on."""
    fields = statistics.fields
    if not fields["regions"]:
        what = "No image has a region"
        way = "Stage 1 can be trained on these shards; stage 2 needs regions: the steps phrases and boxes make them."
    elif not fields["negatives"]:
        what = f"None of the {fields['regions']:,} regions has a negative"
        way = (
            "Of stage 2's losses L_FGT, L_CMR and L_TIC would have no member. Make negatives (python -m data_tools "
            "negatives SHARDS --out NEW), build with FG-OVD rows (--fgovd), or set their weights to 0."
        )
    else:
        return ""
    return f'<p class="problem" role="alert"><b>{escape(what)}.</b> {escape(way)}</p>'


def _fields(statistics: Statistics) -> str:
    languages = [(LANGUAGE_NAMES.get(name, name), count) for name, count in statistics.languages.most_common()]
    samples = [(name.replace("_", " "), statistics.fields[name]) for name in ("short_captions", "long_captions")]
    regions = [(name, statistics.fields[name]) for name in ("regions with negatives", "long phrases")]
    categories = statistics.categories.most_common(MAX_CATEGORIES)
    listed = bars_html(categories, statistics.fields["regions"])
    named = f"<details><summary>{len(statistics.categories):,} categories</summary>{listed}</details>" if listed else ""
    return (
        f'<div class="columns"><div><h3>Images by language</h3>{bars_html(languages, statistics.samples)}</div>'
        f"<div><h3>Of the images</h3>{bars_html(samples, statistics.samples)}</div>"
        f"<div><h3>Of the regions</h3>{bars_html(regions, statistics.fields['regions'])}"
        f"{named if categories else ''}</div></div>"
    )


def _attributes(statistics: Statistics) -> str:
    if not statistics.attributes:
        return '<p class="quiet">There are no negatives.</p>'
    total = statistics.attributes.total()
    rows = bars_html(statistics.attributes.most_common(), total)
    note = (
        f"{total:,} negatives of {statistics.attribute_regions:,} regions, compared with their phrases by the lexicons"
    )
    return f'{rows}<p class="quiet">{note}. “other”: values that the lexicons do not know.</p>'


def _histograms(statistics: Statistics) -> str:
    charts = [histogram_svg(histogram) for histogram in statistics.histograms.values() if histogram.total]
    return f'<div class="charts">{"".join(charts)}</div>'


def _steps(statistics: Statistics) -> str:
    if not statistics.made_by:
        return '<p class="quiet">The folder holds no reports of steps; other tools made it.</p>'
    parts = []
    for step in statistics.made_by:
        settings = json.dumps(step["settings"], ensure_ascii=False, indent=1)
        parts.append(
            f"<details><summary><b>{escape(str(step['step']))}</b> version {escape(str(step['version']))}: "
            f"{step['samples_in']:,} samples in, {step['samples_out']:,} out</summary>"
            f"<pre>{escape(settings)}</pre></details>"
        )
    return "".join(parts)


def _left_out(statistics: Statistics) -> str:
    dropped, failed, counted = [], [], []
    for step in statistics.made_by:
        dropped += [(step["step"], reason, number) for reason, number in sorted(step["dropped"].items())]
        failed += [(step["step"], reason, number) for reason, number in sorted(step["failed"].items())]
        counted += [(step["step"], reason, number) for reason, number in sorted(step["counts"].items())]
    dropped += [("this report", reason, number) for reason, number in sorted(statistics.faults.items())]
    parts = []
    for title, rows in (("Samples dropped", dropped), ("Samples failed", failed), ("Counted on the way", counted)):
        body = table_html(("step", "reason", "number"), rows) if rows else '<p class="quiet">None.</p>'
        parts.append(f"<h3>{title}</h3>{body}")
    return f'<div class="narrow">{"".join(parts)}</div>'


def _sample(number: int, chosen: Chosen) -> str:
    sample = chosen.sample
    regions = sorted(sample.regions, key=lambda region: (not region.negatives, -(region.score or 0)))
    shown = regions[:MAX_REGIONS]
    listed = "".join(_region(place, region) for place, region in enumerate(shown))
    more = len(regions) - len(shown)
    rest = f'<p class="quiet">and {more} more regions</p>' if more else ""
    captions = "".join(
        f'<p class="caption"><span class="quiet">{name}</span> {_caption(chosen, field)}</p>'
        for name, field in (("short", "short_caption"), ("long", "long_caption"))
        if getattr(sample, field) is not None
    )
    where = f"{chosen.shard.name} · {chosen.key} · {sample.width}×{sample.height} · {sample.language}"
    return (
        f'<article lang="{sample.language}"><div class="picture">{_picture(chosen, shown)}'
        f'<p class="quiet">{number}. {escape(where)}</p></div>'
        f'<div class="texts">{captions}<ol>{listed}</ol>{rest}</div></article>'
    )


def _caption(chosen: Chosen, field: str) -> str:
    phrases = found_phrases(chosen.sample)
    spans = [phrase.span for phrase in phrases if phrase.field == field and phrase.span is not None]
    return marked_spans(getattr(chosen.sample, field), spans)


def _picture(chosen: Chosen, regions: list[Region]) -> str:
    uri, problem = image_uri(chosen)
    if uri is None:
        return f'<p class="problem">{escape(problem)}</p>'
    width, height = chosen.sample.width, chosen.sample.height
    scale = max(width, height) / 560  # line widths and letters in pixels of the page
    boxes = []
    for place, region in reversed(list(enumerate(regions))):  # the first lies on top
        x1, y1, x2, y2 = region.image_box
        left, top, color = x1 * width, y1 * height, COLORS[place % len(COLORS)]
        across, down = (x2 - x1) * width, (y2 - y1) * height
        boxes.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{across:.1f}" height="{down:.1f}" fill="none" '
            f'stroke="{color}" stroke-width="{2.5 * scale:.1f}"><title>{escape(region.phrase)}</title></rect>'
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{18 * scale:.1f}" height="{18 * scale:.1f}" fill="{color}"/>'
            f'<text x="{left + 9 * scale:.1f}" y="{top + 14 * scale:.1f}" font-size="{14 * scale:.1f}" fill="#fff" '
            f'text-anchor="middle">{place + 1}</text>'
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="image with {len(regions)} boxes">'
        f'<image href="{uri}" width="{width}" height="{height}" preserveAspectRatio="none"/>{"".join(boxes)}</svg>'
    )


def _region(place: int, region: Region) -> str:
    facts = [escape(region.category)] if region.category else []
    if region.score is not None:
        facts.append(f"{region.score:.2f}")
    negatives = "".join(f"<li>{marked(region.phrase, text)}</li>" for text in region.negatives)
    longer = f'<p class="long">{escape(region.long_phrase)}</p>' if region.long_phrase else ""
    return (
        f'<li style="--color:{COLORS[place % len(COLORS)]}"><b>{escape(region.phrase)}</b> '
        f'<span class="quiet">{" · ".join(facts)}</span>{longer}'
        f"{f'<ul>{negatives}</ul>' if negatives else ''}</li>"
    )
