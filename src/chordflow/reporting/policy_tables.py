"""Tables of the policies themselves: curvature, spreads, time, memory, checkpoints."""

import itertools
import math
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from chordflow.reporting.section import Cell, Column, Section, count, ends, number, rank, table, way
from chordflow.results.actions import CurvatureRow
from chordflow.results.schema import Results
from chordflow.results.statistics import Percentiles
from chordflow.results.wording import amount, clean, percent, plural, seconds, size, steps

PARTS = 10
"""Parts of the way from noise to action that curvature is listed for."""

# ---- Curvature ------------------------------------------------------------------------------------------


def curvature(results: Results) -> Section | None:
    """Curvature of each policy; None where it was not measured."""
    return table(
        "curvature",
        "Curvature along each policy's own paths",
        curvature_rows(results),
        [
            Column("policy", lambda row: way(row.policy)),
            Column("curvature", lambda row: number(row.curvature, percent)),
            Column("95 %\ninterval", lambda row: ends(row.interval)),
            Column("over all\ndimensions", lambda row: number(row.curvature_all_dims, percent)),
            Column("S", lambda row: number(row.s, amount)),
            Column("paths", lambda row: count(row.trajectories)),
            Column("Euler\nsteps", lambda row: count(row.num_steps)),
        ],
        below="The velocity's relative deviation from the straight line to the endpoint: 0 % is one exact step.",
    )


def curvature_rows(results: Results) -> list[CurvatureRow]:
    """The rows in the order in which policies are shown."""
    place = rank(results, (row.policy for row in results.curvature))
    return sorted(results.curvature, key=lambda row: place[row.policy])


def squared_chord(row: CurvatureRow) -> float | None:
    """`E ||x_1 - x_0||^2`, which turns S into curvature; None for paths that are straight throughout."""
    return row.s / row.curvature**2 if row.curvature > 0 else None


def curvature_by_time(row: CurvatureRow) -> list[float]:
    """Curvature at each time of the grid, a fraction: the root of the integrand over the squared chord."""
    scale = squared_chord(row)
    return [math.sqrt(max(s, 0.0) / scale) if scale else 0.0 for s in row.s_by_time]


class Part(NamedTuple):
    """A stretch of the way from noise (t = 1) to action (t = 0)."""

    begin: float
    end: float
    curvature: float
    share: float


def parts(row: CurvatureRow) -> list[Part]:
    """Curvature and share of S in tenths of the way; fewer where the grid is coarser."""
    grid, total = len(row.s_by_time), sum(row.s_by_time)
    if not grid or len(row.times) != grid:
        return []
    number, scale = min(PARTS, grid), squared_chord(row)
    edges = [round(i * grid / number) for i in range(number + 1)]
    times = [*row.times, 0.0]
    found = []
    for low, high in itertools.pairwise(edges):
        inside = sum(row.s_by_time[low:high])
        mean = max(inside, 0.0) / (high - low)
        value = math.sqrt(mean / scale) if scale else 0.0
        found.append(Part(times[low], times[high], value, inside / total if total > 0 else 0.0))
    return found


def curvature_over_time(results: Results) -> Section | None:
    """Curvature of each policy in tenths of the way; None where it was not measured."""
    rows = [row for row in curvature_rows(results) if parts(row)]
    if len({len(parts(row)) for row in rows}) > 1:
        return None

    def part(place: int, name: str) -> Callable[[tuple[Part, ...]], Cell]:
        return lambda of: number(getattr(of[place], name), percent)

    columns: list[Column[tuple[Part, ...]]] = [
        Column("t", lambda of: Cell(f"{of[0].begin:.2f} to {of[0].end:.2f}", -of[0].begin))
    ]
    for place, row in enumerate(rows):
        columns.append(Column(way(row.policy), part(place, "curvature")))
        if len(rows) <= 2:
            columns.append(Column(f"{way(row.policy)},\nshare of S", part(place, "share")))
    return table(
        "curvature-time",
        "Curvature by time, from the noise (t = 1) to the action (t = 0)",
        zip(*(parts(row) for row in rows), strict=True),
        columns,
        left=0,
        page_only=results.kind == "reflow" or len(rows) > 1,
    )


def real_dims(row: CurvatureRow) -> int | None:
    """Number of real dimensions, where the row tells it."""
    return len(row.s_by_time_and_dim[0]) if row.s_by_time_and_dim else None


def dimension_shares(row: CurvatureRow) -> list[float]:
    """Share of S in each dimension: the real ones where the row tells them, otherwise all padded ones."""
    values = row.s_by_dim[: real_dims(row)]
    total = sum(values)
    return [value / total if total > 0 else 0.0 for value in values]


def curvature_over_dims(results: Results) -> Section | None:
    """Share of S by dimension; None where there is none."""
    rows = [row for row in curvature_rows(results) if row.s_by_dim]
    if not rows or len({len(dimension_shares(row)) for row in rows}) > 1:
        return None

    def share(place: int) -> Callable[[tuple[int, tuple[float, ...]]], Cell]:
        return lambda of: number(of[1][place], percent)

    return table(
        "curvature-dims",
        f"Where S comes from, by {'' if real_dims(rows[0]) is not None else 'padded '}action dimension",
        enumerate(zip(*(dimension_shares(row) for row in rows), strict=True)),
        [
            Column("dimension", lambda of: count(of[0])),
            *(Column(way(row.policy), share(place)) for place, row in enumerate(rows)),
        ],
        left=0,
        page_only=results.kind != "diagnose",
    )


# ---- Spreads --------------------------------------------------------------------------------------------


def spread_summary(results: Results) -> Section | None:
    """Observations by the number of their modes; None where they were not looked at."""
    if not results.spreads:
        return None
    by_modes: dict[int, list[float]] = {}
    for row in sorted(results.spreads, key=lambda row: row.modes):
        by_modes.setdefault(row.modes, []).append(row.spread)
    return table(
        "modes",
        "How many ways to act the teacher sees at an observation",
        by_modes.items(),
        [
            Column("modes", lambda of: count(of[0])),
            Column("observations", lambda of: count(len(of[1]))),
            Column("share", lambda of: number(len(of[1]) / len(results.spreads), percent)),
            Column("median\nspread", lambda of: number(median(of[1]), percent)),
            Column("largest\nspread", lambda of: number(max(of[1]), percent)),
        ],
        left=0,
        below="Spread: of the endpoints over noises at one observation, relative to that over all observations: 0 "
        "where noise decides nothing, 1 where it decides as much as the observation. "
        f"Median {percent(median(row.spread for row in results.spreads))}.",
    )


def spread_list(results: Results) -> Section | None:
    """Every observation with its spread, the widest first; None where they were not looked at."""
    return table(
        "spreads",
        "Spread at every held-out observation",
        sorted(results.spreads, key=lambda row: -row.spread),
        [
            Column("task", lambda row: clean(row.task)),
            Column("observation", lambda row: count(row.observation)),
            Column("episode", lambda row: count(row.episode)),
            Column("frame", lambda row: count(row.frame)),
            Column("spread", lambda row: number(row.spread, percent)),
            Column("modes", lambda row: count(row.modes)),
            Column(
                "shares",
                lambda row: Cell(", ".join(percent(s, 0) for s in row.shares), max(row.shares, default=0.0)),
            ),
        ],
        page_only=True,
    )


# ---- Time and memory ------------------------------------------------------------------------------------


def latency(results: Results) -> Section | None:
    """Percentiles of every time that was measured; medians alone where only those were kept."""
    timed = results.timed
    if timed is None:
        return None
    below = (
        f"After warm-up, {plural(timed.repeats, 'repetition')}. Relative: to the teacher's chunk of "
        f"{steps(timed.teacher_num_steps)}, parts and sums of parts to the sum of its own."
    )
    if timed.teacher_num_steps > 1:
        below += (
            f" By the medians of encoding and one step, at most {timed.ceiling:.2f} times as fast by fewer steps, "
            "since encoding is paid once whatever their number."
        )
    whole = timed.chunk_s(timed.teacher_num_steps)
    measured = {chunk.num_steps: chunk.seconds for chunk in timed.chunks}
    rows: list[tuple[str, float, Percentiles | None, float]] = [
        ("encode the observation", timed.encode_s, timed.encode, timed.encode_s / whole),
        ("one step", timed.step_s, timed.step, timed.step_s / whole),
    ]
    for n in chunk_steps(results):
        name = f"chunk at {steps(n)}{'' if n in measured else ', summed up'}"
        rows.append((name, timed.chunk_s(n), measured.get(n), timed.relative(n)))
    if timed.processors_s is not None:
        name = "processors, not a part of the above"
        rows.append((name, timed.processors_s, None, timed.processors_s / whole))

    def percentile(which: str) -> Callable[[tuple[str, float, Percentiles | None, float]], Cell]:
        return lambda of: number(getattr(of[2], which) if of[2] is not None else None, seconds)

    return table(
        "latency",
        f"Time on {clean(results.device)}, {plural(timed.batch_size, 'observation')} at a time",
        rows,
        [
            Column("what", lambda of: of[0]),
            Column("p50", lambda of: number(of[2].p50 if of[2] is not None else of[1], seconds)),
            *(Column(which, percentile(which)) for which in ("p90", "p95", "p99")),
            Column("relative", lambda of: number(of[3], lambda value: f"{value:.2f}")),
        ],
        below=below,
        # Without percentiles it says no more than the findings.
        page_only=timed.encode is None and not timed.chunks,
    )


def chunk_steps(results: Results) -> list[int]:
    """Step counts that a chunk's time is shown for."""
    timed = results.timed
    if timed is None:
        return []
    own = {chunk.num_steps for chunk in timed.chunks}
    return sorted(own | {1, timed.student_num_steps, timed.teacher_num_steps})


def memory(results: Results) -> list[tuple[str, str]]:
    """What memory was measured, name and value."""
    if results.latency is None or results.latency.memory is None:
        return []
    found = results.latency.memory
    where = "the accelerator" if found.kind == "accelerator" else "the whole process"
    return [("weights", size(found.weights_bytes)), (f"most in use, {where}", size(found.peak_bytes))]


def policies(results: Results) -> Section | None:
    """The policies of the run; None where the file does not list them."""
    return table(
        "policies",
        "Policies that were compared",
        results.policies,
        [
            Column("policy", lambda row: way(row.name)),
            Column("checkpoint", lambda row: clean(row.path)),
            Column("family", lambda row: clean(row.family)),
            Column("steps", lambda row: count(row.num_steps)),
            Column("parameters", lambda row: count(row.parameters)),
            Column("SHA-256 of\nits weights", lambda row: clean(row.weights_sha256)[:12]),
        ],
        left=3,
    )
