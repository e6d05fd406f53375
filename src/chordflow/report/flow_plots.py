"""Plots of the flow: gaps, curvature, heat maps, trajectories, spreads, loss."""

import math
from collections.abc import Sequence

from chordflow.report.more_tables import (
    curvature_by_time,
    curvature_rows,
    dimension_shares,
    median,
    parts,
    real_dims,
)
from chordflow.report.plots import (
    NEUTRAL,
    OTHERS,
    SEQUENTIAL,
    STUDENT_ORANGE,
    SYMBOLS,
    TEACHER_BLUE,
    Look,
    Plot,
    canvas,
    error,
    hover,
    label,
    looks,
    pattern,
    plain_log_axis,
    reference_line,
    rounded,
)
from chordflow.report.section import at, ordered, rank, way
from chordflow.results.schema import CurvatureRow, GapRow, Reference, Results, WideObservation
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
    values = [100 * row.rms for row in results.gaps if row.rms > 0]
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
    bars = " Bars are 95 % intervals." if any(row.interval is not None for row in rows) else ""
    return f"{text}{bars} Both axes are logarithmic."


# ---- Curvature ------------------------------------------------------------------------------------------


def curvature(results: Results) -> list[Plot]:
    """Curvature by time, where S lies by tenths of the way and by dimension."""
    rows = [row for row in curvature_rows(results) if row.s_by_time and len(row.times) == len(row.s_by_time)]
    if not rows:
        return []
    return [_by_time(results, rows), _by_part(results, rows), *_by_dimension(results, rows)]


def _by_time(results: Results, rows: Sequence[CurvatureRow]) -> Plot:
    figure = canvas(340, "t: 1 is noise, 0 is the action", "curvature, %")
    figure.update_layout(xaxis={"range": [1.02, -0.02]}, yaxis={"rangemode": "tozero"})
    look, said = looks(results), []
    for row in rows:
        values = curvature_by_time(row)
        figure.add_scatter(
            x=rounded(row.times), y=rounded(100 * v for v in values), name=label(way(row.policy)), mode="lines",
            line={"color": look[row.policy].colour, "width": 2, "dash": _dash(look[row.policy])},
            hoverinfo="text",
            hovertext=[
                hover(label(way(row.policy)), f"{percent(v)} at t = {t:.2f}")
                for t, v in zip(row.times, values, strict=True)
            ],
        )  # fmt: skip
        peak = max(range(len(values)), key=values.__getitem__)
        said.append(
            f"{way(row.policy)} {percent(row.curvature)}{span(row.interval, percent)} in all, "
            f"highest {percent(values[peak])} at t = {row.times[peak]:.2f}"
        )
    caption = f"Relative deviation of the velocity from the chord: {'; '.join(said)}."
    return Plot("curvature-time", "Curvature by time", caption, figure, "curvature")


def _dash(look: Look) -> str:
    return "solid" if look.symbol == "circle" else "dash" if look.symbol == "square" else "dot"


def _by_part(results: Results, rows: Sequence[CurvatureRow]) -> Plot:
    figure = canvas(340, "t, from noise to action", "share of S, %")
    figure.update_layout(barmode="group", bargap=0.25, yaxis={"rangemode": "tozero"})
    look, said = looks(results), []
    for row in rows:
        own = parts(row)
        figure.add_bar(
            x=list(range(len(own))),
            y=rounded(100 * part.share for part in own),
            name=label(way(row.policy)),
            marker={"color": look[row.policy].colour},
            hoverinfo="text",
            hovertext=[
                hover(
                    label(way(row.policy)), f"{percent(p.share)} of S", f"t from {p.begin:.2f} to {p.end:.2f}"
                )
                for p in own
            ],
        )
        largest = max(own, key=lambda part: part.share)
        said.append(
            f"{way(row.policy)} most between t = {largest.begin:.2f} and {largest.end:.2f}, "
            f"{percent(largest.share, 0)} of its S"
        )
        figure.update_layout(
            xaxis={
                "tickmode": "array",
                "tickvals": list(range(len(own))),
                "ticktext": [f"{part.begin:.1f}–{part.end:.1f}" for part in own],
                "tickangle": -45,
            }
        )
    caption = f"Where the paths leave their chords: {'; '.join(said)}."
    return Plot("curvature-parts", "Where in time the path bends", caption, figure, "curvature")


def _by_dimension(results: Results, rows: Sequence[CurvatureRow]) -> list[Plot]:
    rows = [row for row in rows if row.s_by_dim]
    if not rows:
        return []
    figure = canvas(300, "action dimension", "share of S, %")
    figure.update_layout(barmode="group", yaxis={"rangemode": "tozero"}, xaxis={"tickformat": "d"})
    look, said = looks(results), []
    for row in rows:
        shares = dimension_shares(row)
        figure.add_bar(
            x=list(range(len(shares))),
            y=rounded(100 * share for share in shares),
            name=label(way(row.policy)),
            marker={"color": look[row.policy].colour},
            hoverinfo="text",
            hovertext=[
                hover(label(way(row.policy)), f"dimension {i}: {percent(share)} of S")
                for i, share in enumerate(shares)
            ],
        )
        largest = max(range(len(shares)), key=shares.__getitem__)
        said.append(f"{way(row.policy)} dimension {largest}, {percent(shares[largest], 0)}")
    if len(dimension_shares(rows[0])) <= 12:
        figure.update_layout(xaxis={"dtick": 1})
    return [
        Plot(
            "curvature-dims",
            "Which dimensions bend",
            f"Share of S by {'real' if real_dims(rows[0]) is not None else 'padded'} dimension; the most: "
            f"{'; '.join(said)}.",
            figure,
            "heat",
        )
    ]


def heat_maps(results: Results) -> list[Plot]:
    """The integrand of S by time and real dimension, a panel for each policy, all of one scale."""
    rows = [
        row
        for row in curvature_rows(results)
        if row.s_by_time_and_dim
        and row.s_by_time_and_dim[0]
        and len(set(map(len, row.s_by_time_and_dim))) == 1
    ]
    top = max((value for row in rows for line in row.s_by_time_and_dim for value in line), default=0.0)
    panels: list[Plot] = []
    for row in rows:
        grid = [list(column) for column in zip(*row.s_by_time_and_dim, strict=True)]
        times = row.times[: len(row.s_by_time_and_dim)]
        figure = canvas(110 + 30 * max(4, min(len(grid), 12)), "t: 1 is noise, 0 is the action", "dimension")
        figure.add_heatmap(
            x=rounded(times),
            y=list(range(len(grid))),
            z=[rounded(line) for line in grid],
            zmin=0,
            zmax=top or 1.0,
            colorscale=SEQUENTIAL,
            colorbar={"thickness": 12, "outlinewidth": 0, "title": {"text": "S at t", "side": "right"}},
            hovertemplate="dimension %{y}, t = %{x:.2f}: %{z:.3g}<extra></extra>",
        )
        figure.update_layout(
            xaxis={"autorange": "reversed", "showgrid": False},
            yaxis={
                "autorange": "reversed",
                "showgrid": False,
                "tickformat": "d",
                "nticks": min(len(grid), 12),
            },
        )
        dim, time = max(
            ((d, t) for d in range(len(grid)) for t in range(len(times))), key=lambda at: grid[at[0]][at[1]]
        )
        caption = (
            f"How far the velocity of {clean(row.policy)} is from the chord, squared, by time and real dimension: "
            f"darkest in dimension {dim} at t = {times[time]:.2f}."
        )
        panels.append(
            Plot(f"heat-{len(panels)}", f"Time by dimension: {way(row.policy)}", caption, figure, "heat")
        )
    return panels


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
        measured = f" Its curvature is {percent(found.curvature)}." if found else ""
        caption = (
            f"{len(rows)} paths of {clean(name)} from noise (rings) to action (dots); dashed, the chord of each."
            f"{measured} All panels share their axes and noises."
        )
        panels.append(Plot(f"paths-{len(panels)}", f"Paths: {way(name)}", caption, figure, "paths"))
    return panels


# ---- Spreads --------------------------------------------------------------------------------------------


def spreads(results: Results) -> list[Plot]:
    """How many observations have which spread, by number of modes."""
    rows = results.spreads
    if not rows:
        return []
    figure = canvas(
        320, "spread of the endpoints over noises, %", "observations", barmode="stack", bargap=0.05
    )
    values = sorted(100 * row.spread for row in rows)
    width = _bin_width(values)
    kinds = {1: ("one mode", TEACHER_BLUE), 2: ("two modes", STUDENT_ORANGE), 3: ("three or more", OTHERS[0])}
    for modes, (name, colour) in kinds.items():
        own = [100 * row.spread for row in rows if min(max(row.modes, 1), 3) == modes]
        if not own:
            continue
        counts: dict[int, int] = {}
        for value in own:
            counts[int(value // width)] = counts.get(int(value // width), 0) + 1
        figure.add_bar(
            x=rounded((b + 0.5) * width for b in sorted(counts)),
            y=[counts[b] for b in sorted(counts)],
            width=width * 0.94,
            name=name,
            marker={"color": colour, "pattern": pattern({1: "", 2: "/", 3: "x"}[modes])},
            hoverinfo="text",
            hovertext=[
                hover(
                    f"{plural(counts[b], 'observation')}, {name}", f"{b * width:g} to {(b + 1) * width:g} %"
                )
                for b in sorted(counts)
            ],
        )
    figure.update_layout(xaxis={"rangemode": "tozero"}, showlegend=True, legend={"traceorder": "normal"})
    several = sum(row.modes > 1 for row in rows)
    caption = (
        f"{plural(len(rows), 'observation')}: median spread {percent(median(values) / 100)}, largest "
        f"{percent(values[-1] / 100)}; {percent(several / len(rows), 0)} have two or more modes."
    )
    return [Plot("spread", "Spread of the endpoints", caption, figure, "spread")]


def _bin_width(values: Sequence[float]) -> float:
    """A round width that gives ten to twenty-five bins."""
    reach = max(values[-1], 1e-9)
    wanted = reach / 16
    power = 10.0 ** math.floor(math.log10(wanted))
    return min((m * power for m in (1, 2, 5, 10)), key=lambda width: abs(math.log(width / wanted)))


def endpoints(found: WideObservation, place: int) -> Plot:
    """The endpoints of one observation in their two main components, by mode."""
    axes = [f", {percent(share, 0)}" for share in found.axes[:2]] + ["", ""]
    figure = canvas(300, f"first component{axes[0]}", f"second component{axes[1]}")
    colours = (TEACHER_BLUE, STUDENT_ORANGE, *OTHERS)
    sizes = []
    points = min(len(found.x), len(found.y), len(found.labels))
    for mode in sorted(set(found.labels[:points])):
        own = [i for i in range(points) if found.labels[i] == mode]
        sizes.append(len(own))
        figure.add_scatter(
            x=rounded(found.x[i] for i in own), y=rounded(found.y[i] for i in own), mode="markers",
            name=f"mode {mode + 1}", hoverinfo="name",
            marker={
                "color": colours[mode % len(colours)], "symbol": SYMBOLS[mode % len(SYMBOLS)], "size": 8,
                "opacity": 0.85,
            },
        )  # fmt: skip
    figure.update_layout(showlegend=True)
    caption = (
        f"{plural(points, 'endpoint')} in {plural(len(sizes), 'mode')} of {', '.join(map(str, sizes))}; "
        f"axes with their share of the endpoints' variance."
    )
    return Plot(f"endpoints-{place}", "Endpoints by noise", caption, figure)


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
