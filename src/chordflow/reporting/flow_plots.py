"""Plots of the flow: gaps, trajectories, loss, curvature, spreads of the endpoints."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import plotly.graph_objects as go

from chordflow.reporting import plots
from chordflow.reporting.flow_tables import curvature_by_time, dimension_shares, real_dims, stretches
from chordflow.reporting.plots import Plot
from chordflow.reporting.section import at, in_order, ordered, way
from chordflow.results.actions import REFERENCES, TEACHER, CurvatureRow, GapRow, Reference, WideObservation
from chordflow.results.schema import Results
from chordflow.results.wording import clean, number, percent, plural, span, steps

MOST_PATHS = 24
"""Trajectories of one policy that a panel can hold and be read."""

DASHES = ("dash", "dot", "dashdot")
"""Lines of other solvers than Euler."""

# ---- Gap ------------------------------------------------------------------------------------------------


def gaps(results: Results) -> list[Plot]:
    """RMS gap by network evaluations, a panel for each reference."""
    best = results.free.ways if results.free is not None else []
    values = [100 * row.rms for row in [*results.gaps, *best] if row.rms > 0]
    # One scale for both, so that they can be compared.
    reach = (min(values) / 1.2, max(values) * 1.2) if values else (1.0, 1.0)
    found = [[row for row in results.gaps if row.reference == which] for which in REFERENCES]
    return [_gap_panel(results, rows, reach) for rows in found if any(row.rms > 0 for row in rows)]


def _gap_panel(results: Results, rows: Sequence[GapRow], reach: tuple[float, float]) -> Plot:
    """RMS gaps of all policies to one reference."""
    which = rows[0].reference
    figure = plots.canvas(400, "network evaluations for a chunk", "RMS gap, % of the teacher's spread")
    look = plots.styles(results)
    solvers = sorted({row.solver for row in rows} - {"euler"})
    crowded = len({row.policy for row in rows}) > 2

    def add(own: Sequence[GapRow], name: str, *, free: bool = False, **how: Any) -> None:
        hovers = [
            plots.hover(
                plots.label(at(row)),
                f"{percent(row.rms)}{span(row.interval, percent)} RMS, "
                + ("on half of the episodes" if free else f"median {percent(row.median)}"),
                plural(row.nfe, "evaluation"),
            )
            for row in own
        ]
        if not free:
            how["error_y"] = plots.error([row.rms for row in own], [row.interval for row in own])
        plots.add_marks(figure, [row.nfe for row in own], [100 * row.rms for row in own], name, hovers, **how)

    # With many policies other solvers than Euler would hide what matters: the table has them.
    shown = [
        row
        for row in in_order(results, rows)
        if row.rms > 0 and (not crowded or row.solver == results.way(row.policy)[0] or row.policy == TEACHER)
    ]
    for (policy, solver), own in itertools.groupby(shown, lambda row: (row.policy, row.solver)):
        line = sorted(own, key=lambda row: row.nfe)
        dash = "solid" if solver == "euler" else DASHES[solvers.index(solver) % len(DASHES)]
        symbol = look[policy].symbol + ("" if solver == "euler" else "-open")
        add(line, plots.label(way(line[0])), colour=look[policy].colour, symbol=symbol, dash=dash)
    free = results.free.ways if results.free is not None else []
    if best := [row for row in free if row.reference == which and reach[0] <= 100 * row.rms <= reach[1]]:
        add(best, "teacher, best way", free=True, colour=plots.NEUTRAL, symbol="diamond", dash="dash")
    floor = results.floor
    if which == "converged" and floor is not None and floor.rms > 0:
        plots.reference_line(figure, f"floor {percent(floor.rms)}", y=100 * floor.rms, log=True)
    nfes = sorted({row.nfe for row in rows} | {results.teacher_num_steps})
    ends = [math.log10(nfes[0] / 1.15), math.log10(nfes[-1] * 1.15)]
    figure.update_layout(
        xaxis=plots.ticks(nfes, map(str, nfes), type="log", range=ends),
        yaxis=plots.log_axis(*reach, range=[math.log10(end) for end in reach]),
    )
    target = (
        f"the deployed teacher ({steps(results.teacher_num_steps)})"
        if which == "deployed"
        else f"its converged ODE ({rows[0].reference_num_steps} steps)"
    )
    return Plot(f"gap-{which}", f"Gap to {target}", _gap_caption(results, which, shown), figure)


def _gap_caption(results: Results, reference: Reference, rows: Sequence[GapRow]) -> str:
    few_steps = (1, 2) if len({row.policy for row in rows}) <= 2 else (1,)
    few = [
        f"{at(row)} {percent(row.rms)}{span(row.interval, percent)}"
        for policy, own in itertools.groupby(in_order(results, rows), lambda row: row.policy)
        for row in sorted(own, key=lambda row: row.num_steps)
        if row.solver == results.way(row.policy)[0] and row.num_steps in few_steps
    ]
    text = f"RMS, {', '.join(few)}." if few else "RMS by network evaluations."
    if reference == "converged" and results.floor is not None:
        away = percent(results.floor.rms)
        text += f" The dashed line is the floor: the deployed teacher itself, {away} away."
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
    kept = {name: [row for row in results.trajectories if row.policy == name][:MOST_PATHS] for name in names}
    every = [row for rows in kept.values() for row in rows]
    ranges: dict[str, Any] = {}
    for axis in ("x", "y") if every else ():
        values = [value for row in every for value in getattr(row, axis)]
        room = 0.04 * (max(values) - min(values)) or 1.0
        ranges[f"{axis}axis"] = {"range": plots.rounded([min(values) - room, max(values) + room])}
    shares = [f", {percent(share, 0)} of variance" for share in results.trajectory_axes[:2]] + ["", ""]
    axes = f"first component of the chunk{shares[0]}", f"second component{shares[1]}"
    panels: list[Plot] = []
    for name, rows in kept.items():
        colour = plots.styles(results)[name].colour
        figure = plots.canvas(430, *axes, **ranges)
        figure.add_scatter(
            x=_joined([row.x[0], row.x[-1]] for row in rows), y=_joined([row.y[0], row.y[-1]] for row in rows),
            mode="lines", name="chord", hoverinfo="skip", line={"color": plots.NEUTRAL, "width": 1.2, "dash": "dash"},
        )  # fmt: skip
        figure.add_scatter(
            x=_joined(row.x for row in rows), y=_joined(row.y for row in rows), mode="lines", name="path",
            hoverinfo="skip", line={"color": colour, "width": 2},
        )  # fmt: skip
        for end, symbol, what in ((0, "circle-open", "noise"), (-1, "circle", "action")):
            plots.add_marks(
                figure, [row.x[end] for row in rows], [row.y[end] for row in rows], what,
                [f"{what}, observation {row.observation}" for row in rows],
                colour=colour, symbol=symbol, size=7, marker={"line": {"width": 1.5}},
            )  # fmt: skip
        found = results.curvature_of(name)
        title = f"Paths of {clean(name)}" + (f": curvature {percent(found.curvature)}" if found else "")
        caption = (
            f"{len(rows)} paths of {clean(name)} from noise (rings) to action (dots); dashed, the chord of each."
            " All panels share their axes and noises."
        )
        panels.append(Plot(f"paths-{len(panels)}", title, caption, figure))
    return panels


def _joined(lines: Iterable[Sequence[float]]) -> list[float | None]:
    """Lines one after the other; None parts one from the next."""
    return [value for line in lines for value in (*plots.rounded(line), None)]


# ---- Loss -----------------------------------------------------------------------------------------------


def loss(results: Results) -> list[Plot]:
    """Training loss by optimiser step."""
    curve = results.loss
    if curve is None or not curve.steps:
        return []
    figure = plots.canvas(300, "optimiser step", "loss, mean since the point before")
    figure.add_scatter(
        x=curve.steps, y=plots.rounded(curve.losses), mode="lines+markers" if len(curve.steps) < 3 else "lines",
        line={"color": plots.STUDENT_ORANGE, "width": 2}, name="loss",
        hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    low, high = min(curve.losses), max(curve.losses)
    if low > 0 and high > 4 * low:
        figure.update_layout(yaxis=plots.log_axis(low, high))
    caption = (
        f"From {curve.losses[0]:.2g} to {curve.losses[-1]:.2g} in {curve.steps[-1]} steps; "
        f"{number(len(curve.steps))} logged {'value' if len(curve.steps) == 1 else 'values'}."
    )
    return [Plot("loss", "Training loss", caption, figure)]


# ---- Curvature ------------------------------------------------------------------------------------------


def curvature(results: Results) -> list[Plot]:
    """Curvature by time, and where S lies by tenths of the way."""
    rows = _curved(results)
    return [_by_time(results, rows), _by_part(results, rows)] if rows else []


type Shares = dict[str, dict[str, float]]
"""Shares of S by policy, each with its name."""


def _curved(results: Results) -> list[CurvatureRow]:
    rows = in_order(results, results.curvature)
    return [row for row in rows if row.s_by_time and len(row.times) == len(row.s_by_time)]


def _by_time(results: Results, rows: Sequence[CurvatureRow]) -> Plot:
    figure = plots.canvas(340, "t: 1 is noise, 0 is the action", "curvature, %")
    figure.update_layout(xaxis={"range": [1.02, -0.02]}, yaxis={"rangemode": "tozero"})
    texts, dashes = [], {"circle": "solid", "square": "dash"}
    for row in rows:
        look, values, name = plots.styles(results)[row.policy], curvature_by_time(row), plots.label(way(row))
        at_times = [f"{percent(v)} at t = {t:.2f}" for t, v in zip(row.times, values, strict=True)]
        figure.add_scatter(
            x=plots.rounded(row.times), y=plots.rounded(100 * v for v in values), name=name, mode="lines",
            line={"color": look.colour, "width": 2, "dash": dashes.get(look.symbol, "dot")},
            hoverinfo="text", hovertext=[plots.hover(name, text) for text in at_times],
        )  # fmt: skip
        peak = max(range(len(values)), key=values.__getitem__)
        texts.append(
            f"{way(row)} {percent(row.curvature)}{span(row.interval, percent)} in all, "
            f"highest {percent(values[peak])} at t = {row.times[peak]:.2f}"
        )
    caption = f"Relative deviation of the velocity from the chord: {'; '.join(texts)}."
    return Plot("curvature-time", "Curvature by time", caption, figure)


def _shares(results: Results, shares: Shares, axis: str, height: int) -> go.Figure:
    """Bars of shares of S, in a colour for each policy."""
    # No axis of shares goes beyond 100 %.
    top = min(100.0, max(1.0, *(110 * share for own in shares.values() for share in own.values())))
    figure = plots.canvas(height, axis, "share of S, %", barmode="group", bargap=0.25)
    figure.update_layout(yaxis={"range": [0.0, top]})
    for policy, own in shares.items():
        name = plots.label(policy)
        hovers = [plots.hover(name, f"{what}: {percent(share)} of S") for what, share in own.items()]
        lengths, colour = [100 * share for share in own.values()], plots.styles(results)[policy].colour
        plots.add_bars(figure, lengths, name, hovers, colour=colour)
    return figure


def _by_part(results: Results, rows: Sequence[CurvatureRow]) -> Plot:
    shares = {r.policy: {f"t from {p.begin:.2f} to {p.end:.2f}": p.share for p in stretches(r)} for r in rows}
    figure = _shares(results, shares, "t, from noise to action", 340)
    largest = {row.policy: max(stretches(row), key=lambda part: part.share) for row in rows}
    texts = [
        f"{clean(policy)} most between t = {part.begin:.2f} and {part.end:.2f}, {percent(part.share, 0)} of its S"
        for policy, part in largest.items()
    ]
    own = stretches(rows[-1])
    spans = [f"{part.begin:.1f}–{part.end:.1f}" for part in own]
    figure.update_layout(xaxis=plots.ticks(range(len(own)), spans, tickangle=-45))
    caption = f"Where the paths leave their chords: {'; '.join(texts)}."
    return Plot("curvature-parts", "Where in time the path bends", caption, figure)


def curvature_by_dimension(results: Results) -> list[Plot]:
    """Shares of S by dimension."""
    rows = [row for row in _curved(results) if row.s_by_dim]
    if not rows:
        return []
    shares = {row.policy: {f"dimension {i}": s for i, s in enumerate(dimension_shares(row))} for row in rows}
    figure = _shares(results, shares, "action dimension", 300)
    largest = {policy: max(own.items(), key=lambda pair: pair[1]) for policy, own in shares.items()}
    texts = [f"{clean(policy)} {name}, {percent(share, 0)}" for policy, (name, share) in largest.items()]
    few = len(dimension_shares(rows[0])) <= 12
    figure.update_layout(xaxis={"tickformat": "d"} | ({"dtick": 1} if few else {}))
    kind = "real" if real_dims(rows[0]) is not None else "padded"
    caption = f"Share of S by {kind} dimension; the most: {'; '.join(texts)}."
    return [Plot("curvature-dims", "Which dimensions bend", caption, figure)]


def heat_maps(results: Results) -> list[Plot]:
    """The integrand of S by time and real dimension, a panel for each policy, all of one scale."""
    whole = [row for row in results.curvature if len(set(map(len, row.s_by_time_and_dim))) == 1]
    rows = in_order(results, filter(real_dims, whole))
    top = max((value for row in rows for line in row.s_by_time_and_dim for value in line), default=0.0)
    panels: list[Plot] = []
    for row in rows:
        grid = list(zip(*row.s_by_time_and_dim, strict=True))
        times, upright = row.times[: len(row.s_by_time_and_dim)], {"autorange": "reversed", "showgrid": False}
        most = min(len(grid), 12)
        figure = plots.canvas(110 + 30 * max(4, most), "t: 1 is noise, 0 is the action", "dimension")
        figure.add_heatmap(
            x=plots.rounded(times), y=list(range(len(grid))), z=list(map(plots.rounded, grid)), zmin=0,
            zmax=top or 1.0, colorscale=plots.SEQUENTIAL,
            colorbar={"thickness": 12, "outlinewidth": 0, "title": {"text": "S at t", "side": "right"}},
            hovertemplate="dimension %{y}, t = %{x:.2f}: %{z:.3g}<extra></extra>",
        )  # fmt: skip
        figure.update_layout(xaxis=upright, yaxis={**upright, "tickformat": "d", "nticks": most})
        places = ((dim, time) for dim in range(len(grid)) for time in range(len(times)))
        dim, time = max(places, key=lambda place: grid[place[0]][place[1]])
        caption = (
            f"How far the velocity of {clean(row.policy)} is from the chord, squared, by time and real dimension: "
            f"darkest in dimension {dim} at t = {times[time]:.2f}."
        )
        panels.append(Plot(f"heat-{len(panels)}", f"Time by dimension: {way(row)}", caption, figure))
    return panels


# ---- Spreads --------------------------------------------------------------------------------------------


def spreads(results: Results) -> list[Plot]:
    """How many observations have which spread, by number of modes."""
    rows = results.spreads
    if not rows:
        return []
    axes = "spread of the endpoints over noises, %", "observations"
    figure = plots.canvas(320, *axes, barmode="stack", bargap=0.05)
    values = sorted(100 * row.spread for row in rows)
    width = _bin_width(values[-1])
    for modes, name, hatch in ((1, "one mode", ""), (2, "two modes", "/"), (3, "three or more", "x")):
        own = Counter(int(100 * row.spread // width) for row in rows if min(max(row.modes, 1), 3) == modes)
        bins, counts = sorted(own), [own[place] for place in sorted(own)]
        reach = [f"{place * width:g} to {(place + 1) * width:g} %" for place in bins]
        seen = [f"{plural(count, 'observation')}, {name}" for count in counts]
        if own:
            plots.add_bars(
                figure, counts, name, list(map(plots.hover, seen, reach)), colour=plots.COLOURS[modes - 1], hatch=hatch,
                places=[(place + 0.5) * width for place in bins], width=width * 0.94,
            )  # fmt: skip
    figure.update_layout(xaxis={"rangemode": "tozero"}, showlegend=True, legend={"traceorder": "normal"})
    several = sum(row.modes > 1 for row in rows)
    caption = (
        f"{plural(len(rows), 'observation')}: median spread {percent(median(values) / 100)}, largest "
        f"{percent(values[-1] / 100)}; {percent(several / len(rows), 0)} have two or more modes."
    )
    return [Plot("spread", "Spread of the endpoints", caption, figure)]


def _bin_width(largest: float) -> float:
    """A round width that gives ten to twenty-five bins."""
    wanted = max(largest, 1e-9) / 16
    power = 10.0 ** math.floor(math.log10(wanted))
    return min((m * power for m in (1, 2, 5, 10)), key=lambda width: abs(math.log(width / wanted)))


def endpoints(
    found: WideObservation, place: int, title: str, pictures: Sequence[tuple[str, str]] = ()
) -> Plot:
    """The endpoints of one observation in their two main components, by mode; arguments as those of `Plot`."""
    axes = [f", {percent(share, 0)}" for share in found.axes[:2]] + ["", ""]
    figure = plots.canvas(300, f"first component{axes[0]}", f"second component{axes[1]}", showlegend=True)
    points = list(zip(found.x, found.y, found.labels, strict=False))
    sizes = sorted(Counter(mode for *_, mode in points).items())
    for mode, _ in sizes:
        x, y, _ = zip(*(point for point in points if point[2] == mode), strict=True)
        plots.add_marks(
            figure, x, y, f"mode {mode + 1}", [], colour=plots.COLOURS[mode % len(plots.COLOURS)],
            symbol=plots.SYMBOLS[mode % len(plots.SYMBOLS)], marker={"opacity": 0.85}, hoverinfo="name",
        )  # fmt: skip
    caption = (
        f"{plural(len(points), 'endpoint')} in {plural(len(sizes), 'mode')} of "
        f"{', '.join(str(count) for _, count in sizes)}; axes with their share of the endpoints' variance."
    )
    return Plot(f"endpoints-{place}", title, caption, figure, pictures)
