"""Plots of time: chunks with the ceiling, and where rollouts spend it."""

from chordflow.reporting.plots import (
    NEUTRAL,
    OTHERS,
    STUDENT_ORANGE,
    TEACHER_BLUE,
    Plot,
    canvas,
    hover,
    label,
    pattern,
    reference_line,
    rounded,
    rows_axis,
    rows_height,
)
from chordflow.reporting.policy_tables import chunk_steps
from chordflow.reporting.section import at, brief, rank
from chordflow.results.schema import Results
from chordflow.results.wording import (
    percent,
    seconds,
    steps,
)


def latency(results: Results) -> list[Plot]:
    """A chunk's time at each step count, encoding and steps stacked, with percentiles and the ceiling."""
    timed = results.timed
    if timed is None:
        return []
    counts = chunk_steps(results)
    names = [steps(n) + ("" if n != timed.teacher_num_steps else ", teacher") for n in counts]
    figure = canvas(rows_height(len(counts)) + 60, "ms for one chunk", "", barmode="stack", bargap=0.35)
    ms = 1000.0
    stacks: tuple[tuple[str, str, str, list[float]], ...] = (
        ("encode", NEUTRAL, "", [timed.encode_s] * len(counts)),
        ("steps", TEACHER_BLUE, "/", [n * timed.step_s for n in counts]),
    )
    for what, colour, shape, values in stacks:
        figure.add_bar(
            x=rounded(ms * v for v in values), y=list(range(len(counts))), orientation="h", name=what,
            marker={"color": colour, "pattern": pattern(shape)},
            hoverinfo="text",
            hovertext=[f"{name}: {what} {seconds(v)}" for name, v in zip(names, values, strict=True)],
        )  # fmt: skip
    measured = {chunk.num_steps: chunk.seconds for chunk in timed.chunks}
    shown = [(place, measured[n]) for place, n in enumerate(counts) if n in measured]
    percentiles: tuple[tuple[str, str], ...] = (
        ("p50", "line-ns-open"), ("p90", "triangle-up"), ("p95", "diamond"), ("p99", "x"),
    )  # fmt: skip
    for which, symbol in percentiles if shown else ():
        figure.add_scatter(
            x=rounded(ms * getattr(times, which) for _, times in shown), y=[place for place, _ in shown],
            mode="markers", name=which,
            marker={
                "symbol": symbol, "size": 9, "color": STUDENT_ORANGE, "line": {"width": 2, "color": STUDENT_ORANGE},
            },
            hoverinfo="text",
            hovertext=[f"{names[place]}: {which} {seconds(getattr(times, which))}" for place, times in shown],
        )  # fmt: skip
    rows_axis(figure, names)
    reference_line(figure, f"ceiling {timed.ceiling:.2f}x", x=ms * timed.chunk_s(1))
    figure.update_layout(
        xaxis={"rangemode": "tozero"}, margin={"t": 34}, showlegend=True,
        legend={"y": 1.12, "traceorder": "normal"},
    )  # fmt: skip
    share = timed.encode_share(1)
    caption = (
        f"Encoding takes {seconds(timed.encode_s)} and each step {seconds(timed.step_s)} (medians). The dashed line is "
        f"one step: nothing that takes fewer steps is quicker, so {timed.ceiling:.2f} times as fast as the teacher's "
        f"{steps(timed.teacher_num_steps)} is the most there is; encoding is {percent(share, 0)} of that chunk."
    )
    return [Plot("latency", "Time of a chunk", caption, figure, "latency")]


def timing(results: Results) -> list[Plot]:
    """Where the time of rollouts went, in shares."""
    if not results.timing:
        return []
    place = rank(results, (row.policy for row in results.timing))
    rows = sorted(results.timing, key=lambda row: (place[row.policy], -row.num_steps))
    names = [at(row.policy, row.num_steps) for row in rows]
    short = [brief(row.policy, row.num_steps) for row in rows]
    figure = canvas(rows_height(len(rows)), "share of the time, %", "", barmode="stack", bargap=0.35)
    stacks: tuple[tuple[str, str, str], ...] = (
        ("network", TEACHER_BLUE, ""), ("simulator", NEUTRAL, "/"), ("processors", OTHERS[0], "x"),
        ("other", STUDENT_ORANGE, "."),
    )  # fmt: skip
    for what, colour, shape in stacks:
        shares = [
            getattr(row, f"{what}_s") / row.total_s if row.total_s > 0 else 0.0 for row in rows
        ]  # fmt: skip
        shown = "chordflow" if what == "other" else what
        figure.add_bar(
            x=rounded(100 * share for share in shares), y=list(range(len(rows))), orientation="h", name=shown,
            marker={"color": colour, "pattern": pattern(shape)},
            hoverinfo="text",
            hovertext=[
                hover(label(name), f"{shown} {percent(share)}") for name, share in zip(names, shares, strict=True)
            ],
        )  # fmt: skip
    rows_axis(figure, short)
    figure.update_layout(xaxis={"range": [0, 100]}, showlegend=True, legend={"traceorder": "normal"})
    said = "; ".join(f"{name} {percent(row.overhead)}" for name, row in zip(names, rows, strict=True))
    caption = f"Overhead, all but network and simulator: {said}."
    return [Plot("timing", "Where the time of rollouts went", caption, figure, "timing")]
