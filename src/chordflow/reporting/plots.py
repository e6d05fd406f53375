"""What all plots of the page have in common: colours, layout, marks, labels that are never read as markup."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from chordflow.reporting.section import ordered
from chordflow.results.actions import STUDENT, TEACHER, PolicyName
from chordflow.results.schema import Results
from chordflow.results.statistics import Interval
from chordflow.results.wording import clean

# The hues are dark enough for white and light enough for dark paper (3:1 on both), so that plots need no redrawing
# when the theme changes; text and grid take their colours from the page's style sheet. Okabe and Ito's where they do.
TEACHER_BLUE, STUDENT_ORANGE = "#2278B5", "#D55E00"
OTHERS = ("#0B8F6A", "#B4649B", "#8A6FD1", "#98750E", "#4C8C2B", "#B0524A")
COLOURS = (TEACHER_BLUE, STUDENT_ORANGE, *OTHERS)
NEUTRAL = "#808388"
"""Reference lines: floor, ceiling, margin, chords."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "pentagon", "hexagon")
"""Marker of each policy, so that colour is never the only mark."""

SEQUENTIAL = [[0.0, "#fff7ea"], [0.25, "#f5c98f"], [0.5, "#e08a4b"], [0.75, "#b04a35"], [1.0, "#5a1733"]]
"""Light to dark in even steps of lightness."""

LONGEST = 26
"""Characters of a name that a plot's label has room for; the table beside it has all of them."""


@dataclass(frozen=True)
class Plot:
    """A plot with what a reader who does not see it needs.

    Attributes:
        key: short name, unique on the page.
        title: what it shows, a few words.
        caption: what there is to see, with the figures that matter; the plot's text alternative.
        figure: the drawing.
        pictures: what stands above it: names of cameras, each with what it shows as a data URI.
    """

    key: str
    title: str
    caption: str
    figure: go.Figure
    pictures: Sequence[tuple[str, str]] = ()


def label(text: str, longest: int = LONGEST) -> str:
    """A name as plotly shows it: one line, cut, its `<`, `>` and `&` no markup, its direction its own."""
    text = clean(text)
    if len(text) > longest:
        text = text[: longest - 1].rstrip() + "…"
    # Plotly reads some HTML in labels, and knows these three entities.
    text = html.escape(text, quote=False)
    return text if text.isascii() else f"\u2068{text}\u2069"


def hover(*lines: str) -> str:
    """Lines of a hover box, made of labels."""
    return "<br>".join(lines)


def rounded(values: Iterable[float]) -> list[float]:
    """Numbers to five significant digits: more than a screen shows, in half the room."""
    return [float(f"{value:.5g}") for value in values]


@dataclass(frozen=True)
class Style:
    """Colour and marker of a policy, the same in all plots of a page."""

    colour: str
    symbol: str


def styles(results: Results) -> dict[PolicyName, Style]:
    """Colour and marker of every policy that the results name."""
    rows: list[Any] = [
        *results.curvature, *results.gaps, *results.success, *results.trajectories, *results.motion,
        *results.delays, *results.sequential, *results.timing, *results.flip_checks,
    ]  # fmt: skip
    names = ordered(results, [*(policy.name for policy in results.policies), *(row.policy for row in rows)])
    found = {TEACHER: Style(TEACHER_BLUE, SYMBOLS[0]), STUDENT: Style(STUDENT_ORANGE, SYMBOLS[1])}
    for place, name in enumerate(name for name in names if name not in found):
        found[name] = Style(OTHERS[place % len(OTHERS)], SYMBOLS[(2 + place) % len(SYMBOLS)])
    return found


# ---- Axes -----------------------------------------------------------------------------------------------


def canvas(height: int, x: str, y: str, **layout: Any) -> go.Figure:
    """An empty plot, as wide as the page's column, with the titles of its axes and further settings of plotly's."""
    axis = {"gridcolor": "#cccccc", "zeroline": False, "automargin": True, "ticks": "", "linecolor": NEUTRAL}
    title = {"standoff": 8, "font": {"size": 13}}
    figure = go.Figure(
        layout={
            "template": "none",
            "height": height,
            "margin": {"l": 8, "r": 14, "t": 14, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 13},
            "hoverlabel": {"bgcolor": "#20242a", "bordercolor": "#20242a", "font": {"color": "#ffffff"}},
            "hovermode": "closest",
            "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "itemsizing": "constant"},
            "xaxis": {**axis, "title": {**title, "text": x}},
            "yaxis": {**axis, "title": {**title, "text": y}},
        }
    )
    return figure.update_layout(**layout)


def ticks(at: Sequence[float], texts: Iterable[str], **axis: Any) -> dict[str, Any]:
    """Settings of an axis with ticks of one's own."""
    return {"tickmode": "array", "tickvals": list(at), "ticktext": list(texts), **axis}


def log_axis(low: float, high: float, **axis: Any) -> dict[str, Any]:
    """Settings of a logarithmic axis with figures such as 1, 2, 5, 10 in place of powers."""
    at = [m * 10.0**e for e in range(-6, 9) for m in (1, 2, 5) if low / 1.05 <= m * 10.0**e <= high * 1.05]
    if len(at) > 7:
        at = [value for value in at if f"{value:e}"[0] == "1"]
    return {"type": "log", **(ticks(at, map("{:g}".format, at)) if len(at) >= 2 else {}), **axis}


def rows_axis(names: Sequence[str]) -> dict[str, Any]:
    """Settings of a vertical axis of names, the first at the top; places are numbers, so equal names stay apart."""
    return ticks(range(len(names)), map(label, names), range=[len(names) - 0.5, -0.5], showgrid=False)


def rows_height(count: int) -> int:
    """Pixels for a plot of so many rows."""
    return 90 + 30 * max(count, 2)


# ---- Marks ----------------------------------------------------------------------------------------------


def add_marks(
    figure: go.Figure,
    x: Iterable[float],
    y: Iterable[float],
    name: str,
    hovers: Sequence[str],
    *,
    colour: str,
    symbol: str = "circle",
    size: int = 8,
    dash: str = "",
    marker: dict[str, Any] | None = None,
    **trace: Any,
) -> None:
    """Add markers with their hover boxes, joined by a line where it has a dash.

    `marker` and `trace` are further settings of plotly's.
    """
    settings: dict[str, Any] = {"mode": "markers"}
    if dash:
        settings = {"mode": "lines+markers", "line": {"color": colour, "width": 2, "dash": dash}}
    if hovers:
        settings |= {"hoverinfo": "text", "hovertext": list(hovers)}
    look = {"color": colour, "symbol": symbol, "size": size, **(marker or {})}
    figure.add_scatter(x=rounded(x), y=rounded(y), name=name, marker=look, **settings | trace)


def add_bars(
    figure: go.Figure,
    values: Iterable[float],
    name: str,
    hovers: Sequence[str],
    *,
    colour: str,
    hatch: str = "",
    places: Iterable[float] | None = None,
    across: bool = False,
    **trace: Any,
) -> None:
    """Add bars with their hover boxes, standing at `places`, by default at 0, 1, 2, or lying across.

    A hatch over the colour marks a stack; `trace` are further settings of plotly's.
    """
    long, at = rounded(values), list(range(len(hovers))) if places is None else rounded(places)
    pattern = {"shape": hatch, "size": 7, "solidity": 0.25, "fillmode": "overlay", "fgcolor": "#ffffff"}
    lie = {"x": long, "y": at, "orientation": "h"} if across else {"x": at, "y": long}
    marker = {"color": colour, "pattern": pattern}
    figure.add_bar(name=name, marker=marker, hoverinfo="text", hovertext=list(hovers), **lie, **trace)


def error(
    values: Sequence[float], intervals: Sequence[Interval | None], scale: float = 100
) -> dict[str, Any]:
    """Error bars: from values to the ends of their intervals, in percent unless the scale is another."""
    ends = [(v, i or Interval(v, v)) for v, i in zip(values, intervals, strict=True)]
    above = rounded(scale * max(end.high - value, 0.0) for value, end in ends)
    below = rounded(scale * max(value - end.low, 0.0) for value, end in ends)
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 1.6,
        "width": 4,
    }


def reference_line(
    figure: go.Figure, text: str, *, x: float | None = None, y: float | None = None, log: bool = False
) -> None:
    """A dashed line across the plot with its name: the floor, the ceiling, a margin; `log` of a logarithmic axis."""
    line = {"color": NEUTRAL, "width": 2, "dash": "dash"}
    if x is not None:
        figure.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, yref="paper", line=line)
        place: dict[str, Any] = {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "center"}
    elif y is not None:
        figure.add_shape(type="line", y0=y, y1=y, x0=0, x1=1, xref="paper", line=line)
        # Annotations of a logarithmic axis take the logarithm, shapes the value.
        at = math.log10(y) if log else y
        place = {"x": 0.01, "xref": "paper", "y": at, "xanchor": "left", "yanchor": "bottom"}
    figure.add_annotation(text=text, showarrow=False, font={"size": 12}, **place)
