"""Tables of the flow: action gaps, curvature, spreads of the endpoints."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

from chordflow.reporting.rollout_tables import rate
from chordflow.reporting.section import (
    MOST_ROWS,
    POLICY,
    STEPS,
    STOCK,
    Cell,
    Column,
    Section,
    as_saved,
    in_order,
    table,
    way,
)
from chordflow.results.actions import TEACHER, CurvatureRow, FreeWays, GapRow, PolicyName
from chordflow.results.episodes import SuccessRow
from chordflow.results.free import euler_beside, named
from chordflow.results.schema import Results
from chordflow.results.student_findings import candidates
from chordflow.results.wording import UNRELIABLE, amount, capital, clean, percent, percentage, plural, steps

NO_TIMES = f"{capital(UNRELIABLE)}."
"""What is shown in place of unreliable times."""

PARTS = 10
"""Parts of the way from noise to action that curvature is listed for."""

_gap_percent = partial(percent, decimals=1)
_whole_percent = partial(percent, decimals=0)
_ratio = "{:.2f}".format

# ---- Action gaps ----------------------------------------------------------------------------------------


class ShownWay(NamedTuple):
    """A way to act with its gaps to the deployed teacher and to the converged ODE; the floor is one of its own."""

    policy: PolicyName
    solver: str
    num_steps: int
    grid_power: float
    near: GapRow | None
    far: GapRow | None
    success: SuccessRow | None = None
    is_floor: bool = False
    on_half: bool = False

    @property
    def row(self) -> GapRow | None:
        """The gap that details are taken from."""
        return self.near or self.far


def summary(results: Results) -> Section | None:
    """The ways to act that a verdict is about, with success, gap and time; None where none of these was measured."""
    shown = [way for way in _summarised(results) if way.row is not None or way.success is not None]
    # Where there are too many, those that the verdict names stay.
    said = [_how(row) for row in named(results)]
    most = sorted(shown, key=lambda way: _how(way) not in said)[:MOST_ROWS]
    shown = [way for way in shown if way in most]
    which = "near" if any(way.near is not None for way in shown) else "far"
    goal = "deployed teacher" if which == "near" else "converged ODE"
    timed = results.timed

    def time(way: ShownWay) -> float | None:
        nfe = way.row.nfe if way.row is not None else way.num_steps if way.solver == "euler" else None
        return timed.relative(nfe, way.policy) if timed is not None and nfe is not None else None

    def name(shown: ShownWay) -> str:
        nfe = getattr(shown.row, "nfe", shown.num_steps)
        return way(shown) + f" ({nfe} evaluations)" * (nfe != shown.num_steps)

    halves = dict.fromkeys(name(way) for way in shown if way.on_half and getattr(way, which) is not None)
    notes = [NO_TIMES] if results.timings_unreliable else []
    if halves:
        notes.append(
            f"Gap of {' and '.join(halves)}: on the half of the held-out episodes that did not choose it."
        )
    section = table(
        "summary", "At a glance", shown,
        Column("policy", name),
        STEPS,
        Column("success %,\n95 % interval", lambda w: rate(w.success) if w.success else None, percentage),
        Column(f"gap to the\n{goal}", _of(which, "rms"), _gap_percent,
               f"Gap: RMS distance to the actions of the {goal} from the same noise, relative to their spread."),
        Column("time of\na chunk", time, _ratio, "Time: 1 is the teacher's as deployed."),
        below=" ".join(notes), marked=partial(as_saved, results),
    )  # fmt: skip
    return section if section is not None and len(section.heads) > 2 else None


def _of(which: str, name: str) -> Callable[[ShownWay], Any]:
    """A field of one of a way's gaps; None where that gap was not measured."""
    return lambda way: getattr(getattr(way, which), name, None)


def _summarised(results: Results) -> list[ShownWay]:
    deployed, n = results.teacher_num_steps, results.student_nfe
    counts = {deployed, n or 1}
    counts |= {row.num_steps for row in results.success if row.policy == TEACHER and row.is_stock}
    if results.student is None and not results.success:
        counts |= {row.num_steps for row in results.gaps if (row.policy, row.solver) == (TEACHER, "euler")}
    best = results.free.best(2) if results.free is not None else None
    counts |= {row.num_steps for row in named(results) if row.is_stock}
    ways = [_way(results, TEACHER, num_steps) for num_steps in sorted(counts, reverse=True)]
    others = {_how(row): row for row in [*([best] if best is not None else []), *named(results)]}
    for row in others.values():
        if not row.is_stock:
            like = _way(results, TEACHER, row.num_steps, row.solver) if row.grid_power == 1 else None
            if like is None or like.row is None:
                near = results.free.best(row.nfe, "deployed") if results.free is not None else None
                like = ShownWay(TEACHER, row.solver, row.num_steps, row.grid_power, near, row, on_half=True)
            solved = results.success_of(TEACHER, row.num_steps, solver=row.solver, grid_power=row.grid_power)
            ways.append(like._replace(success=solved))
    return ways + [_way(results, name, num_steps) for name, num_steps in candidates(results)]


def _how(row: GapRow | ShownWay) -> tuple[PolicyName, str, int, float]:
    return row.policy, row.solver, row.num_steps, row.grid_power


def _way(results: Results, policy: PolicyName, num_steps: int, solver: str | None = None) -> ShownWay:
    own, power = results.way(policy)
    near, far = (results.gap(policy, num_steps, kind, solver) for kind in ("deployed", "converged"))
    solved = results.success_of(policy, num_steps, solver=solver)
    return ShownWay(policy, solver or own, num_steps, power, near, far, solved)


def gaps(results: Results) -> Section | None:
    """Every way to act against both references, and the floor."""
    fine = next((row.reference_num_steps for row in results.gaps if row.reference == "converged"), "many")
    flips = ", flips" * any(row.flip_rate is not None for row in results.gaps)
    floor, timed = results.floor, results.timed

    def rms(which: str, goal: str) -> list[Column[ShownWay]]:
        return [
            Column(f"RMS to\n{goal}", _of(which, "rms"), _gap_percent),
            Column("95 %\ninterval", _of(which, "interval")),
            Column("of\nnoise", lambda way: _of_noise(results, getattr(way, which)), _whole_percent),
        ]

    def time(way: ShownWay) -> float | None:
        return timed.relative(way.row.nfe, way.policy) if timed and way.row and not way.is_floor else None

    found = {(row.policy, row.num_steps, row.solver) for row in results.gaps}
    rows = in_order(results, (_way(results, *one) for one in found))
    notes = [_normalisation(results)]
    if floor is not None:
        rows.append(ShownWay(TEACHER, "euler", floor.num_steps, 1.0, None, floor, is_floor=True))
        notes.append(
            f"Floor: the deployed teacher ({steps(floor.num_steps)}) to its converged ODE ({fine} steps); a "
            "smaller gap means little."
        )
    if any(not row.is_stock for row in results.gaps):
        notes.append(STOCK)
    return table(
        "gap", "Gap to the deployed teacher and to its converged ODE, relative to its spread, held out", rows,
        Column("policy", lambda w: "floor" if w.is_floor else way(w)),
        STEPS,
        *([Column("nfe", _of("row", "nfe"))] if any(r.nfe != r.num_steps for r in results.gaps) else []),
        *rms("near", "deployed"),
        Column("median", _of("row", "median"), _gap_percent,
               f"Median{flips} and differences (robot's units) are to the deployed teacher where that gap was "
               "measured, else to the converged ODE."),
        Column("flips", _of("row", "flip_rate"), _gap_percent),
        *rms("far", "converged"),
        Column("mean\ndiff.", _of("row", "mean_abs"), amount),
        Column("max\ndiff.", _of("row", "max_abs"), amount),
        Column("to the\nuntrained", _of("row", "ratio_to_untrained"), _ratio,
               "To the untrained: RMS over that of the untrained teacher at as many evaluations."),
        Column("to the\nfloor", _of("far", "ratio_to_floor"), _ratio,
               "To the floor: RMS to the converged ODE over that of the teacher as deployed."),
        Column("time", time, _ratio, "Time of a chunk: 1 is the teacher's as deployed."),
        below=" ".join(text for text in notes if text),
        marked=partial(as_saved, results),
    )  # fmt: skip


def _of_noise(results: Results, row: GapRow | None) -> float | None:
    return results.of_noise(row.rms) if row is not None else None


def _normalisation(results: Results) -> str:
    """What the relative gaps are relative to, and where one of them means nothing; empty where spreads are unknown."""
    share = results.noise_share
    if share is None:
        return ""
    if results.of_noise(0.0) is None:
        return (
            "RMS is relative to the whole spread of the teacher's actions. Noise explains "
            f"{percent(share)} of its variance, too little for a gap relative to it to mean anything: see the "
            "differences in the robot's units."
        )
    return (
        "RMS is relative to the spread of the teacher's actions over observations and noises. Of noise: relative to "
        f"what noise alone explains, {percent(share)} of that variance; 100 % is as far off as the mean action of each "
        "observation."
    )


def free(results: Results) -> Section | None:
    """The best way to act without training at each number of evaluations; None where it was not looked for."""
    found = results.free
    if found is None or not found.ways:
        return None
    rows = [row for row in found.ways if row.reference == "converged"]

    def beside(name: PolicyName) -> Column[GapRow]:
        own = {row.nfe: row.rms for row in found.others if row.policy == name}
        return Column(clean(name), lambda of: own.get(of.nfe), _gap_percent)

    others = dict.fromkeys(row.policy for row in found.others if row.policy != TEACHER)
    return table(
        "free", "Without training: the solver and grid of the smallest gap to the converged ODE", rows,
        Column("best way", lambda row: clean(row.solver) + f", grid power {row.grid_power:g}" * (row.grid_power != 1)),
        STEPS,
        Column("nfe", lambda row: row.nfe),
        Column("RMS to\nconverged", lambda row: row.rms, _gap_percent),
        Column("95 %\ninterval", lambda row: row.interval),
        Column("of\nnoise", partial(_of_noise, results), _whole_percent),
        Column("even\nEuler", partial(euler_beside, results), _gap_percent),
        *map(beside, others),
        below="Tried: Euler, midpoint, Heun and Adams-Bashforth on even grids and on grids of power 1.4 and 2 (steps "
        f"grow smaller towards the action). {_split(found)} Stock LeRobot takes even Euler steps alone.",
    )  # fmt: skip


def _split(found: FreeWays) -> str:
    if found.chosen_on == found.measured_on:
        return "Chosen and measured on the one held-out episode that there is, so the figures flatter."
    chosen = plural(len(found.chosen_on), "held-out episode")
    return f"Chosen on {chosen}, measured on {plural(len(found.measured_on), 'other')}."


# ---- Curvature ------------------------------------------------------------------------------------------


def curvature(results: Results) -> Section | None:
    """Curvature of each policy; None where it was not measured."""
    return table(
        "curvature", "Curvature along each policy's own paths", in_order(results, results.curvature),
        POLICY,
        Column("curvature", lambda row: row.curvature, percent),
        Column("95 %\ninterval", lambda row: row.interval),
        Column("over all\ndimensions", lambda row: row.curvature_all_dims, percent),
        Column("S", lambda row: row.s, amount),
        Column("paths", lambda row: row.trajectories),
        Column("Euler\nsteps", lambda row: row.num_steps),
        below="The velocity's relative deviation from the straight line to the endpoint: 0 % is one exact step.",
    )  # fmt: skip


def curvature_by_time(row: CurvatureRow) -> list[float]:
    """Curvature at each time of the grid, a fraction: the root of the integrand over the squared chord."""
    return [_relative(row, s) for s in row.s_by_time]


def _relative(row: CurvatureRow, s: float) -> float:
    """The curvature of a value of S: over the squared chord, which `row.s` gives unless all paths are straight."""
    return math.sqrt(max(s, 0.0) / (row.s / row.curvature**2)) if row.curvature > 0 else 0.0


class Stretch(NamedTuple):
    """A stretch of the way from noise (t = 1) to action (t = 0)."""

    begin: float
    end: float
    curvature: float
    share: float


def stretches(row: CurvatureRow) -> list[Stretch]:
    """Curvature and share of S in tenths of the way; fewer where the grid is coarser."""
    grid, total = len(row.s_by_time), sum(row.s_by_time)
    if not grid or len(row.times) != grid:
        return []
    number, times = min(PARTS, grid), [*row.times, 0.0]
    found = []
    for low, high in itertools.pairwise(round(i * grid / number) for i in range(number + 1)):
        inside = sum(row.s_by_time[low:high])
        share = inside / total if total > 0 else 0.0
        found.append(Stretch(times[low], times[high], _relative(row, inside / (high - low)), share))
    return found


def curvature_over_time(results: Results) -> Section | None:
    """Curvature of each policy in tenths of the way; None where it was not measured."""
    rows = [row for row in in_order(results, results.curvature) if stretches(row)]
    if len({len(stretches(row)) for row in rows}) > 1:
        return None

    def part(place: int, name: str, head: str) -> Column[tuple[Stretch, ...]]:
        return Column(head, lambda of: getattr(of[place], name), percent)

    columns = []
    for place, name in enumerate(map(way, rows)):
        columns.append(part(place, "curvature", name))
        if len(rows) <= 2:
            columns.append(part(place, "share", f"{name},\nshare of S"))
    return table(
        "curvature-time", "Curvature by time, from the noise (t = 1) to the action (t = 0)",
        zip(*map(stretches, rows), strict=True),
        Column("t", lambda of: Cell(f"{of[0].begin:.2f} to {of[0].end:.2f}", -of[0].begin)),
        *columns,
        left=0, page_only=results.kind == "reflow" or len(rows) > 1,
    )  # fmt: skip


def real_dims(row: CurvatureRow) -> int | None:
    """Number of real dimensions, where the row has it."""
    return len(row.s_by_time_and_dim[0]) if row.s_by_time_and_dim else None


def dimension_shares(row: CurvatureRow) -> list[float]:
    """Share of S in each dimension: the real ones where the row has them, otherwise all padded ones."""
    values = row.s_by_dim[: real_dims(row)]
    total = sum(values)
    return [value / total if total > 0 else 0.0 for value in values]


def curvature_over_dims(results: Results) -> Section | None:
    """Share of S by dimension; None where there is none."""
    rows = [row for row in in_order(results, results.curvature) if row.s_by_dim]
    if not rows or len({len(dimension_shares(row)) for row in rows}) > 1:
        return None

    def share(place: int) -> Column[tuple[int, tuple[float, ...]]]:
        return Column(way(rows[place]), lambda of: of[1][place], percent)

    return table(
        "curvature-dims",
        f"Where S comes from, by {'' if real_dims(rows[0]) is not None else 'padded '}action dimension",
        enumerate(zip(*map(dimension_shares, rows), strict=True)),
        Column("dimension", lambda of: of[0]),
        *map(share, range(len(rows))),
        left=0, page_only=results.kind != "diagnose",
    )  # fmt: skip


# ---- Spreads --------------------------------------------------------------------------------------------


def spread_summary(results: Results) -> Section | None:
    """Observations by the number of their modes; None where they were not looked at."""
    every = [row.spread for row in results.spreads]
    modes = sorted({row.modes for row in results.spreads})
    by_modes = {number: [row.spread for row in results.spreads if row.modes == number] for number in modes}
    return table(
        "modes", "How many ways to act the teacher sees at an observation", by_modes.items(),
        Column("modes", lambda of: of[0]),
        Column("observations", lambda of: len(of[1])),
        Column("share", lambda of: len(of[1]) / len(every), percent),
        Column("median\nspread", lambda of: median(of[1]), percent),
        Column("largest\nspread", lambda of: max(of[1]), percent),
        left=0,
        below="Spread: of the endpoints over noises at one observation, relative to that over all observations: 0 "
        "where noise decides nothing, 1 where it decides as much as the observation. "
        f"Median {percent(median(every or [0]))}.",
    )  # fmt: skip


def spread_list(results: Results) -> Section | None:
    """Every observation with its spread, the widest first; None where they were not looked at."""
    return table(
        "spreads", "Spread at every held-out observation", sorted(results.spreads, key=lambda row: -row.spread),
        Column("task", lambda row: clean(row.task)),
        Column("observation", lambda row: row.observation),
        Column("episode", lambda row: row.episode),
        Column("frame", lambda row: row.frame),
        Column("spread", lambda row: row.spread, percent),
        Column("modes", lambda row: row.modes),
        Column("shares", lambda row: Cell(", ".join(map(_whole_percent, row.shares)), max(row.shares, default=0))),
        page_only=True,
    )  # fmt: skip
