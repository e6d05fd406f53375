"""Plots of rollouts: success, differences, sequential decisions, motion, delays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from chordflow.reporting.plots import (
    NEUTRAL,
    OTHERS,
    STUDENT_ORANGE,
    SYMBOLS,
    TEACHER_BLUE,
    Plot,
    canvas,
    error,
    hover,
    label,
    looks,
    reference_line,
    rounded,
    rows_axis,
    rows_height,
)
from chordflow.reporting.rollout_tables import MODES, MOTION_UNITS, by_group, motion_rows, points_of
from chordflow.reporting.section import at, brief, rank
from chordflow.results.actions import PolicyName
from chordflow.results.episodes import DelayRow, SuccessRow
from chordflow.results.schema import Results
from chordflow.results.statistics import Interval
from chordflow.results.wording import (
    capital,
    clean,
    estimate,
    percentage,
    plural,
    points,
    span,
)

MOST_GROUPS = 8
"""Instructions that have a panel of their own; the table has all."""


class Row(NamedTuple):
    """A figure with its interval, as a forest plot shows it.

    Attributes:
        of: whose: it has a policy and steps, and where it may differ solver and grid.
        value: in the unit of the axis.
        interval: likewise.
        text: the figure in words.
        more: a further line of the hover box.
    """

    of: Any
    value: float
    interval: Interval | None
    text: str
    more: str = ""

    @property
    def way(self) -> tuple[PolicyName, int, str, float]:
        """Policy, steps, solver and grid."""
        solver, power = getattr(self.of, "solver", "euler"), getattr(self.of, "grid_power", 1.0)
        return self.of.policy, self.of.num_steps, solver, power


def _forest(results: Results, axis: str, rows: Sequence[Row]) -> tuple[go.Figure, str]:
    """A row for each way to act with its interval, and all of it in words."""
    figure, look = canvas(rows_height(len(rows)), axis, "", showlegend=False), looks(results)
    for place, row in enumerate(rows):
        low, high = (row.interval.low, row.interval.high) if row.interval else (row.value, row.value)
        name, seen = label(at(*row.way)), look[row.of.policy]
        figure.add_scatter(
            x=rounded([row.value]), y=[place], mode="markers", name=name, cliponaxis=False,
            marker={"color": seen.colour, "symbol": seen.symbol, "size": 11},
            error_x=error([row.value], [low], [high]),
            hoverinfo="text", hovertext=[hover(name, row.text, *[row.more] * bool(row.more))],
        )  # fmt: skip
    rows_axis(figure, [brief(*row.way) for row in rows])
    return figure, capital("; ".join(f"{at(*row.way)} {row.text}" for row in rows))


def _percent(interval: Interval | None) -> Interval | None:
    return Interval(100 * interval.low, 100 * interval.high) if interval is not None else None


# ---- Success --------------------------------------------------------------------------------------------


def success(results: Results) -> list[Plot]:
    """Success with Wilson's intervals, and the paired difference with the margin drawn, over all episodes."""
    groups = by_group(results)
    if not groups:
        return []
    first = "all" if "all" in groups else next(iter(groups))
    plots = [_rates(results, first, groups[first], "success", "success")]
    rows = [
        Row(row, 100 * found.value, _percent(found.interval), estimate(found, points))
        for row in groups[first]
        if row.versus_teacher is not None and (found := row.versus_teacher.difference)
    ]
    if rows:
        figure, said = _differences(results, rows, margin := _margin(results))
        drawn = f" The dashed line is the margin of {points_of(margin)} points." if margin is not None else ""
        title = "Success against the deployed teacher, paired"
        plots.append(Plot("difference", title, f"{said} points.{drawn} 95 % intervals.", figure, "success"))
    return plots


def success_by_group(results: Results) -> list[Plot]:
    """A panel of rates for each instruction."""
    groups = [(group, rows) for group, rows in by_group(results).items() if group != "all"]
    return [
        _rates(results, group, rows, f"success-{place}", "groups")
        for place, (group, rows) in enumerate(groups[:MOST_GROUPS])
    ]


def _margin(results: Results) -> float | None:
    if results.rollouts is not None and results.rollouts.noise == "paired":
        return results.rollouts.margin
    found = [row.noninferiority.margin for row in results.success if row.noninferiority is not None]
    return found[0] if found else None


def _rates(results: Results, group: str, found: Sequence[SuccessRow], key: str, panel: str) -> Plot:
    rows = [
        Row(row, 100 * row.rate, _percent(row.interval), f"{percentage(row.rate)} %{span(row.interval, percentage)}",
            f"{row.successes} of {row.episodes} episodes")
        for row in found
    ]  # fmt: skip
    figure, said = _forest(results, "success, %", rows)
    figure.update_layout(xaxis={"range": _rate_range([row.interval for row in found])})
    title = "Success over all episodes" if group == "all" else f"Success: {clean(group)}"
    counts = sorted({row.episodes for row in found})
    episodes = plural(counts[0], "episode") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} episodes"
    return Plot(key, title, f"{said}. Wilson's 95 % intervals, {episodes} each.", figure, panel)


def _rate_range(intervals: Sequence[Interval]) -> list[float]:
    low = min(interval.low for interval in intervals)
    return [max(0.0, 100 * low - 4) if low > 0.3 else 0, 100]


def _differences(results: Results, rows: Sequence[Row], margin: float | None) -> tuple[go.Figure, str]:
    figure, said = _forest(results, "points to the deployed teacher", rows)
    line = {"color": NEUTRAL, "width": 1.2}
    figure.add_shape(type="line", x0=0, x1=0, y0=0, y1=1, yref="paper", line=line, layer="below")
    if margin is not None:
        reference_line(figure, f"margin {points(-margin)}", x=-100 * margin)
        figure.update_layout(margin={"t": 34})
    return figure, said


def sequential(results: Results) -> list[Plot]:
    """The interval of each sequential run when it stopped, with the margin."""
    if not results.sequential:
        return []
    place = rank(results, (row.policy for row in results.sequential))
    rows = []
    for row in sorted(results.sequential, key=lambda row: (place[row.policy], -row.num_steps)):
        found = row.decision
        low, high = found.low, found.high
        text = (
            f"{found.decision} after {plural(found.episodes, 'episode')}, difference within [{points(low)}, "
            f"{points(high)}] points"
        )
        rows.append(Row(row, 50 * (low + high), _percent(Interval(low, high)), text))
    margin = results.sequential[0].decision.margin
    figure, said = _differences(results, rows, margin)
    caption = f"{said}. The dashed line is the margin of {points_of(margin)} points; marks are middles."
    return [Plot("sequential", "Where the sequential run stopped", caption, figure, "sequential")]


# ---- Motion and delays ----------------------------------------------------------------------------------


def motion(results: Results) -> list[Plot]:
    """A panel for each measure of motion."""
    panels: list[Plot] = []
    for measure, rows in motion_rows(results).items():
        unit = "s" if measure == "seconds" else "control steps" if measure == "length" else "robot's units"
        shown = [Row(row, row.mean.value, row.mean.interval, estimate(row.mean)) for row in rows]
        figure, said = _forest(results, f"{measure}, {unit}", shown)
        figure.update_layout(xaxis={"rangemode": "tozero", "nticks": 6})
        caption = f"{said}. In {MOTION_UNITS[measure]}; 95 % intervals."
        panels.append(Plot(f"motion-{len(panels)}", measure.capitalize(), caption, figure, "motion"))
    return panels


def delays(results: Results) -> list[Plot]:
    """Success by delay, a panel for each policy and step count, a line for each way to meet the delay."""
    ways = {(row.policy, row.num_steps) for row in results.delays}
    place = rank(results, (row.policy for row in results.delays))
    styles = {
        "none": (NEUTRAL, "circle-open", "solid"),
        "sync": (TEACHER_BLUE, "circle", "solid"),
        "async": (STUDENT_ORANGE, "square", "dash"),
    }
    panels: list[Plot] = []
    for policy, num_steps in sorted(ways, key=lambda way: (place[way[0]], -way[1])):
        rows = [row for row in results.delays if (row.policy, row.num_steps) == (policy, num_steps)]
        figure = canvas(340, "delay, control steps", "success, %")
        weights = sorted({row.guidance_weight or 0.0 for row in rows if row.mode == "rtc"})
        lines: dict[tuple[str, float | None], list[DelayRow]] = {}
        for row in sorted(
            rows, key=lambda row: (list(MODES).index(row.mode), row.guidance_weight or 0, row.delay)
        ):
            lines.setdefault((row.mode, row.guidance_weight), []).append(row)
        apart = 0.012 * (max(row.delay for row in rows) or 1)
        for index, ((mode, weight), own) in enumerate(lines.items()):
            # Lines beside each other, so that none hides another's interval.
            shift = apart * (index - (len(lines) - 1) / 2)
            name = MODES[mode] + (f", weight {weight:g}" if weight is not None else "")
            number = weights.index(weight or 0.0) if mode == "rtc" else 0
            colour, symbol, dash = styles.get(
                mode, (OTHERS[number % len(OTHERS)], SYMBOLS[(2 + number) % len(SYMBOLS)], "dot")
            )
            figure.add_scatter(
                x=rounded(row.delay + shift for row in own), y=rounded(100 * row.rate for row in own), name=name,
                mode="lines+markers", cliponaxis=False,
                line={"color": colour, "width": 2, "dash": dash}, marker={"size": 9, "symbol": symbol},
                error_y=error(
                    [100 * r.rate for r in own], [100 * r.interval.low for r in own],
                    [100 * r.interval.high for r in own],
                ),
                hoverinfo="text",
                hovertext=[
                    hover(name, f"delay {row.delay}: {percentage(row.rate)} %{span(row.interval, percentage)}")
                    for row in own
                ],
            )  # fmt: skip
        figure.update_layout(
            yaxis={"range": _rate_range([row.interval for row in rows])},
            xaxis={"tickmode": "array", "tickvals": sorted({row.delay for row in rows})},
            showlegend=True,
        )
        panels.append(
            Plot(
                f"delay-{len(panels)}",
                f"Under a delay: {at(policy, num_steps)}",
                _delay_caption(rows),
                figure,
                "delays",
            )
        )
    return panels


def _delay_caption(rows: Sequence[DelayRow]) -> str:
    longest = max(row.delay for row in rows)
    said = [
        MODES[row.mode]
        + (f" with weight {row.guidance_weight:g}" if row.guidance_weight is not None else "")
        + f" {percentage(row.rate)} %{span(row.interval, percentage)}"
        for row in rows
        if row.delay == longest
    ]
    return f"At a delay of {plural(longest, 'control step')}: {'; '.join(said)}. Wilson's 95 % intervals."
