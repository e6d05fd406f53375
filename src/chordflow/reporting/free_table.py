"""The table of what can be had without training, and what gaps are relative to."""

from chordflow.reporting.section import Cell, Section, absent, count, figure
from chordflow.results.free import euler_beside
from chordflow.results.schema import TEACHER, FreeWays, GapRow, Results
from chordflow.results.wording import clean, percent, percentage, plural, span


def noise_cell(results: Results, row: GapRow) -> Cell:
    """A gap relative to what noise explains."""
    value = results.of_noise(row.rms)
    return figure(percent(value, 0), value) if value is not None else absent()


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


def free(results: Results) -> Section | None:
    """The best way to act without training at each number of evaluations; None where it was not looked for."""
    found = results.free
    if found is None or not found.ways:
        return None
    fine = next(row.reference_num_steps for row in found.ways if row.reference == "converged")
    others = list(dict.fromkeys(row.policy for row in found.others if row.policy != TEACHER))
    noise = results.of_noise(0.0) is not None
    section = Section(
        key="free",
        title="Without training: the teacher by the best solver and grid for each number of evaluations",
        heads=["best way", "steps", "nfe", f"RMS\nto {fine}", "95 %\ninterval"],
        left=1,
        wide={4},
        below="Tried: Euler, midpoint, Heun and Adams-Bashforth on even grids and on grids of power 1.4 and 2 (steps "
        f"grow smaller towards the action). {_split(found)} Stock LeRobot takes even Euler steps alone.",
    )
    section.heads += [*(["of\nnoise"] if noise else []), "even\nEuler", *(clean(name) for name in others)]
    for row in found.ways:
        if row.reference != "converged":
            continue
        ends = row.interval
        beside = [found.beside(name, row.nfe) for name in others]
        section.add(
            f"{clean(row.solver)}{'' if row.grid_power == 1 else f', grid power {row.grid_power:g}'}",
            count(row.num_steps),
            count(row.nfe),
            _rms(row.rms),
            figure(span(ends, percentage).strip(), ends.low) if ends else absent(),
            *([noise_cell(results, row)] if noise else []),
            _rms(euler_beside(results, row)),
            *(_rms(other.rms if other is not None else None) for other in beside),
        )
    return section


def _rms(value: float | None) -> Cell:
    return figure(percent(value, 1), value) if value is not None else absent()


def _split(found: FreeWays) -> str:
    if found.chosen_on == found.measured_on:
        return "Chosen and measured on the one held-out episode that there is, so the figures flatter."
    chosen = plural(len(found.chosen_on), "held-out episode")
    return f"Chosen on {chosen}, measured on {plural(len(found.measured_on), 'other')}."
