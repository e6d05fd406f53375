"""Plots of the studies: lines of medians over seeds, each in a band from the least to the largest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chordflow.reporting.plots import (
    OTHERS,
    STUDENT_ORANGE,
    SYMBOLS,
    TEACHER_BLUE,
    Plot,
    canvas,
    hover,
    label,
    plain_log_axis,
    rounded,
)
from chordflow.results.compare_summary import Spread
from chordflow.results.wording import clean

COLOURS = (TEACHER_BLUE, STUDENT_ORANGE, *OTHERS)
DASHES = ("solid", "dash", "dot", "dashdot")
MOST_MARKERS = 15
"""Points of a line that are still marked one by one."""


@dataclass(frozen=True)
class Point:
    """A figure over seeds.

    Attributes:
        x: where it stands.
        at: what it belongs to, in hover boxes.
        spread: over seeds.
    """

    x: float
    at: str
    spread: Spread


@dataclass(frozen=True)
class Line:
    """One arm's figures.

    Attributes:
        name: of the arm.
        look: number of its colour and marker.
        dash: number of its dash.
        points: from left to right.
    """

    name: str
    look: int
    dash: int
    points: Sequence[Point]


@dataclass(frozen=True)
class Axes:
    """What a plot shows.

    Attributes:
        key: of the plot.
        title: of the plot.
        x: title of the horizontal axis.
        y: title of the vertical axis.
        text: of a figure, in hover boxes and captions.
        scale: by which a figure is multiplied on the axis.
        log: whether the vertical axis is logarithmic, where all figures allow it.
    """

    key: str
    title: str
    x: str
    y: str
    text: Callable[[float], str]
    scale: float = 1.0
    log: bool = True


def draw(axes: Axes, lines: Sequence[Line], ends_at: str) -> Plot | None:
    """The plot; None where no line has a point.

    Args:
        axes: what it shows.
        lines: of the arms; those without points are left out.
        ends_at: where the last points stand, for the caption.
    """
    figure = canvas(380, axes.x, axes.y)
    ends, values = [], []
    for line in (line for line in lines if line.points):
        x, spreads = [point.x for point in line.points], [point.spread for point in line.points]
        colour = COLOURS[line.look % len(COLOURS)]
        low, middle, high = (
            rounded(axes.scale * getattr(spread, name) for spread in spreads)
            for name in ("low", "middle", "high")
        )
        values += [*low, *high]
        if any(spread.count > 1 for spread in spreads):
            figure.add_scatter(
                x=[*x, *reversed(x)], y=[*high, *reversed(low)], mode="lines", fill="toself", line={"width": 0},
                fillcolor=colour, opacity=0.18, hoverinfo="skip", showlegend=False, legendgroup=line.name,
            )  # fmt: skip
        figure.add_scatter(
            x=x, y=middle, mode="lines+markers" if len(x) <= MOST_MARKERS else "lines", name=label(line.name, 40),
            legendgroup=line.name,
            line={"color": colour, "width": 2, "dash": DASHES[line.dash % len(DASHES)]},
            marker={"size": 7, "symbol": SYMBOLS[line.look % len(SYMBOLS)]},
            hoverinfo="text",
            hovertext=[
                hover(
                    label(f"{line.name}, {point.at}", 60),
                    f"{axes.text(point.spread.middle)}, {_range(axes, point.spread)}",
                )
                for point in line.points
            ],
        )  # fmt: skip
        ends.append(f"{clean(line.name)} {axes.text(spreads[-1].middle)} ({_range(axes, spreads[-1])})")
    if not ends:
        return None
    if axes.log and min(values) > 0:
        plain_log_axis(figure, "yaxis", min(values), max(values))
    caption = f"Median over seeds, in a band from the least to the largest; {ends_at} {'; '.join(ends)}."
    return Plot(axes.key, axes.title, caption, figure, axes.key)


def _range(axes: Axes, spread: Spread) -> str:
    return f"{axes.text(spread.low)} to {axes.text(spread.high)}"
