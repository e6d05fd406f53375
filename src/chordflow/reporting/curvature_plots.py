"""Plots of curvature: by time, where the path bends, by dimension, as heat maps."""

from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from chordflow.reporting.plots import (
    SEQUENTIAL,
    Look,
    Plot,
    canvas,
    hover,
    label,
    looks,
    rounded,
    shares_range,
)
from chordflow.reporting.policy_tables import (
    curvature_by_time,
    curvature_rows,
    dimension_shares,
    parts,
    real_dims,
)
from chordflow.reporting.section import way
from chordflow.results.actions import CurvatureRow
from chordflow.results.schema import Results
from chordflow.results.wording import clean, percent, span


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


def _shares(
    results: Results,
    rows: Sequence[CurvatureRow],
    axis: str,
    height: int,
    of: Callable[[CurvatureRow], list[tuple[str, float]]],
) -> go.Figure:
    """Bars of shares of S, each with its name, in a colour for each policy."""
    figure, look, top = (
        canvas(height, axis, "share of S, %", barmode="group", bargap=0.25),
        looks(results),
        0.0,
    )
    for row in rows:
        name, own = label(way(row.policy)), of(row)
        top = max(top, *(share for _, share in own))
        figure.add_bar(
            x=list(range(len(own))), y=rounded(100 * share for _, share in own), name=name,
            marker={"color": look[row.policy].colour}, hoverinfo="text",
            hovertext=[hover(name, f"{what}: {percent(share)} of S") for what, share in own],
        )  # fmt: skip
    return figure.update_layout(yaxis={"range": shares_range(top)})


def _by_part(results: Results, rows: Sequence[CurvatureRow]) -> Plot:
    def named(row: CurvatureRow) -> list[tuple[str, float]]:
        return [(f"t from {part.begin:.2f} to {part.end:.2f}", part.share) for part in parts(row)]

    figure, said = _shares(results, rows, "t, from noise to action", 340, named), []
    for row in rows:
        own = parts(row)
        largest = max(own, key=lambda part: part.share)
        said.append(
            f"{way(row.policy)} most between t = {largest.begin:.2f} and {largest.end:.2f}, "
            f"{percent(largest.share, 0)} of its S"
        )
        ticks = [f"{part.begin:.1f}–{part.end:.1f}" for part in own]
        axis = {"tickmode": "array", "tickvals": list(range(len(own))), "ticktext": ticks, "tickangle": -45}
        figure.update_layout(xaxis=axis)
    caption = f"Where the paths leave their chords: {'; '.join(said)}."
    return Plot("curvature-parts", "Where in time the path bends", caption, figure, "curvature")


def _by_dimension(results: Results, rows: Sequence[CurvatureRow]) -> list[Plot]:
    rows = [row for row in rows if row.s_by_dim]
    if not rows:
        return []

    def named(row: CurvatureRow) -> list[tuple[str, float]]:
        return [(f"dimension {i}", share) for i, share in enumerate(dimension_shares(row))]

    figure, said = _shares(results, rows, "action dimension", 300, named), []
    for row in rows:
        largest, share = max(named(row), key=lambda pair: pair[1])
        said.append(f"{way(row.policy)} {largest}, {percent(share, 0)}")
    few = len(dimension_shares(rows[0])) <= 12
    figure.update_layout(xaxis={"tickformat": "d"} | ({"dtick": 1} if few else {}))
    kind = "real" if real_dims(rows[0]) is not None else "padded"
    caption = f"Share of S by {kind} dimension; the most: {'; '.join(said)}."
    return [Plot("curvature-dims", "Which dimensions bend", caption, figure, "heat")]


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
