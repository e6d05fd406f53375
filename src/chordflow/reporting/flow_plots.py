"""Plots of the flow: gaps, trajectories, loss."""

import math
from collections.abc import Sequence

from chordflow.reporting.plots import (
    NEUTRAL,
    STUDENT_ORANGE,
    Plot,
    canvas,
    error,
    hover,
    label,
    looks,
    plain_log_axis,
    reference_line,
    rounded,
)
from chordflow.reporting.section import at, ordered, rank, way
from chordflow.results.actions import TEACHER, GapRow, Reference
from chordflow.results.schema import Results
from chordflow.results.wording import clean, number, percent, plural, span, steps

MOST_PATHS = 24
"""Trajectories of one policy that a panel can hold and be read."""

DASHES = {"euler": "solid"}
OTHER_DASHES = ("dash", "dot", "dashdot")

# ---- Gap ------------------------------------------------------------------------------------------------


def gaps(results: Results) -> list[Plot]:
    """RMS gap by network evaluations, a panel for each reference."""
    panels = []
    references: tuple[Reference, ...] = ("deployed", "converged")
    best = results.free.ways if results.free is not None else []
    values = [100 * row.rms for row in [*results.gaps, *best] if row.rms > 0]
    for reference in references:
        rows = [row for row in results.gaps if row.reference == reference]
        if any(row.rms > 0 for row in rows):
            # One scale for both, so that they can be compared.
            panels.append(_gap_panel(results, reference, rows, (min(values) / 1.2, max(values) * 1.2)))
    return panels


def _gap_panel(
    results: Results, reference: Reference, rows: Sequence[GapRow], reach: tuple[float, float]
) -> Plot:
    figure = canvas(400, "network evaluations for a chunk", "RMS gap, % of the teacher's spread")
    place, look = rank(results, (row.policy for row in rows)), looks(results)
    solvers = sorted({row.solver for row in rows}, key=lambda solver: (solver != "euler", solver))
    ways = sorted(
        {(row.policy, row.solver) for row in rows}, key=lambda w: (place[w[0]], solvers.index(w[1]))
    )
    crowded = len(place) > 2
    shown = []
    for policy, solver in ways:
        own = sorted(
            (row for row in rows if (row.policy, row.solver) == (policy, solver) and row.rms > 0),
            key=lambda row: row.nfe,
        )
        # With many policies other solvers than Euler would hide what matters: the table has them.
        if not own or (crowded and solver != "euler" and policy != "teacher"):
            continue
        shown += own
        values = [100 * row.rms for row in own]
        ends = [(100 * r.interval.low, 100 * r.interval.high) if r.interval else None for r in own]
        index = solvers.index(solver)
        figure.add_scatter(
            x=[row.nfe for row in own],
            y=rounded(values),
            error_y=error(
                values,
                [e[0] if e else v for e, v in zip(ends, values, strict=True)],
                [e[1] if e else v for e, v in zip(ends, values, strict=True)],
            ),
            name=label(way(policy, solver)),
            mode="lines+markers",
            line={
                "color": look[policy].colour,
                "width": 2,
                "dash": DASHES.get(solver, OTHER_DASHES[(index - 1) % len(OTHER_DASHES)]),
            },
            marker={"size": 8, "symbol": look[policy].symbol + ("" if solver == "euler" else "-open")},
            hoverinfo="text",
            hovertext=[
                hover(
                    label(at(policy, row.num_steps, solver)),
                    f"{percent(row.rms)}{span(row.interval, percent)} RMS, median {percent(row.median)}",
                    f"{plural(row.nfe, 'evaluation')}",
                )
                for row in own
            ],
        )
    best = (
        [row for row in results.free.ways if row.reference == reference] if results.free is not None else []
    )
    best = [row for row in best if min(reach) <= 100 * row.rms <= max(reach)]
    if best:
        figure.add_scatter(
            x=[row.nfe for row in best],
            y=rounded(100 * row.rms for row in best),
            name="teacher, best way",
            mode="lines+markers",
            line={"color": NEUTRAL, "width": 2, "dash": "dash"},
            marker={"size": 8, "symbol": "diamond"},
            hoverinfo="text",
            hovertext=[
                hover(
                    label(at(TEACHER, row.num_steps, row.solver, row.grid_power)),
                    f"{percent(row.rms)}{span(row.interval, percent)} RMS, on half of the episodes",
                    f"{plural(row.nfe, 'evaluation')}",
                )
                for row in best
            ],
        )
    floor = results.floor
    if reference == "converged" and floor is not None and floor.rms > 0:
        reference_line(figure, f"floor {percent(floor.rms)}", y=math.log10(100 * floor.rms))
        # Shapes of a logarithmic axis take the value, annotations its logarithm.
        figure.layout.shapes[0].update(y0=100 * floor.rms, y1=100 * floor.rms)
    evaluations = sorted({row.nfe for row in rows} | {results.teacher_num_steps})
    figure.update_layout(
        xaxis={
            "type": "log", "tickmode": "array", "tickvals": evaluations, "ticktext": list(map(str, evaluations)),
            "range": [math.log10(evaluations[0] / 1.15), math.log10(evaluations[-1] * 1.15)],
        }
    )  # fmt: skip
    plain_log_axis(figure, "yaxis", *reach)
    figure.update_layout(yaxis={"range": [math.log10(end) for end in reach]})
    target = (
        f"the teacher as deployed ({steps(results.teacher_num_steps)})"
        if reference == "deployed"
        else f"its converged ODE ({rows[0].reference_num_steps} steps)"
    )
    return Plot(
        f"gap-{reference}", f"Gap to {target}", _gap_caption(results, reference, shown), figure, "gap"
    )


def _gap_caption(results: Results, reference: Reference, rows: Sequence[GapRow]) -> str:
    few_steps = (1, 2) if len({row.policy for row in rows}) <= 2 else (1,)
    few = [
        f"{at(row.policy, row.num_steps)} {percent(row.rms)}{span(row.interval, percent)}"
        for policy in ordered(results, (row.policy for row in rows))
        for row in sorted(rows, key=lambda row: row.num_steps)
        if row.policy == policy and row.solver == "euler" and row.num_steps in few_steps
    ]
    text = f"RMS, {', '.join(few)}." if few else "RMS by network evaluations."
    if reference == "converged" and results.floor is not None:
        text += (
            f" The dashed line is the floor: the deployed teacher itself, {percent(results.floor.rms)} away."
        )
    if reference == "deployed":
        text += " The deployed teacher itself lies at 0, below this axis."
    if results.free is not None:
        text += " Teacher, best way: without training, by the best solver and grid for each number of evaluations."
    bars = " Bars are 95 % intervals." if any(row.interval is not None for row in rows) else ""
    return f"{text}{bars} Both axes are logarithmic."


# ---- Trajectories ---------------------------------------------------------------------------------------


def trajectories(results: Results) -> list[Plot]:
    """Paths as arcs with their chords, a panel for each policy on equal axes."""
    names = ordered(results, (row.policy for row in results.trajectories))
    look = looks(results)
    panels: list[Plot] = []
    kept = {n: [row for row in results.trajectories if row.policy == n][:MOST_PATHS] for n in names}
    every = [row for rows in kept.values() for row in rows]
    reach = [
        (
            min(v for row in every for v in getattr(row, axis)),
            max(v for row in every for v in getattr(row, axis)),
        )
        for axis in ("x", "y")
        if every
    ]
    for name, rows in kept.items():
        shares = [f", {percent(share, 0)} of variance" for share in results.trajectory_axes[:2]] + ["", ""]
        figure = canvas(430, f"first component of the chunk{shares[0]}", f"second component{shares[1]}")
        line_x: list[float | None] = []
        line_y: list[float | None] = []
        chord_x: list[float | None] = []
        chord_y: list[float | None] = []
        for row in rows:
            line_x += [*rounded(row.x), None]
            line_y += [*rounded(row.y), None]
            chord_x += [*rounded([row.x[0], row.x[-1]]), None]
            chord_y += [*rounded([row.y[0], row.y[-1]]), None]
        figure.add_scatter(
            x=chord_x, y=chord_y, mode="lines", name="chord", hoverinfo="skip",
            line={"color": NEUTRAL, "width": 1.2, "dash": "dash"},
        )  # fmt: skip
        figure.add_scatter(
            x=line_x, y=line_y, mode="lines", name="path", hoverinfo="skip",
            line={"color": look[name].colour, "width": 2},
        )  # fmt: skip
        for end, symbol, what in ((0, "circle-open", "noise"), (-1, "circle", "action")):
            figure.add_scatter(
                x=rounded(row.x[end] for row in rows),
                y=rounded(row.y[end] for row in rows),
                mode="markers",
                name=what,
                marker={"color": look[name].colour, "size": 7, "symbol": symbol, "line": {"width": 1.5}},
                hoverinfo="text",
                hovertext=[f"{what}, observation {row.observation}" for row in rows],
            )
        for axis, (low, high) in zip(("xaxis", "yaxis"), reach, strict=True):
            room = 0.04 * (high - low) or 1.0
            figure.update_layout({axis: {"range": rounded([low - room, high + room])}})
        found = results.curvature_of(name)
        measured = f": curvature {percent(found.curvature)}" if found else ""
        caption = (
            f"{len(rows)} paths of {clean(name)} from noise (rings) to action (dots); dashed, the chord of each."
            " All panels share their axes and noises."
        )
        panels.append(
            Plot(f"paths-{len(panels)}", f"Paths of {way(name)}{measured}", caption, figure, "paths")
        )
    return panels


# ---- Loss -----------------------------------------------------------------------------------------------


def loss(results: Results) -> list[Plot]:
    """Training loss by optimiser step."""
    curve = results.loss
    if curve is None or not curve.steps:
        return []
    figure = canvas(300, "optimiser step", "loss, mean since the point before")
    figure.add_scatter(
        x=curve.steps, y=rounded(curve.losses), mode="lines+markers" if len(curve.steps) < 3 else "lines",
        line={"color": STUDENT_ORANGE, "width": 2}, name="loss",
        hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    low, high = min(curve.losses), max(curve.losses)
    if low > 0 and high > 4 * low:
        plain_log_axis(figure, "yaxis", low, high)
    caption = (
        f"From {curve.losses[0]:.2g} to {curve.losses[-1]:.2g} in {curve.steps[-1]} steps; "
        f"{number(len(curve.steps))} logged {'value' if len(curve.steps) == 1 else 'values'}."
    )
    return [Plot("loss", "Training loss", caption, figure)]
