"""Plots of rollouts: success, differences, sequential decisions, motion, delays; and of time."""

import itertools
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import plotly.graph_objects as go

from chordflow.reporting import plots
from chordflow.reporting import rollout_tables as tables
from chordflow.reporting.plots import Plot
from chordflow.reporting.section import at, brief, in_order
from chordflow.results.episodes import DelayRow, SuccessRow
from chordflow.results.schema import Results
from chordflow.results.statistics import Interval
from chordflow.results.wording import (
    capital,
    clean,
    estimate,
    percent,
    percentage,
    plural,
    points,
    seconds,
    span,
    steps,
)

MOST_GROUPS = 8
"""Instructions that have a panel of their own; the table has all."""


class Mark(NamedTuple):
    """A figure with its interval and in words, of a row of results; `more` is a further line of the hover box."""

    of: Any
    value: float
    interval: Interval | None
    text: str
    more: str = ""


def _forest(
    results: Results, axis: str, rows: Sequence[Mark], scale: float = 100, **x: Any
) -> tuple[go.Figure, str]:
    """A row for each way to act with its interval, by default in percent, and all of it in words."""
    names = plots.rows_axis([brief(row.of) for row in rows])
    figure = plots.canvas(plots.rows_height(len(rows)), axis, "", showlegend=False, yaxis=names, xaxis=x)
    for place, row in enumerate(rows):
        name, look = plots.label(at(row.of)), plots.styles(results)[row.of.policy]
        plots.add_marks(
            figure, [scale * row.value], [place], name, [plots.hover(name, row.text, *[row.more] * bool(row.more))],
            colour=look.colour, symbol=look.symbol, size=11, cliponaxis=False,
            error_x=plots.error([row.value], [row.interval], scale),
        )  # fmt: skip
    return figure, capital("; ".join(f"{at(row.of)} {row.text}" for row in rows))


# ---- Success --------------------------------------------------------------------------------------------


def success(results: Results) -> list[Plot]:
    """Success with Wilson's intervals, and the paired difference with the margin drawn, over all episodes."""
    groups = tables.by_group(results)
    if not groups:
        return []
    first = "all" if "all" in groups else next(iter(groups))
    panels = [_rates(results, first, groups[first], "success")]
    pairs = [(row, row.versus_teacher.difference) for row in groups[first] if row.versus_teacher is not None]
    if rows := [Mark(row, found.value, found.interval, estimate(found, points)) for row, found in pairs]:
        figure, in_words, line = _differences(results, rows, _margin(results))
        title = "Success against the deployed teacher, paired"
        panels.append(Plot("difference", title, f"{in_words} points{line}. 95 % intervals.", figure))
    return panels


def success_by_group(results: Results) -> list[Plot]:
    """A panel of rates for each instruction."""
    groups = [group for group in tables.by_group(results).items() if group[0] != "all"][:MOST_GROUPS]
    return [_rates(results, *group, f"success-{place}") for place, group in enumerate(groups)]


def _margin(results: Results) -> float | None:
    if results.rollouts is not None and results.rollouts.noise == "paired":
        return results.rollouts.margin
    asked = (row.noninferiority for row in results.success)
    return next((found.margin for found in asked if found is not None), None)


def _rates(results: Results, group: str, found: list[SuccessRow], key: str) -> Plot:
    rows = [
        Mark(row, row.rate, row.interval, _rate_text(row), f"{row.successes} of {row.episodes} episodes")
        for row in found
    ]
    figure, in_words = _forest(results, "success, %", rows, range=_rate_range(found))
    title = "Success over all episodes" if group == "all" else f"Success: {clean(group)}"
    return Plot(key, title, f"{in_words}. Wilson's 95 % intervals, {tables.how_many(found)} each.", figure)


def _rate_text(row: SuccessRow | DelayRow) -> str:
    return f"{percentage(row.rate)} %{span(row.interval, percentage)}"


def _rate_range(rows: Sequence[SuccessRow | DelayRow]) -> list[float]:
    low = min(row.interval.low for row in rows)
    return [max(0.0, 100 * low - 4) if low > 0.3 else 0, 100]


def _differences(results: Results, rows: Sequence[Mark], margin: float | None) -> tuple[go.Figure, str, str]:
    """The plot, its rows in words, and what the dashed line is, where there is one."""
    figure, in_words = _forest(results, "points to the deployed teacher", rows)
    line = {"color": plots.NEUTRAL, "width": 1.2}
    figure.add_shape(type="line", x0=0, x1=0, y0=0, y1=1, yref="paper", line=line, layer="below")
    if margin is None:
        return figure, in_words, ""
    plots.reference_line(figure, f"margin {points(-margin)}", x=-100 * margin)
    figure.update_layout(margin={"t": 34})
    return figure, in_words, f". The dashed line is the margin of {tables.points_of(margin)} points"


def sequential(results: Results) -> list[Plot]:
    """The interval of each sequential run when it stopped, with the margin."""
    rows = []
    for row in in_order(results, results.sequential):
        found, interval = row.decision, Interval(row.decision.low, row.decision.high)
        within = f"difference within{span(interval, points)} points"
        text = f"{found.decision} after {plural(found.episodes, 'episode')}, {within}"
        rows.append(Mark(row, (found.low + found.high) / 2, interval, text))
    if not rows:
        return []
    figure, in_words, line = _differences(results, rows, results.sequential[0].decision.margin)
    caption = f"{in_words}{line}; marks are middles."
    return [Plot("sequential", "Where the sequential run stopped", caption, figure)]


# ---- Motion and delays ----------------------------------------------------------------------------------


def motion(results: Results) -> list[Plot]:
    """A panel for each measure of motion."""
    panels: list[Plot] = []
    for measure, rows in tables.motion_rows(results).items():
        unit = "s" if measure == "seconds" else "control steps" if measure == "length" else "robot's units"
        shown = [Mark(row, row.mean.value, row.mean.interval, estimate(row.mean)) for row in rows]
        figure, in_words = _forest(results, f"{measure}, {unit}", shown, 1, rangemode="tozero", nticks=6)
        caption = f"{in_words}. In {tables.MOTION_UNITS[measure]}; 95 % intervals."
        panels.append(Plot(f"motion-{len(panels)}", measure.capitalize(), caption, figure))
    return panels


def delays(results: Results) -> list[Plot]:
    """Success by delay, a panel for each policy and step count, a line for each way to meet the delay."""
    by_way = itertools.groupby(tables.delay_rows(results), attrgetter("policy", "num_steps"))
    return [_delay_panel(f"delay-{place}", list(rows)) for place, (_, rows) in enumerate(by_way)]


def _delay_panel(key: str, rows: Sequence[DelayRow]) -> Plot:
    delays = sorted({row.delay for row in rows})
    figure = plots.canvas(340, "delay, control steps", "success, %", showlegend=True)
    figure.update_layout(xaxis={"tickmode": "array", "tickvals": delays}, yaxis={"range": _rate_range(rows)})
    styles = {
        "none": (plots.NEUTRAL, "circle-open", "solid"),
        "sync": (plots.TEACHER_BLUE, "circle", "solid"),
        "async": (plots.STUDENT_ORANGE, "square", "dash"),
    }
    weights = sorted({row.guidance_weight or 0.0 for row in rows if row.mode == "rtc"})
    lines = [
        (kind, list(own)) for kind, own in itertools.groupby(rows, attrgetter("mode", "guidance_weight"))
    ]
    for place, ((mode, weight), own) in enumerate(lines):
        # Lines beside each other, so that none hides another's interval.
        shift = 0.012 * (delays[-1] or 1) * (place - (len(lines) - 1) / 2)
        name = tables.MODES[mode] + (f", weight {weight:g}" if weight is not None else "")
        of = weights.index(weight or 0.0) if mode == "rtc" else 0
        rtc = (plots.OTHERS[of % len(plots.OTHERS)], plots.SYMBOLS[(2 + of) % len(plots.SYMBOLS)], "dot")
        colour, symbol, dash = styles.get(mode, rtc)
        plots.add_marks(
            figure, [row.delay + shift for row in own], [100 * row.rate for row in own], name,
            [plots.hover(name, f"delay {row.delay}: {_rate_text(row)}") for row in own],
            colour=colour, symbol=symbol, size=9, dash=dash, cliponaxis=False,
            error_y=plots.error([row.rate for row in own], [row.interval for row in own]),
        )  # fmt: skip
    texts = [
        tables.MODES[row.mode]
        + (f" with weight {row.guidance_weight:g}" if row.guidance_weight is not None else "")
        + f" {_rate_text(row)}"
        for row in rows
        if row.delay == delays[-1]
    ]
    longest = plural(delays[-1], "control step")
    caption = f"At a delay of {longest}: {'; '.join(texts)}. Wilson's 95 % intervals."
    return Plot(key, f"Under a delay: {at(rows[0])}", caption, figure)


# ---- Time -----------------------------------------------------------------------------------------------


def latency(results: Results) -> list[Plot]:
    """A chunk's time at each step count, encoding and steps stacked, with percentiles and the ceiling."""
    timed = results.timed
    if timed is None:
        return []
    counts = tables.chunk_steps(results)
    names = [steps(n) + ("" if n != timed.teacher_num_steps else ", teacher") for n in counts]
    names += [f"exported {name}" for name in timed.exported]
    figure = plots.canvas(
        plots.rows_height(len(names)) + 60, "ms for one chunk", "", barmode="stack", bargap=0.35, showlegend=True,
        legend={"y": 1.12, "traceorder": "normal"}, margin={"t": 34}, xaxis={"rangemode": "tozero"},
        yaxis=plots.rows_axis(names),
    )  # fmt: skip
    for what, colour, hatch, times in (
        ("encode", plots.NEUTRAL, "", [timed.encode_s] * len(counts)),
        ("steps", plots.TEACHER_BLUE, "/", [n * timed.step_s for n in counts]),
    ):
        hovers = [f"{name}: {what} {seconds(time)}" for name, time in zip(names, times, strict=False)]
        lengths = [1000 * time for time in times]
        plots.add_bars(figure, lengths, what, hovers, colour=colour, hatch=hatch, across=True)
    chunks = {chunk.num_steps: chunk.seconds for chunk in timed.chunks}
    known = [chunks.get(n) for n in counts] + [made.seconds for made in timed.exported.values()]
    measured = {place: found for place, found in enumerate(known) if found is not None}
    symbols = {"p50": "line-ns-open", "p90": "triangle-up", "p95": "diamond", "p99": "x"}
    for which, symbol in symbols.items() if measured else ():
        times = [getattr(found, which) for found in measured.values()]
        hovers = [f"{names[at]}: {which} {seconds(time)}" for at, time in zip(measured, times, strict=True)]
        plots.add_marks(
            figure, [1000 * time for time in times], measured, which, hovers, colour=plots.STUDENT_ORANGE,
            symbol=symbol, size=9, marker={"line": {"width": 2, "color": plots.STUDENT_ORANGE}},
        )  # fmt: skip
    plots.reference_line(figure, f"ceiling {timed.ceiling:.2f}x", x=1000 * timed.chunk_s(1))
    caption = (
        f"Encoding takes {seconds(timed.encode_s)} and each step {seconds(timed.step_s)} (medians). The dashed line is "
        f"one step: nothing that takes fewer steps is quicker, so {timed.ceiling:.2f} times as fast as the teacher's "
        f"{steps(timed.teacher_num_steps)} is the most there is; encoding is {percent(timed.encode_share(1), 0)} of "
        "that chunk."
    )
    if timed.exported:
        caption += " Exported folders, marks without a bar, are timed whole; the line does not bound them."
    return [Plot("latency", "Time of a chunk", caption, figure)]


def timing(results: Results) -> list[Plot]:
    """Where the time of rollouts went, in shares."""
    rows = in_order(results, results.timing)
    if not rows:
        return []
    figure = plots.canvas(
        plots.rows_height(len(rows)), "share of the time, %", "", barmode="stack", bargap=0.35, showlegend=True,
        legend={"traceorder": "normal"}, xaxis={"range": [0, 100]}, yaxis=plots.rows_axis([brief(row) for row in rows]),
    )  # fmt: skip
    styles = {
        "network": (plots.TEACHER_BLUE, ""),
        "simulator": (plots.NEUTRAL, "/"),
        "processors": (plots.OTHERS[0], "x"),
        "chordflow": (plots.STUDENT_ORANGE, "."),
    }
    for what, (colour, hatch) in styles.items():
        shares = [getattr(row, tables.SPENT[what]) / row.total_s if row.total_s > 0 else 0.0 for row in rows]
        texts = [f"{what} {percent(share)}" for share in shares]
        hovers = [plots.hover(plots.label(at(row)), text) for row, text in zip(rows, texts, strict=True)]
        lengths = [100 * share for share in shares]
        plots.add_bars(figure, lengths, what, hovers, colour=colour, hatch=hatch, across=True)
    overheads = "; ".join(f"{at(row)} {percent(row.overhead)}" for row in rows)
    caption = f"Overhead, all but network and simulator: {overheads}."
    return [Plot("timing", "Where the time of rollouts went", caption, figure)]
