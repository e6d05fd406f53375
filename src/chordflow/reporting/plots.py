"""What all plots of the page have in common: colours, layout, labels that are never read as markup."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from chordflow.reporting.section import ordered
from chordflow.results.actions import PolicyName
from chordflow.results.schema import Results
from chordflow.results.wording import clean

# The hues are dark enough for white and light enough for dark paper (3:1 on both), so that plots need no redrawing
# when the theme changes; text and grid take their colours from the page's style sheet. Okabe and Ito's where they do.
TEACHER_BLUE, STUDENT_ORANGE = "#2278B5", "#D55E00"
OTHERS = ("#0B8F6A", "#B4649B", "#8A6FD1", "#98750E", "#4C8C2B", "#B0524A")
NEUTRAL = "#808388"
"""Reference lines: floor, ceiling, margin, chords."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "pentagon", "hexagon")
"""Marker of each policy, so that nothing is told by colour alone."""

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
        group: plots of one group stand side by side where there is room.
    """

    key: str
    title: str
    caption: str
    figure: go.Figure
    group: str = ""


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


@dataclass(frozen=True)
class Look:
    """Colour and marker of a policy, the same in all plots of a page."""

    colour: str
    symbol: str


def looks(results: Results) -> dict[PolicyName, Look]:
    """Colour and marker of every policy that the results name."""
    rows: list[Any] = [
        *results.curvature, *results.gaps, *results.success, *results.trajectories, *results.motion,
        *results.delays, *results.sequential, *results.timing, *results.flip_checks,
    ]  # fmt: skip
    names = ordered(results, [*(policy.name for policy in results.policies), *(row.policy for row in rows)])
    found, others = {}, 0
    for name in names:
        if name in ("teacher", "student"):
            colour = TEACHER_BLUE if name == "teacher" else STUDENT_ORANGE
            found[name] = Look(colour, SYMBOLS[name == "student"])
        else:
            found[name] = Look(OTHERS[others % len(OTHERS)], SYMBOLS[(2 + others) % len(SYMBOLS)])
            others += 1
    return found


def rounded(values: Iterable[float]) -> list[float]:
    """Numbers to five significant digits: more than a screen shows, in half the room."""
    return [float(f"{value:.5g}") for value in values]


def canvas(height: int, x: str, y: str, **layout: Any) -> go.Figure:
    """An empty plot.

    Args:
        height: in pixels; the width is that of the page's column.
        x: title of the horizontal axis.
        y: title of the vertical axis.
        layout: further settings of plotly's layout.
    """
    axis: dict[str, Any] = {
        "gridcolor": "#cccccc", "zeroline": False, "automargin": True, "ticks": "", "linecolor": NEUTRAL,
    }  # fmt: skip
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
            "xaxis": {**axis, "title": {"text": x, "standoff": 8, "font": {"size": 13}}},
            "yaxis": {**axis, "title": {"text": y, "standoff": 8, "font": {"size": 13}}},
        }
    )
    return figure.update_layout(**layout)


def shares_range(largest: float) -> list[float]:
    """Ends of an axis of shares in percent, up to the largest, a fraction: no axis goes beyond 100 %."""
    return [0.0, min(100.0, max(110 * largest, 1.0))]


def plain_log_axis(figure: go.Figure, axis: str, low: float, high: float) -> None:
    """A logarithmic axis with figures such as 1, 2, 5, 10 in place of powers."""
    candidates = [m * 10.0**e for e in range(-6, 9) for m in (1, 2, 5)]
    ticks = [value for value in candidates if low / 1.05 <= value <= high * 1.05]
    if len(ticks) > 7:
        ticks = [value for value in ticks if f"{value:e}"[0] == "1"]
    settings: dict[str, Any] = {"type": "log"}
    if len(ticks) >= 2:
        settings |= {"tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    figure.update_layout({axis: settings})


def rows_axis(figure: go.Figure, names: Sequence[str]) -> None:
    """A vertical axis of names, the first at the top; places are numbers, so equal names stay apart."""
    figure.update_layout(
        yaxis={
            "tickmode": "array",
            "tickvals": list(range(len(names))),
            "ticktext": [label(name) for name in names],
            "range": [len(names) - 0.5, -0.5],
            "showgrid": False,
        }
    )


def rows_height(count: int) -> int:
    """Pixels for a plot of so many rows."""
    return 90 + 30 * max(count, 2)


def pattern(shape: str) -> dict[str, Any]:
    """A hatch over a bar's colour, so that stacks are told apart without it."""
    return {"shape": shape, "size": 7, "solidity": 0.25, "fillmode": "overlay", "fgcolor": "#ffffff"}


def error(centre: Sequence[float], low: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    """Error bars from centres and ends of intervals."""
    return {
        "type": "data",
        "symmetric": False,
        "array": rounded(max(h - c, 0.0) for c, h in zip(centre, high, strict=True)),
        "arrayminus": rounded(max(c - low_, 0.0) for c, low_ in zip(centre, low, strict=True)),
        "thickness": 1.6,
        "width": 4,
    }


def reference_line(figure: go.Figure, text: str, *, x: float | None = None, y: float | None = None) -> None:
    """A dashed line across the plot with its name: the floor, the ceiling, a margin."""
    line = {"color": NEUTRAL, "width": 2, "dash": "dash"}
    if x is not None:
        figure.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, yref="paper", line=line)
        place: dict[str, Any] = {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "center"}
    else:
        figure.add_shape(type="line", y0=y, y1=y, x0=0, x1=1, xref="paper", line=line)
        place = {"x": 0.01, "xref": "paper", "y": y, "xanchor": "left", "yanchor": "bottom"}
    figure.add_annotation(text=text, showarrow=False, font={"size": 12}, **place)
