"""Plots of a study of rounds: curvature, drift, diversity and success after each round, over all steps so far.

Arms stand over the optimiser steps that they have taken in all, so that one round of the steps of all rounds stands
above the last of several.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from chordflow.reporting.plots import Plot
from chordflow.reporting.seed_lines import Axes, Line, Point, draw
from chordflow.results.compare import STEP_COUNTS
from chordflow.results.compare_summary import Spread, spread_of
from chordflow.results.rounds_study import RoundArm, RoundRun, RoundsStudy
from chordflow.results.rounds_summary import curvature_of, gap_of, modes_at_one, over_seeds, spread_at_one
from chordflow.results.wording import percent, steps

X = "optimiser steps of all rounds so far"
Figure = Callable[[RoundRun], float | None]


def plots(study: RoundsStudy) -> list[list[Plot]]:
    """Groups of plots that stand side by side; what was not measured is left out."""
    own = study.untrained
    figures = own.figures if own is not None else None
    diversity = next((row for row in study.diversity if row.num_steps == 1), None)
    acted = [row.rate for row in own.success if (row.num_steps, row.group) == (1, "all")] if own else []
    shown = partial(_drawn, study)
    curvature = shown(
        Axes("curvature", "Curvature", X, "curvature, %", percent, 100.0),
        curvature_of,
        figures.curvature if figures else None,
    )
    gaps = []
    for n in STEP_COUNTS:
        row = figures.gap(n) if figures is not None else None
        axes = Axes(f"gap-{n}", f"Gap to the first teacher at {steps(n)}", X, "RMS gap, %", percent, 100.0)
        gaps.append(shown(axes, gap_of("rms", n), row.rms if row is not None else None))
    spread = shown(
        Axes("spread", "Spread over noise at one step", X, "of the first teacher's, %", percent, 100.0, log=False),
        spread_at_one,
        diversity.spread if diversity else None,
    )  # fmt: skip
    modes = shown(
        Axes("modes", "All modes kept at one step", X, "observations, %", percent, 100.0, log=False),
        modes_at_one,
        diversity.modes_kept if diversity else None,
    )
    success = shown(
        Axes("success", "Success at one step", X, "episodes solved, %", percent, 100.0, log=False),
        lambda run: run.success[0].rate if run.success else None,
        acted[0] if acted else None,
    )
    groups = [[curvature, gaps[0]], gaps[1:], [spread, modes], [success]]
    found = [[plot for plot in group if plot is not None] for group in groups]
    return [group for group in found if group]


def _drawn(study: RoundsStudy, axes: Axes, of: Figure, untrained: float | None) -> Plot | None:
    """A line for each arm, from the untrained teacher on; None where no student has the figure."""
    starts = list(dict.fromkeys(arm.start for arm in study.arms))
    ways = list(dict.fromkeys((arm.solver, arm.real_data_share) for arm in study.arms))
    begun = [] if untrained is None else [Point(0, "teacher, untrained", _one(untrained))]
    lines = []
    for arm in study.arms:
        points = _points(study, arm, of)
        look, dash = starts.index(arm.start), ways.index((arm.solver, arm.real_data_share))
        lines.append(Line(arm.name, look, dash, [*begun, *points] if points else []))
    plot = draw(axes, lines, "after the last round")
    if plot is not None:
        ends = [study.steps * round for round in range(study.rounds + 1)]
        plot.figure.update_xaxes(tickmode="array", tickvals=ends, ticktext=[f"{end:,}" for end in ends])
    return plot


def _points(study: RoundsStudy, arm: RoundArm, of: Figure) -> list[Point]:
    each = arm.steps_of(study.steps, study.rounds)
    return [
        Point(round * each, f"round {round}", spread)
        for round in range(1, arm.rounds_of(study.rounds) + 1)
        if (spread := over_seeds(study, arm, round, of)) is not None
    ]


def _one(value: float) -> Spread:
    spread = spread_of([value])
    assert spread is not None
    return spread
