"""A study as one HTML file that holds all it needs and fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chordflow.reporting import plots
from chordflow.reporting.page import rendered
from chordflow.reporting.plots import Plot
from chordflow.reporting.section import Writes
from chordflow.reporting.study_table import facts, sections
from chordflow.results import study_summary as figures
from chordflow.results.study import STEP_COUNTS, STUDY, Arm, Study
from chordflow.results.study_summary import Figure, Spread
from chordflow.results.wording import clean, percent, steps

DASHES = ("solid", "dash", "dot", "dashdot")
MOST_MARKERS = 15
"""Points of a line that are still marked one by one."""


class Shown(NamedTuple):
    """What a plot shows: its key, its title, its vertical axis and the figure."""

    key: str
    title: str
    axis: str
    of: Figure


PLOTS: list[list[Shown]] = [
    [
        Shown("loss", "Training loss", "loss", figures.loss),
        Shown("curvature", "Curvature", "curvature, %", figures.curvature),
    ],
    [
        Shown(f"gap-{n}", f"Gap at {steps(n)} to the converged ODE", "RMS gap, %", figures.gap(n))
        for n in STEP_COUNTS
    ],
    [
        Shown("spread", "Spread over noise at one step", "of the teacher's, %", figures.diversity("spread")),
        Shown("modes", "All modes kept at one step", "observations, %", figures.diversity("modes_kept")),
    ],
    [Shown("success", "Success at one step", "episodes solved, %", figures.solved)],
]
"""Every plot; those of one group stand side by side."""


class Point(NamedTuple):
    """A figure over seeds: where it stands, what it belongs to, the spread."""

    x: float
    at: str
    spread: Spread


def page(study: Study) -> str:
    """The HTML of a study."""
    groups = panels(study)
    name = "Study" if study.preset == "file" else study.preset.capitalize()
    return rendered(
        "study",
        (plot for group in groups for plot in group),
        study.command,
        study.settings,
        title=f"{name}: {clean(study.teacher)}",
        heading=name,
        file=STUDY,
        subtitle=f"{figures.budget(study)} each, seeds {', '.join(map(str, study.seeds))}",
        teacher=study.teacher,
        # A browser breaks lines within an arrow of two characters.
        answers=[text.replace("->", "\u2192") for text in figures.answers(study)],
        groups=groups,
        sections=sections(study),
        facts=facts(study),
    )


def panels(study: Study) -> list[list[Plot]]:
    """Groups of plots, over the looks or over the rounds of a chain; none where there is but one point a line."""
    if not study.looks_often and all(len(chain) == 1 for chain in study.chains):
        return []
    groups = [[plot for shown in group if (plot := _draw(study, shown)) is not None] for group in PLOTS]
    return [group for group in groups if group]


def _over_looks(study: Study, shown: Shown, arm: Arm) -> list[Point]:
    """The figure of an arm at every look; the training loss wherever any seed has an entry."""
    unit = "step" if study.seconds is None else "second"
    if shown.of is figures.loss:
        students = figures.measured(study, arm)
        entries = {
            step for one in students if one.trial and one.trial.losses for step in one.trial.losses.steps
        }
        found: list[tuple[float, Spread | None]] = [
            (step, figures.spread_of(figures.loss(one, step) for one in students)) for step in sorted(entries)
        ]
    else:
        found = [(mark, figures.over_seeds(study, arm, shown.of, mark)) for mark in study.looks]
    return [Point(x, f"{unit} {x:,g}", spread) for x, spread in found if spread is not None]


def _over_chain(study: Study, shown: Shown, chain: Sequence[Arm]) -> list[Point]:
    """Over all steps so far, so that one round of the steps of all rounds stands above the last of several."""
    points, x = [], 0.0
    for place, arm in enumerate(chain, 1):
        x += arm.steps or study.steps or study.seconds or 0
        if (spread := figures.over_seeds(study, arm, shown.of)) is not None:
            points.append(Point(x, f"round {place}", spread))
    teacher = figures.untrained(study)
    if points and teacher and (spread := figures.spread_of([shown.of(teacher)])) is not None:
        points.insert(0, Point(0, "teacher, untrained", spread))
    return points


def _draw(study: Study, shown: Shown) -> Plot | None:
    """Lines of medians, each in a band from the least to the largest; None where no line has a point."""
    if study.looks_often:
        lines = {study.label(arm): _over_looks(study, shown, arm) for arm in study.arms}
    else:
        lines = {study.label(c[-1], by_round=False): _over_chain(study, shown, c) for c in study.chains}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    unit = "optimiser step" if study.seconds is None else "seconds of training"
    figure = plots.canvas(380, unit, shown.axis)
    scale = 100.0 if shown.axis.endswith("%") else 1.0
    text: Writes = percent if scale > 1 else "{:.3g}".format
    # Arms named `START, KIND`: a colour for each start, a dash for each kind.
    starts, kinds = (list(dict.fromkeys(name.partition(", ")[part] for name in lines)) for part in (0, 2))
    ends = []
    for name, points in lines.items():
        start, _, kind = name.partition(", ")
        place, dash = starts.index(start), DASHES[kinds.index(kind) % len(DASHES)]
        colour, x = plots.COLOURS[place % len(plots.COLOURS)], [point.x for point in points]
        if any(point.spread.count > 1 for point in points):
            band = [point.spread.high for point in points] + [point.spread.low for point in reversed(points)]
            figure.add_scatter(
                x=[*x, *reversed(x)], y=plots.rounded(scale * value for value in band), mode="lines", fill="toself",
                line={"width": 0}, fillcolor=colour, opacity=0.18, hoverinfo="skip", showlegend=False, legendgroup=name,
            )  # fmt: skip
        ranges = [(text(p.spread.middle), f"{text(p.spread.low)} to {text(p.spread.high)}") for p in points]
        hovers = [
            plots.hover(plots.label(f"{name}, {point.at}", 60), ", ".join(texts))
            for point, texts in zip(points, ranges, strict=True)
        ]
        plots.add_marks(
            figure, x, [scale * point.spread.middle for point in points], plots.label(name, 40), hovers, colour=colour,
            dash=dash, symbol=plots.SYMBOLS[place % len(plots.SYMBOLS)], size=7, legendgroup=name,
            mode="lines+markers" if len(x) <= MOST_MARKERS else "lines",
        )  # fmt: skip
        ends.append(f"{clean(name)} {ranges[-1][0]} ({ranges[-1][1]})")
    every = [point for points in lines.values() for point in points]
    low, high = min(point.spread.low for point in every), max(point.spread.high for point in every)
    is_log = shown.key not in ("spread", "modes", "success") and low > 0
    if is_log:
        figure.update_layout(yaxis=plots.log_axis(scale * low, scale * high))
    if study.looks_often and shown.key == "gap-1":
        plots.reference_line(figure, figures.level(study), y=100 * study.level, log=is_log)
    if not study.looks_often:
        marks = sorted({point.x for point in every})
        figure.update_layout(xaxis=plots.ticks(marks, (f"{mark:,g}" for mark in marks)))
    caption = f"Median over seeds, in a band from the least to the largest; at the end {'; '.join(ends)}."
    return Plot(shown.key, shown.title, caption, figure)
