"""Interactive curves of a page, by Bokeh: a panel a metric, a line a run or group, over steps or what else is known.

The choices above the panels are plain HTML that a keyboard can use; page.js applies them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from bokeh.embed import components
from bokeh.models import ColumnDataSource, HoverTool, Line, Scatter, Span, VArea
from bokeh.plotting import figure
from bokeh.resources import Resources

from pipeline.drawing.boxes import COLOURS
from pipeline.drawing.page import section
from pipeline.drawing.sampling import AXES, POINTS, STEP, SampledCurves

DASHES = ("solid", "dashed", "dotted")
PANEL_HEIGHT = 240  # pixels
FEW_POINTS = 3  # of a curve, which are shown as dots


@dataclass(frozen=True)
class Event:
    """Something that happened at a step: a resume, skipped steps, a fault."""

    step: int
    text: str
    colour: str = "#b42318"


@dataclass(frozen=True)
class CurvePanels:
    """HTML of the panels, and the scripts that the page needs for them."""

    html: str
    scripts: tuple[str, ...]


def curve_panels(
    lines: Mapping[str, SampledCurves],
    names: Sequence[str],
    units: Mapping[str, str],
    *,
    events: Sequence[Event] = (),
    half_life: float = 0.0,
) -> CurvePanels:
    """Panels of the metrics ``names``, with their legend, choices and what was cut and smoothed.

    Args:
        lines: curves by the name of a run or group.
        events: vertical lines in every panel.
        half_life: with which the curves were smoothed; for the legend.
    """
    shown = [name for name in names if any(name in line.middle for line in lines.values())]
    if not shown:
        return CurvePanels("", ())
    sources = {label: _source(line) for label, line in lines.items()}
    panels = {name: _panel(name, lines, sources, events) for name in shown}
    script, divs = components(panels, wrap_script=False)
    boxes = "".join(
        f'<div class="curve"><h3>{escape(name)}{_unit(units.get(name, ""))}</h3>{divs[name]}</div>' for name in shown
    )
    html = f'{_controls(lines)}<div class="curves">{boxes}</div>'
    library = "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
    return CurvePanels(section("Curves", html, _note(lines, half_life)), (library, script))


def _source(line: SampledCurves) -> ColumnDataSource:
    columns = {label: values.astype(np.float32) for label, values in line.axes.items()}
    for part, arrays in (("middle", line.middle), ("low", line.low), ("high", line.high)):
        if part == "middle" or _has_band(line):
            columns |= {f"{part} {name}": values for name, values in arrays.items()}
    return ColumnDataSource(columns)


def _has_band(line: SampledCurves) -> bool:
    return line.num_runs > 1 or line.is_reduced


def _panel(
    name: str, lines: Mapping[str, SampledCurves], sources: Mapping[str, ColumnDataSource], events: Sequence[Event]
) -> figure:
    panel = figure(
        height=PANEL_HEIGHT,
        sizing_mode="stretch_width",
        x_axis_label=STEP,
        tools="xpan,xwheel_zoom,box_zoom,reset",
        active_drag="box_zoom",
        active_scroll=None,
        tags=[STEP],
    )
    panel.toolbar.logo, panel.toolbar.autohide = None, True
    drawn = []
    for number, (label, line) in enumerate(lines.items()):
        if name not in line.middle:
            continue
        colour, dash = style_of(number)
        # glyphs of their own, because figure.line() would write three copies of each into the page
        source, middle = sources[label], f"middle {name}"
        if _has_band(line):
            band = VArea(x=STEP, y1=f"low {name}", y2=f"high {name}", fill_color=colour, fill_alpha=0.18)
            panel.add_glyph(source, band, tags=[label])
        curve = Line(x=STEP, y=middle, line_color=colour, line_dash=dash, line_width=1.8)
        drawn.append(panel.add_glyph(source, curve, name=label, tags=[label]))
        if np.isfinite(line.middle[name]).sum() <= FEW_POINTS:
            panel.add_glyph(
                source, Scatter(x=STEP, y=middle, line_color=colour, fill_color=colour, size=7), tags=[label]
            )
    for event in events:
        panel.add_layout(Span(location=event.step, dimension="height", line_color=event.colour, line_dash="dashed"))
    # "$name" is replaced as text, so that a run's name is not read as HTML
    tooltips = [("run", "$name"), ("at", "$snap_x{0,0.[00]}"), ("value", "$snap_y{0.0000[000]}")]
    panel.add_tools(HoverTool(renderers=drawn, tooltips=tooltips, mode="mouse", line_policy="nearest"))
    return panel


def style_of(number: int) -> tuple[str, str]:
    """Colour and dash of a line; they repeat after all pairs were used."""
    return COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]


def _controls(lines: Mapping[str, SampledCurves]) -> str:
    axes = [
        label
        for label in AXES
        if any(label in line.axes and np.isfinite(line.axes[label]).any() for line in lines.values())
    ]
    options = "".join(f"<option>{escape(label)}</option>" for label in axes)
    over = f'<label>over <select id="axis">{options}</select></label>'
    groups = []
    for number, label in enumerate(lines):
        colour, dash = style_of(number)
        swatch = f'<span class="swatch {dash}" style="border-color:{colour}"></span>'
        text = escape(label)
        groups.append(f'<label><input type="checkbox" checked data-group="{text}">{swatch}{text}</label>')
    return f'<div class="controls">{over}{"".join(groups)}</div>'


def _unit(unit: str) -> str:
    return f' <span class="quiet">[{escape(unit)}]</span>' if unit else ""


def _note(lines: Mapping[str, SampledCurves], half_life: float) -> str:
    """What a reader must know of how the lines were made."""
    words = [
        f"smoothed by an exponential average with a half-life of {half_life:g} logged steps"
        if half_life > 0
        else "not smoothed"
    ]
    reduced = [f"{label} ({line.num_logged:,} logged steps)" for label, line in lines.items() if line.is_reduced]
    if reduced:
        words.append(
            f"cut to {POINTS} points, each the mean of its interval, for {', '.join(reduced[:3])}"
            f"{f' and {len(reduced) - 3} more' if len(reduced) > 3 else ''}"
        )
        if any(line.is_reduced and line.num_runs == 1 for line in lines.values()):
            words.append("the band of a single run reaches from the least to the greatest logged value")
    if any(line.num_runs > 1 for line in lines.values()):
        words.append("the line of several runs is their mean, its band one standard deviation")
    lost = sum(count for line in lines.values() for count in line.not_finite.values())
    if lost:
        words.append(f"{lost:,} values that are not finite are left out")
    return f"Curves are {'; '.join(words)}."
