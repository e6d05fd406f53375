"""Tables of curvature, spreads, time and memory."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from chordflow.reporting.section import Cell, Section, absent, count, figure, rank, way
from chordflow.results.schema import CurvatureRow, Results
from chordflow.results.statistics import Interval
from chordflow.results.wording import (
    amount,
    clean,
    percent,
    percentage,
    plural,
    seconds,
    size,
    span,
    steps,
)

PARTS = 10
"""Parts of the way from noise to action that curvature is listed for."""

# ---- Curvature ------------------------------------------------------------------------------------------


def curvature(results: Results) -> Section | None:
    """Curvature of each policy; None where it was not measured."""
    if not results.curvature:
        return None
    section = Section(
        key="curvature",
        title="Curvature along each policy's own paths",
        heads=[
            "policy",
            "curvature",
            "95 %\ninterval",
            "over all\ndimensions",
            "S",
            "paths",
            "Euler\nsteps",
        ],
        left=1,
        # A reflow run says it in one of the lines below its tables.
        terminal=results.kind != "reflow",
        markdown=results.kind != "reflow",
        below="The velocity's relative deviation from the straight line to the endpoint: 0 % is one exact step.",
    )
    for row in curvature_rows(results):
        section.add(
            way(row.policy),
            figure(percent(row.curvature), row.curvature),
            _ends(row.interval),
            figure(percent(row.curvature_all_dims), row.curvature_all_dims),
            figure(amount(row.s), row.s),
            count(row.trajectories),
            count(row.num_steps),
        )
    return section


def _ends(interval: Interval | None) -> Cell:
    return figure(span(interval, percentage).strip(), interval.low) if interval else absent()


def curvature_rows(results: Results) -> list[CurvatureRow]:
    """The rows in the order in which policies are shown."""
    place = rank(results, (row.policy for row in results.curvature))
    return sorted(results.curvature, key=lambda row: place[row.policy])


def squared_chord(row: CurvatureRow) -> float | None:
    """``E ||x_1 - x_0||^2``, which turns S into curvature; None for paths that are straight throughout."""
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
    if not rows or len({len(parts(row)) for row in rows}) > 1:
        return None
    section = Section(
        key="curvature-time",
        title="Curvature by time, from the noise (t = 1) to the action (t = 0)",
        heads=["t", *(h for row in rows for h in (way(row.policy), f"{way(row.policy)},\nshare of S"))],
        left=0,
        terminal=False,
        markdown=results.kind != "reflow" and len(rows) == 1,
    )
    for columns in zip(*(parts(row) for row in rows), strict=True):
        begin, end = columns[0].begin, columns[0].end
        cells = [figure(percent(value), value) for part in columns for value in (part.curvature, part.share)]
        section.add(figure(f"{begin:.2f} to {end:.2f}", -begin), *cells)
    return section


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
    known = real_dims(rows[0]) is not None
    section = Section(
        key="curvature-dims",
        title=f"Where S comes from, by {'' if known else 'padded '}action dimension",
        heads=["dimension", *(way(row.policy) for row in rows)],
        left=0,
        terminal=False,
        markdown=results.kind == "diagnose",
    )
    for dim, shares in enumerate(zip(*(dimension_shares(row) for row in rows), strict=True)):
        section.add(count(dim), *(figure(percent(share), share) for share in shares))
    return section


# ---- Spreads --------------------------------------------------------------------------------------------


def spread_summary(results: Results) -> Section | None:
    """Observations by the number of their modes; None where they were not looked at."""
    if not results.spreads:
        return None
    values = sorted(row.spread for row in results.spreads)
    section = Section(
        key="modes",
        title="How many ways to act the teacher sees at an observation",
        heads=["modes", "observations", "share", "median\nspread", "largest\nspread"],
        left=0,
        below="Spread: of the endpoints over noises at one observation, relative to that over all observations: 0 "
        f"where noise decides nothing, 1 where it decides as much as the observation. "
        f"Median {percent(median(values))}.",
    )
    for modes in sorted({row.modes for row in results.spreads}):
        own = sorted(row.spread for row in results.spreads if row.modes == modes)
        share = len(own) / len(values)
        section.add(
            count(modes),
            count(len(own)),
            figure(percent(share), share),
            figure(percent(median(own)), median(own)),
            figure(percent(own[-1]), own[-1]),
        )
    return section


def spread_list(results: Results) -> Section | None:
    """Every observation with its spread, the widest first; None where they were not looked at."""
    if not results.spreads:
        return None
    section = Section(
        key="spreads",
        title="Spread at every held-out observation",
        heads=["task", "observation", "episode", "frame", "spread", "modes", "shares"],
        left=1,
        terminal=False,
        markdown=False,
    )
    for row in sorted(results.spreads, key=lambda row: -row.spread):
        section.add(
            clean(row.task),
            count(row.observation),
            count(row.episode),
            count(row.frame),
            figure(percent(row.spread), row.spread),
            count(row.modes),
            figure(", ".join(percent(share, 0) for share in row.shares), max(row.shares, default=0.0)),
        )
    return section


def median(values: Sequence[float]) -> float:
    """Middle of sorted values."""
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


# ---- Time and memory ------------------------------------------------------------------------------------


def latency(results: Results) -> Section | None:
    """Percentiles of every time that was measured; medians alone where only those were kept."""
    timed = results.timed
    if timed is None:
        return None
    percentiles = timed.encode is not None or bool(timed.chunks)
    section = Section(
        key="latency",
        title=f"Time on {clean(results.device)}, {plural(timed.batch_size, 'observation')} at a time",
        heads=["what", "p50", "p90", "p95", "p99", "relative"],
        left=1,
        # Without percentiles it says no more than one of the lines below the tables.
        terminal=percentiles,
        markdown=percentiles,
        below=f"After warm-up, {plural(timed.repeats, 'repetition')}. Relative: to the teacher's chunk of "
        f"{steps(timed.teacher_num_steps)}, parts and sums of parts to the sum of its own.",
    )
    if timed.teacher_num_steps > 1:
        section.below += (
            f" By the medians of encoding and one step, at most {timed.ceiling:.2f} times as fast by fewer steps, "
            "since encoding is paid once whatever their number."
        )
    whole = timed.chunk_s(timed.teacher_num_steps)
    measured = {chunk.num_steps: chunk.seconds for chunk in timed.chunks}
    parts = [
        ("encode the observation", timed.encode_s, timed.encode, timed.encode_s / whole),
        ("one step", timed.step_s, timed.step, timed.step_s / whole),
    ]
    parts += [
        (
            f"chunk at {steps(n)}" + ("" if n in measured else ", summed up"),
            timed.chunk_s(n),
            measured.get(n),
            timed.relative(n),
        )
        for n in chunk_steps(results)
    ]
    if timed.processors_s is not None:
        name = "processors, not a part of the above"
        parts.append((name, timed.processors_s, None, timed.processors_s / whole))
    for name, middle, found, share in parts:
        first = found.p50 if found else middle
        others = [found.p90, found.p95, found.p99] if found else [None] * 3
        cells = [figure(seconds(v), v) if v is not None else absent() for v in others]
        section.add(name, figure(seconds(first), first), *cells, figure(f"{share:.2f}", share))
    return section


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
    if not results.policies:
        return None
    section = Section(
        key="policies",
        title="What was held against what",
        heads=["policy", "checkpoint", "family", "steps", "parameters", "SHA-256 of\nits weights"],
        left=3,
        terminal=False,
    )
    for row in results.policies:
        section.add(
            way(row.name),
            clean(row.path),
            clean(row.family),
            count(row.num_steps),
            count(row.parameters),
            clean(row.weights_sha256)[:12],
        )
    return section
