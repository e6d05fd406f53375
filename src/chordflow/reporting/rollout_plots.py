"""Plots of rollouts: success, differences, sequential decisions, motion, delays."""

from collections.abc import Sequence
from typing import NamedTuple

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
    """A difference with its interval, as a forest plot shows it."""

    name: str
    short: str
    policy: PolicyName
    value: float
    interval: Interval | None


# ---- Success --------------------------------------------------------------------------------------------


def success(results: Results) -> list[Plot]:
    """Success with Wilson's intervals, and the paired difference with the margin drawn, over all episodes."""
    groups = by_group(results)
    if not groups:
        return []
    first = "all" if "all" in groups else next(iter(groups))
    plots = [_rates(results, first, groups[first], "success", "success")]
    differences = [
        (row, row.versus_teacher.difference) for row in groups[first] if row.versus_teacher is not None
    ]
    if differences:
        plots.append(
            _differences(
                results,
                "difference",
                "Success against the deployed teacher, paired",
                [
                    Row(
                        at(row.policy, row.num_steps, row.solver, row.grid_power),
                        brief(row.policy, row.num_steps, row.solver, row.grid_power),
                        row.policy,
                        difference.value,
                        difference.interval,
                    )
                    for row, difference in differences
                ],
                _margin(results),
            )
        )
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


def _rates(results: Results, group: str, rows: Sequence[SuccessRow], key: str, panel: str) -> Plot:
    names = [at(row.policy, row.num_steps, row.solver, row.grid_power) for row in rows]
    short = [brief(row.policy, row.num_steps, row.solver, row.grid_power) for row in rows]
    figure = canvas(rows_height(len(rows)), "success, %", "", showlegend=False)
    look = looks(results)
    for place, row in enumerate(rows):
        figure.add_scatter(
            x=rounded([100 * row.rate]), y=[place], mode="markers", name=label(names[place]), cliponaxis=False,
            marker={"color": look[row.policy].colour, "symbol": look[row.policy].symbol, "size": 11},
            error_x=error([100 * row.rate], [100 * row.interval.low], [100 * row.interval.high]),
            hoverinfo="text",
            hovertext=[
                hover(
                    label(names[place]),
                    f"{percentage(row.rate)} % [{percentage(row.interval.low)}, {percentage(row.interval.high)}]",
                    f"{row.successes} of {row.episodes} episodes",
                )
            ],
        )  # fmt: skip
    rows_axis(figure, short)
    figure.update_layout(xaxis={"range": _rate_range([row.interval for row in rows])})
    title = "Success over all episodes" if group == "all" else f"Success: {clean(group)}"
    said = [
        f"{name} {percentage(row.rate)} %{span(row.interval, percentage)}"
        for name, row in zip(names, rows, strict=True)
    ]
    counts = sorted({row.episodes for row in rows})
    episodes = plural(counts[0], "episode") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} episodes"
    return Plot(
        key, title, capital(f"{'; '.join(said)}. Wilson's 95 % intervals, {episodes} each."), figure, panel
    )


def _rate_range(intervals: Sequence[Interval]) -> list[float]:
    low = min(interval.low for interval in intervals)
    return [max(0.0, 100 * low - 4) if low > 0.3 else 0, 100]


def _differences(
    results: Results,
    key: str,
    title: str,
    rows: Sequence[Row],
    margin: float | None,
) -> Plot:
    figure = canvas(rows_height(len(rows)), "points to the deployed teacher", "", showlegend=False)
    look = looks(results)
    for place, (name, _, policy, value, interval) in enumerate(rows):
        low, high = (interval.low, interval.high) if interval else (value, value)
        figure.add_scatter(
            x=rounded([100 * value]), y=[place], mode="markers", name=label(name),
            marker={"color": look[policy].colour, "symbol": look[policy].symbol, "size": 11},
            error_x=error([100 * value], [100 * low], [100 * high]),
            hoverinfo="text",
            hovertext=[hover(label(name), f"{points(value)} points{span(interval, points)}")],
        )  # fmt: skip
    rows_axis(figure, [row.short for row in rows])
    figure.add_shape(
        type="line",
        x0=0,
        x1=0,
        y0=0,
        y1=1,
        yref="paper",
        line={"color": NEUTRAL, "width": 1.2},
        layer="below",
    )
    drawn = ""
    if margin is not None:
        reference_line(figure, f"margin {points(-margin)}", x=-100 * margin)
        figure.update_layout(margin={"t": 34})
        drawn = f" The dashed line is the margin of {points_of(margin)} points."
    said = [f"{name} {points(value)}{span(interval, points)}" for name, _, _, value, interval in rows]
    return Plot(key, title, capital(f"{'; '.join(said)} points.{drawn} 95 % intervals."), figure, "success")


def sequential(results: Results) -> list[Plot]:
    """The interval of each sequential run when it stopped, with the margin."""
    if not results.sequential:
        return []
    place = rank(results, (row.policy for row in results.sequential))
    rows = sorted(results.sequential, key=lambda row: (place[row.policy], -row.num_steps))
    drawn = []
    for row in rows:
        low, high = row.decision.low, row.decision.high
        name = at(row.policy, row.num_steps)
        short = brief(row.policy, row.num_steps)
        drawn.append(Row(name, short, row.policy, (low + high) / 2, Interval(low, high)))
    margin = rows[0].decision.margin
    plot = _differences(results, "sequential", "Where the sequential run stopped", drawn, margin)
    said = "; ".join(
        f"{at(row.policy, row.num_steps)} {row.decision.decision} after {plural(row.decision.episodes, 'episode')}, "
        f"difference within [{points(row.decision.low)}, {points(row.decision.high)}] points"
        for row in rows
    )
    caption = capital(
        f"{said}. The dashed line is the margin of {points_of(margin)} points; marks are middles."
    )
    return [Plot(plot.key, plot.title, caption, plot.figure, "sequential")]


# ---- Motion and delays ----------------------------------------------------------------------------------


def motion(results: Results) -> list[Plot]:
    """A panel for each measure of motion."""
    look = looks(results)
    panels: list[Plot] = []
    for measure, rows in motion_rows(results).items():
        names = [at(row.policy, row.num_steps, row.solver, row.grid_power) for row in rows]
        short = [brief(row.policy, row.num_steps, row.solver, row.grid_power) for row in rows]
        unit = "s" if measure == "seconds" else "control steps" if measure == "length" else "robot's units"
        figure = canvas(rows_height(len(rows)), f"{measure}, {unit}", "", showlegend=False)
        for place, row in enumerate(rows):
            ends = row.mean.interval
            low, high = (ends.low, ends.high) if ends else (row.mean.value, row.mean.value)
            figure.add_scatter(
                x=rounded([row.mean.value]), y=[place], mode="markers", name=label(names[place]),
                marker={"color": look[row.policy].colour, "symbol": look[row.policy].symbol, "size": 10},
                error_x=error([row.mean.value], [low], [high]),
                hoverinfo="text",
                hovertext=[hover(label(names[place]), f"{measure} {estimate(row.mean)}")],
            )  # fmt: skip
        rows_axis(figure, short)
        figure.update_layout(xaxis={"rangemode": "tozero", "nticks": 6})
        said = "; ".join(f"{name} {estimate(row.mean)}" for name, row in zip(names, rows, strict=True))
        caption = capital(f"{said}. In {MOTION_UNITS[measure]}; 95 % intervals.")
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
