"""A study as one HTML file that holds all it needs and fetches nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from plotly.offline import get_plotlyjs

from chordflow.reporting.page import asset, command_lines, environment, flat, json_in_html, policy
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
    reference_line,
    rounded,
)
from chordflow.reporting.study_table import facts, sections
from chordflow.results.study import STEP_COUNTS, STUDY, Arm, Look, Study
from chordflow.results.study_summary import (
    Figure,
    Measured,
    Spread,
    budget,
    curvature,
    diversity,
    gap,
    headline,
    level,
    loss,
    measured,
    over_seeds,
    solved,
    spread_of,
)
from chordflow.results.wording import clean, percent, steps

COLOURS = (TEACHER_BLUE, STUDENT_ORANGE, *OTHERS)
DASHES = ("solid", "dash", "dot", "dashdot")
MOST_MARKERS = 15
"""Points of a line that are still marked one by one."""
NAMES = {
    "methods": "Methods",
    "beginnings": "Beginnings",
    "rounds": "Rounds",
    "reuse": "Reuse",
    "file": "Study",
}
PLOTS: list[list[tuple[str, str, str, Figure]]] = [
    [("loss", "Training loss", "loss", loss), ("curvature", "Curvature", "curvature, %", curvature)],
    [(f"gap-{n}", f"Gap at {steps(n)}", "RMS gap, %", gap(n)) for n in STEP_COUNTS],
    [
        ("spread", "Spread over noise at one step", "of the teacher's, %", diversity("spread")),
        ("modes", "All modes kept at one step", "observations, %", diversity("modes_kept")),
    ],
    [("success", "Success at one step", "episodes solved, %", solved)],
]
"""Key, title, vertical axis and figure of every plot; those of one group stand side by side."""


class Point(NamedTuple):
    """A figure over seeds: where it stands, what it belongs to, the spread."""

    x: float
    at: str
    spread: Spread


def page(study: Study) -> str:
    """The HTML of a study; whatever comes out of the study is escaped."""
    groups = plots(study)
    drawn = {plot.key: json.loads(plot.figure.to_json()) for group in groups for plot in group}
    scripts = {name: asset(f"{name}.js") for name in ("theme", "report")} | {"plotly": get_plotlyjs()}
    return environment().get_template("study.html.j2").render(
        title=f"{NAMES[study.preset]}: {clean(study.teacher)}",
        heading=NAMES[study.preset],
        file=STUDY,
        subtitle=f"{budget(study)} each, seeds {', '.join(map(str, study.seeds))}",
        teacher=study.teacher,
        policy=policy(scripts.values()),
        style=asset("style.css"),
        scripts=scripts,
        # A browser breaks lines within an arrow of two characters.
        headline=headline(study).replace("->", "\u2192"),
        groups=groups,
        plots=json_in_html(drawn),
        sections=sections(study),
        facts=facts(study),
        command=command_lines(study.command),
        settings=list(flat(study.settings)),
    )  # fmt: skip


def plots(study: Study) -> list[list[Plot]]:
    """Groups of plots, over the looks or over the rounds of a chain; none where there is but one point a line."""
    if not study.looks_often and all(len(chain) == 1 for chain in study.chains):
        return []
    places = _over_looks if study.looks_often else _over_chain
    found = [
        [plot for key, title, y, of in group if (plot := _draw(study, key, title, y, of, places)) is not None]
        for group in PLOTS
    ]
    return [group for group in found if group]


def _over_looks(study: Study, key: str, of: Figure) -> dict[str, list[Point]]:
    lines: dict[str, list[Point]] = {}
    for arm in study.arms:
        at: Iterable[tuple[float, Spread | None]] = (
            (mark, over_seeds(study, arm, of, mark)) for mark in study.looks
        )
        if key == "loss":
            at = _losses(study, arm)
        unit = "step" if study.seconds is None else "second"
        lines[arm.way] = [Point(x, f"{unit} {x:,g}", spread) for x, spread in at if spread is not None]
    return lines


def _losses(study: Study, arm: Arm) -> Iterable[tuple[float, Spread | None]]:
    """The training loss wherever any seed has an entry."""
    students = measured(study, arm)
    entries = {step for one in students if one.trial and one.trial.losses for step in one.trial.losses.steps}
    return ((step, spread_of(loss(one, step) for one in students)) for step in sorted(entries))


def _over_chain(study: Study, key: str, of: Figure) -> dict[str, list[Point]]:
    """Over all steps so far, so that one round of the steps of all rounds stands above the last of several."""
    lines = {}
    for chain in study.chains:
        begun, x = [], 0.0
        if study.untrained is not None:
            acted = [row for row in study.untrained.success if (row.num_steps, row.group) == (1, "all")]
            teacher = Look(0, 0, None, "", "", study.untrained.figures, acted)
            spread = spread_of([of(Measured(None, teacher))])
            begun = [Point(0, "teacher, untrained", spread)] if spread is not None else []
        points = []
        for place, arm in enumerate(chain, 1):
            x += arm.steps or study.steps or study.seconds or 0
            spread = over_seeds(study, arm, of)
            points += [Point(x, f"round {place}", spread)] if spread is not None else []
        lines[chain[-1].way] = [*begun, *points] if points else []
    return lines


def _draw(
    study: Study,
    key: str,
    title: str,
    y: str,
    of: Figure,
    places: Callable[[Study, str, Figure], dict[str, list[Point]]],
) -> Plot | None:
    """Lines of medians, each in a band from the least to the largest; None where no line has a point."""
    lines = {name: points for name, points in places(study, key, of).items() if points}
    figure = canvas(380, "optimiser step" if study.seconds is None else "seconds of training", y)
    scale = 100.0 if y.endswith("%") else 1.0
    text: Callable[[float], str] = percent if scale > 1 else "{:.3g}".format
    starts = list(dict.fromkeys(name.partition(", ")[0] for name in lines))
    kinds = list(dict.fromkeys(name.partition(", ")[2] for name in lines))
    ends, values = [], []
    for name, points in lines.items():
        start, _, kind = name.partition(", ")
        look, dash = starts.index(start), DASHES[kinds.index(kind) % len(DASHES)]
        colour, x = COLOURS[look % len(COLOURS)], [point.x for point in points]
        low, middle, high = (
            rounded(scale * getattr(point.spread, end) for point in points)
            for end in ("low", "middle", "high")
        )
        values += [*low, *high]
        if any(point.spread.count > 1 for point in points):
            figure.add_scatter(
                x=[*x, *reversed(x)], y=[*high, *reversed(low)], mode="lines", fill="toself", line={"width": 0},
                fillcolor=colour, opacity=0.18, hoverinfo="skip", showlegend=False, legendgroup=name,
            )  # fmt: skip
        texts = [
            (f"{text(p.spread.middle)}", f"{text(p.spread.low)} to {text(p.spread.high)}") for p in points
        ]
        figure.add_scatter(
            x=x, y=middle, mode="lines+markers" if len(x) <= MOST_MARKERS else "lines", name=label(name, 40),
            legendgroup=name, line={"color": colour, "width": 2, "dash": dash},
            marker={"size": 7, "symbol": SYMBOLS[look % len(SYMBOLS)]}, hoverinfo="text",
            hovertext=[
                hover(label(f"{name}, {point.at}", 60), f"{mid}, {ends_}")
                for point, (mid, ends_) in zip(points, texts, strict=True)
            ],
        )  # fmt: skip
        ends.append(f"{clean(name)} {texts[-1][0]} ({texts[-1][1]})")
    if not ends:
        return None
    if key not in ("spread", "modes", "success") and min(values) > 0:
        plain_log_axis(figure, "yaxis", min(values), max(values))
    if key == "gap-1" and places is _over_looks:
        reference_line(figure, level(study), y=100 * study.level)
        # Annotations of a logarithmic axis take the logarithm, shapes the value.
        figure.layout.annotations[0].update(y=math.log10(100 * study.level))
    if places is _over_chain:
        ticks: Sequence[float] = sorted({point.x for points in lines.values() for point in points})
        figure.update_xaxes(tickmode="array", tickvals=ticks, ticktext=[f"{tick:,g}" for tick in ticks])
    return Plot(
        key,
        title,
        f"Median over seeds, in a band from the least to the largest; at the end {'; '.join(ends)}.",
        figure,
        key,
    )
