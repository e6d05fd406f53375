"""Plots of how two-sided a policy is: spreads, and the endpoints of single observations."""

import math
from collections.abc import Sequence
from statistics import median

from chordflow.reporting.plots import (
    OTHERS,
    STUDENT_ORANGE,
    SYMBOLS,
    TEACHER_BLUE,
    Plot,
    canvas,
    hover,
    pattern,
    rounded,
)
from chordflow.results.actions import WideObservation
from chordflow.results.schema import Results
from chordflow.results.wording import percent, plural


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
