"""Plots of a study of beginnings: loss, gap and success by optimiser step, with the spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from chordflow.reporting.plots import Plot, reference_line
from chordflow.reporting.seed_lines import Axes, Line, Point, draw
from chordflow.results.compare import STEP_COUNTS
from chordflow.results.compare_summary import Spread
from chordflow.results.init_study import Arm, InitStudy
from chordflow.results.init_study_summary import gap, level, loss, rates
from chordflow.results.wording import percent, steps

X = "optimiser step"


def plots(study: InitStudy) -> list[list[Plot]]:
    """Groups of plots that stand side by side; what was not measured is left out."""
    entries = sorted({step for run in study.runs for step in run.loss.steps})
    gaps = [
        (Axes(f"gap-{n}", f"Gap at {steps(n)}", X, "RMS gap, %", percent, 100.0), partial(gap, num_steps=n))
        for n in STEP_COUNTS
    ]
    drawn = {axes.key: _drawn(study, axes, of, study.at) for axes, of in gaps}
    losses = Axes("loss", "Training loss", X, "loss, mean since the point before", "{:.3g}".format)
    drawn["loss"] = _drawn(study, losses, loss, entries)
    success = Axes("success", "Success at one step", X, "episodes solved, %", percent, 100.0, log=False)
    drawn["success"] = _drawn(study, success, rates, study.at)
    one = drawn["gap-1"]
    if one is not None:
        reference_line(one.figure, level(study), y=100 * study.level)
        # Annotations of a logarithmic axis take the logarithm, shapes the value.
        one.figure.layout.annotations[0].update(y=math.log10(100 * study.level))
    groups = (("loss", "gap-1"), ("gap-2", "gap-10"), ("success",))
    found = [[plot for key in group if (plot := drawn[key]) is not None] for group in groups]
    return [group for group in found if group]


def _drawn(
    study: InitStudy, axes: Axes, of: Callable[[InitStudy, Arm, int], Spread | None], at: Sequence[int]
) -> Plot | None:
    beginnings = list(dict.fromkeys(arm.beginning for arm in study.arms))
    learning_rates = sorted({arm.learning_rate for arm in study.arms}, reverse=True)
    lines = [
        Line(
            arm.name,
            beginnings.index(arm.beginning),
            learning_rates.index(arm.learning_rate),
            [
                Point(step, f"step {step:,}", spread)
                for step in at
                if (spread := of(study, arm, step)) is not None
            ],
        )
        for arm in study.arms
    ]
    return draw(axes, lines, "at the last step")
