"""Tables of action gaps: the summary of a run, every way to act, and what can be had without training."""

from collections.abc import Callable
from typing import NamedTuple

from chordflow.reporting.rollout_tables import rate
from chordflow.reporting.section import (
    MOST_ROWS,
    STOCK,
    Cell,
    Column,
    Section,
    absent,
    count,
    ends,
    is_student,
    measure,
    number,
    rank,
    table,
    way,
)
from chordflow.results.actions import TEACHER, FreeWays, GapRow, PolicyName, Reference
from chordflow.results.episodes import SuccessRow
from chordflow.results.free import euler_beside
from chordflow.results.schema import Results
from chordflow.results.student_findings import candidates
from chordflow.results.wording import UNRELIABLE, amount, capital, clean, percent, plural, steps


class Way(NamedTuple):
    """A way to act with its gaps to both references; the floor is one of its own."""

    policy: PolicyName
    solver: str
    num_steps: int
    near: GapRow | None
    far: GapRow | None
    is_floor: bool = False
    grid_power: float = 1.0

    @property
    def row(self) -> GapRow | None:
        """The gap that details are taken from."""
        return self.near or self.far


# ---- Summary --------------------------------------------------------------------------------------------


def summary(results: Results) -> Section | None:
    """The ways to act that a verdict is about, with success, gap and time; None where none of these was measured."""
    shown = [way for way in _summarised(results) if way.row is not None or _success(results, way) is not None]
    reference: Reference = "deployed" if any(way.near is not None for way in shown) else "converged"
    near = reference == "deployed"
    goal = steps(results.teacher_num_steps) if near else "its converged ODE"
    note = f"{capital(UNRELIABLE)}." if results.timings_unreliable else ""

    def gap(way: Way) -> GapRow | None:
        return way.near if near else way.far

    def time(way: Way) -> Cell:
        nfe = way.row.nfe if way.row is not None else way.num_steps if way.solver == "euler" else None
        timed = results.timed
        return number(timed.relative(nfe) if timed is not None and nfe is not None else None, _ratio)

    section = table(
        "summary",
        "At a glance",
        shown[:MOST_ROWS],
        [
            Column("policy", lambda w: way(w.policy, w.solver, w.grid_power)),
            Column("steps", lambda w: count(w.num_steps)),
            Column(
                "success %,\n95 % interval",
                lambda w: Cell(rate(row), row.rate) if (row := _success(results, w)) is not None else absent(),
            ),
            Column(
                "action\ngap",
                lambda w: number(row.rms if (row := gap(w)) is not None else None, _percent),
                f"Action gap: RMS distance to the actions of the teacher at {goal}, from the same noise, relative to "
                "their spread.",
            ),
            Column("time of\na chunk", time, "Time: 1 is the teacher's as deployed."),
        ],
        marked=lambda w: is_student(results, w.policy, w.num_steps, w.solver),
    )  # fmt: skip
    if section is not None and note:
        section.below = f"{section.below} {note}".strip()
    return section if section is not None and len(section.heads) > 2 else None


def _success(results: Results, way: Way) -> SuccessRow | None:
    return results.success_of(way.policy, way.num_steps, solver=way.solver, grid_power=way.grid_power)


def _summarised(results: Results) -> list[Way]:
    deployed, n = results.teacher_num_steps, results.student_num_steps
    counts = {deployed, n or 1}
    counts |= {row.num_steps for row in results.success if row.policy == TEACHER and row.is_stock}
    if results.student is None and not results.success:
        counts |= {row.num_steps for row in results.gaps if (row.policy, row.solver) == (TEACHER, "euler")}
    ways = [_way(results, TEACHER, num_steps) for num_steps in sorted(counts, reverse=True)]
    best = [row for row in (results.free.ways if results.free is not None else []) if row.nfe == 2]
    if best and not best[0].is_stock:
        by = {row.reference: row for row in best}
        ways.append(
            Way(TEACHER, best[0].solver, best[0].num_steps, by.get("deployed"), by.get("converged"),
                grid_power=best[0].grid_power)
        )  # fmt: skip
    return ways + [_way(results, name, num_steps) for name, num_steps in candidates(results)]


def _way(results: Results, policy: PolicyName, num_steps: int, solver: str = "euler") -> Way:
    near, far = (results.gap(policy, num_steps, kind, solver) for kind in ("deployed", "converged"))
    return Way(policy, solver, num_steps, near, far)


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _percent(value: float) -> str:
    return percent(value, 1)


# ---- Every way ------------------------------------------------------------------------------------------


def gaps(results: Results) -> Section | None:
    """Every way to act against both references, and the floor."""
    fine = next((str(r.reference_num_steps) for r in results.gaps if r.reference == "converged"), "many")
    flips = ", flips" * any(row.flip_rate is not None for row in results.gaps)
    floor, timed = results.floor, results.timed

    def rms(which: str, goal: str) -> list[Column[Way]]:
        def of(w: Way) -> GapRow | None:
            return w.near if which == "near" else w.far

        return [
            Column(f"RMS\nto {goal}", lambda w: number(row.rms if (row := of(w)) else None, _percent)),
            Column("95 %\ninterval", lambda w: ends(row.interval if (row := of(w)) else None)),
            Column("of\nnoise", lambda w: noise_cell(results, of(w))),
        ]

    def detail(name: str, text: Callable[[float], str] = _percent) -> Callable[[Way], Cell]:
        return lambda w: number(getattr(w.row, name), text)

    columns: list[Column[Way]] = [
        Column("policy", lambda w: "floor" if w.is_floor else way(w.policy, w.solver)),
        Column("steps", lambda w: count(w.num_steps)),
    ]
    if any(row.nfe != row.num_steps for row in results.gaps):
        columns.append(Column("nfe", lambda w: count(w.row.nfe if w.row else None)))
    columns += [
        *rms("near", str(results.teacher_num_steps)),
        Column(
            "median",
            detail("median"),
            f"Median{flips} and differences (robot's units) are to the deployed teacher where that gap was measured, "
            "else to the ODE.",
        ),
        Column("flips", detail("flip_rate")),
        *rms("far", fine),
        Column("mean\ndiff.", detail("mean_abs", amount)),
        Column("max\ndiff.", detail("max_abs", amount)),
        Column(
            "to the\nuntrained",
            lambda w: measure(w.row.ratio_to_untrained if w.row else None, _ratio),
            "To the untrained: RMS over that of the untrained teacher at as many evaluations.",
        ),
        Column(
            "to the\nfloor",
            lambda w: measure(w.far.ratio_to_floor if w.far else None, _ratio),
            "To the floor: RMS to the converged ODE over that of the teacher as deployed.",
        ),
        Column(
            "time",
            lambda w: number(
                timed.relative(w.row.nfe) if timed and w.row and not w.is_floor else None, _ratio
            ),
            "Time of a chunk: 1 is the teacher's as deployed.",
        ),
    ]
    rows = [_way(results, policy, num_steps, solver) for policy, solver, num_steps in ways(results)]
    said = [normalisations(results)]
    if floor is not None:
        rows.append(Way(TEACHER, "euler", floor.num_steps, None, floor, is_floor=True))
        said.append(
            f"Floor: the teacher at {steps(floor.num_steps)} to its own converged ODE, below which a gap means little."
        )
    if any(not row.is_stock for row in results.gaps):
        said.append(STOCK)
    return table(
        "gap",
        "Action gap to the teacher from the same noise, relative to its spread, held out",
        rows,
        columns,
        below=" ".join(text for text in said if text),
        marked=lambda w: not w.is_floor and is_student(results, w.policy, w.num_steps, w.solver),
    )


def ways(results: Results) -> list[tuple[PolicyName, str, int]]:
    """Every policy, solver and step count that has a gap: the teacher first, Euler first, few steps last."""
    found = {(row.policy, row.solver, row.num_steps) for row in results.gaps}
    place = rank(results, (row.policy for row in results.gaps))
    return sorted(found, key=lambda way: (place[way[0]], way[1] != "euler", way[1], -way[2]))


def noise_cell(results: Results, row: GapRow | None) -> Cell:
    """A gap relative to what noise explains."""
    return number(results.of_noise(row.rms) if row is not None else None, lambda value: percent(value, 0))


def normalisations(results: Results) -> str:
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


# ---- Without training -----------------------------------------------------------------------------------


def free(results: Results) -> Section | None:
    """The best way to act without training at each number of evaluations; None where it was not looked for."""
    found = results.free
    if found is None or not found.ways:
        return None
    fine = next(row.reference_num_steps for row in found.ways if row.reference == "converged")
    others = list(dict.fromkeys(row.policy for row in found.others if row.policy != TEACHER))

    def beside(name: PolicyName) -> Column[GapRow]:
        return Column(
            clean(name),
            lambda row: number(other.rms if (other := found.beside(name, row.nfe)) else None, _percent),
        )

    return table(
        "free",
        "Without training: the teacher by the best solver and grid for each number of evaluations",
        [row for row in found.ways if row.reference == "converged"],
        [
            Column(
                "best way",
                lambda row: (
                    f"{clean(row.solver)}{'' if row.grid_power == 1 else f', grid power {row.grid_power:g}'}"
                ),
            ),
            Column("steps", lambda row: count(row.num_steps)),
            Column("nfe", lambda row: count(row.nfe)),
            Column(f"RMS\nto {fine}", lambda row: number(row.rms, _percent)),
            Column("95 %\ninterval", lambda row: ends(row.interval)),
            Column("of\nnoise", lambda row: noise_cell(results, row)),
            Column("even\nEuler", lambda row: number(euler_beside(results, row), _percent)),
            *(beside(name) for name in others),
        ],
        below="Tried: Euler, midpoint, Heun and Adams-Bashforth on even grids and on grids of power 1.4 and 2 (steps "
        f"grow smaller towards the action). {_split(found)} Stock LeRobot takes even Euler steps alone.",
    )


def _split(found: FreeWays) -> str:
    if found.chosen_on == found.measured_on:
        return "Chosen and measured on the one held-out episode that there is, so the figures flatter."
    chosen = plural(len(found.chosen_on), "held-out episode")
    return f"Chosen on {chosen}, measured on {plural(len(found.measured_on), 'other')}."
