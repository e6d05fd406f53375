"""Plots of a study of beginnings: loss, gap and success by optimiser step, with the spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from chordflow.report.plots import (
    OTHERS,
    STUDENT_ORANGE,
    SYMBOLS,
    TEACHER_BLUE,
    Plot,
    canvas,
    hover,
    label,
    plain_log_axis,
    reference_line,
    rounded,
)
from chordflow.results.compare import STEP_COUNTS
from chordflow.results.compare_summary import Spread
from chordflow.results.init_study import Arm, InitStudy
from chordflow.results.init_study_summary import gap, level, loss, rates
from chordflow.results.wording import clean, percent, steps

COLOURS = (TEACHER_BLUE, STUDENT_ORANGE, *OTHERS)
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Measure:
    """What a plot shows.

    Attributes:
        key: of the plot.
        title: of the plot.
        axis: title of its vertical axis.
        of: an arm's figure over seeds after so many steps.
        scale: by which it is multiplied on the axis.
        text: of a figure, in hover boxes and captions.
        log: whether the axis is logarithmic.
    """

    key: str
    title: str
    axis: str
    of: Callable[[InitStudy, Arm, int], Spread | None]
    scale: float
    text: Callable[[float], str]
    log: bool = True


def plots(study: InitStudy) -> list[list[Plot]]:
    """Groups of plots that stand side by side; what was not measured is left out."""
    entries = sorted({step for run in study.runs for step in run.loss.steps})
    losses = Measure("loss", "Training loss", "loss, mean since the point before", loss, 1.0, _small)
    gaps = [
        Measure(f"gap-{n}", f"Gap at {steps(n)}", "RMS gap, %", partial(gap, num_steps=n), 100.0, percent)
        for n in STEP_COUNTS
    ]
    success = Measure(
        "success", "Success at one step", "episodes solved, %", rates, 100.0, percent, log=False
    )
    drawn = {m.key: _drawn(study, m, entries if m is losses else study.at) for m in (losses, *gaps, success)}
    one = drawn["gap-1"]
    if one is not None:
        reference_line(one.figure, level(study), y=100 * study.level)
        # Annotations of a logarithmic axis take the logarithm, shapes the value.
        one.figure.layout.annotations[0].update(y=math.log10(100 * study.level))
    groups = (("loss", "gap-1"), ("gap-2", "gap-10"), ("success",))
    found = [[plot for key in group if (plot := drawn[key]) is not None] for group in groups]
    return [group for group in found if group]


def _drawn(study: InitStudy, measure: Measure, at: Sequence[int]) -> Plot | None:
    """A line of medians for each arm, in a band from the least to the largest; None where there is nothing."""
    figure = canvas(380, "optimiser step", measure.axis)
    beginnings = list(dict.fromkeys(arm.beginning for arm in study.arms))
    learning_rates = sorted({arm.learning_rate for arm in study.arms}, reverse=True)
    ends, values = [], []
    for arm in study.arms:
        points = [(step, spread) for step in at if (spread := measure.of(study, arm, step)) is not None]
        if not points:
            continue
        place = beginnings.index(arm.beginning)
        colour, x = COLOURS[place % len(COLOURS)], [step for step, _ in points]
        low, middle, high = (
            rounded(measure.scale * getattr(spread, name) for _, spread in points)
            for name in ("low", "middle", "high")
        )
        values += [*low, *high]
        if any(spread.count > 1 for _, spread in points):
            figure.add_scatter(
                x=[*x, *reversed(x)], y=[*high, *reversed(low)], mode="lines", fill="toself", line={"width": 0},
                fillcolor=colour, opacity=0.18, hoverinfo="skip", showlegend=False, legendgroup=arm.name,
            )  # fmt: skip
        dash = DASHES[learning_rates.index(arm.learning_rate) % len(DASHES)]
        figure.add_scatter(
            x=x, y=middle, mode="lines+markers" if len(x) <= len(study.at) else "lines", name=label(arm.name, 40),
            legendgroup=arm.name, line={"color": colour, "width": 2, "dash": dash},
            marker={"size": 7, "symbol": SYMBOLS[place % len(SYMBOLS)]},
            hoverinfo="text",
            hovertext=[
                hover(
                    label(f"{arm.name}, step {step:,}", 60),
                    f"{measure.text(s.middle)}, {measure.text(s.low)} to {measure.text(s.high)}",
                )
                for step, s in points
            ],
        )  # fmt: skip
        last = points[-1][1]
        ends.append(
            f"{clean(arm.name)} {measure.text(last.middle)} ({measure.text(last.low)} to {measure.text(last.high)})"
        )
    if not ends:
        return None
    if measure.log and min(values) > 0:
        plain_log_axis(figure, "yaxis", min(values), max(values))
    caption = (
        f"Median over seeds, in a band from the least to the largest; at the last step {'; '.join(ends)}."
    )
    return Plot(measure.key, measure.title, caption, figure, measure.key)


def _small(value: float) -> str:
    return f"{value:.3g}"
