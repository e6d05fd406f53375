"""What a study of rounds says: figures over seeds, and after which round another one stopped paying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from chordflow.results.compare_summary import Spread, counted, middle_seed, spread_of
from chordflow.results.paying import Gain, Standing, gain, paying_rounds
from chordflow.results.rounds_study import RoundArm, RoundRun, RoundsStudy, standing
from chordflow.results.schema import SuccessRow
from chordflow.results.wording import clean, number, percent, plural


@dataclass(frozen=True)
class Judged:
    """What a round of an arm has brought, over seeds.

    Attributes:
        gain: between the medians over seeds.
        pays: seeds in which the round pays by itself.
        count: seeds in which it is known.
    """

    gain: Gain
    pays: int
    count: int


def over_seeds(
    study: RoundsStudy, arm: RoundArm, round: int, figure: Callable[[RoundRun], float | None]
) -> Spread | None:
    """A figure over the measured runs of a round; None where none has it."""
    return spread_of(figure(run) for run in study.runs_of(arm, round))


def gap_of(name: str, num_steps: int = 1) -> Callable[[RoundRun], float | None]:
    """A figure of the gap to the first teacher's converged ODE, by its name, at a number of steps."""

    def figure(run: RoundRun) -> float | None:
        row = run.figures.gap(num_steps) if run.figures is not None else None
        return getattr(row, name) if row is not None else None

    return figure


def curvature_of(run: RoundRun) -> float | None:
    """The curvature of a run."""
    return run.figures.curvature if run.figures is not None else None


def spread_at_one(run: RoundRun) -> float | None:
    """The spread over noise at one step, beside the first teacher's."""
    row = run.diversity_at(1)
    return row.spread if row is not None else None


def modes_at_one(run: RoundRun) -> float | None:
    """The share of observations with several modes that are all still there at one step."""
    row = run.diversity_at(1)
    return row.modes_kept if row is not None else None


def whole_seeds(study: RoundsStudy, arm: RoundArm) -> list[int]:
    """The seeds of which every round of an arm is measured; only those are judged, so that no seed comes and goes."""
    rounds = range(arm.rounds_of(study.rounds) + 1)
    return [s for s in study.seeds if all(_standing_of(study, arm, round, s) is not None for round in rounds)]


def standings(study: RoundsStudy, arm: RoundArm) -> list[Standing]:
    """The untrained teacher, and the medians of each round over the whole seeds; empty where there are none."""
    seeds = whole_seeds(study, arm)
    found = []
    for round in range(arm.rounds_of(study.rounds) + 1 if seeds else 0):
        known = [one for seed in seeds if (one := _standing_of(study, arm, round, seed)) is not None]
        found.append(Standing(median(one.curvature for one in known), median(one.gap for one in known)))
    return found


def judged(study: RoundsStudy, arm: RoundArm, round: int) -> Judged | None:
    """What a round has brought; None where no seed is whole."""
    found, seeds = standings(study, arm), whole_seeds(study, arm)
    if not found:
        return None
    pays = 0
    for seed in seeds:
        before, after = (_standing_of(study, arm, number, seed) for number in (round - 1, round))
        if before is not None and after is not None:
            pays += gain(before, after, study.least_gain).pays
    return Judged(gain(found[round - 1], found[round], study.least_gain), pays, len(seeds))


def _standing_of(study: RoundsStudy, arm: RoundArm, round: int, seed: int) -> Standing | None:
    if round == 0:
        return standing(study.untrained.figures) if study.untrained is not None else None
    run = study.run(arm, round, seed)
    return standing(run.figures) if run is not None else None


def success(study: RoundsStudy, arm: RoundArm, round: int) -> SuccessRow | None:
    """Success at one step, of several seeds that of `middle_seed`; None where no episodes were run."""
    return middle_seed([run.success[0] for run in study.runs_of(arm, round) if run.success])


def headline(study: RoundsStudy) -> str:
    """What was measured, where another round stopped paying, and what the rounds did to diversity and success."""
    told = {arm.name: text for arm in study.arms if (text := _of_arm(study, arm))}
    if not told:
        return "No seed has all its rounds yet."
    least = min(len(whole_seeds(study, arm)) for arm in study.arms if arm.name in told)
    seeds = plural(len(study.seeds), "seed")
    if least < len(study.seeds):
        seeds = f"{least} of {seeds} so far"
    first = (
        f"Up to {number(study.rounds)} rounds of {plural(study.steps, 'step')} with "
        f"{seeds}, measured by curvature and by the gap at one step to the first teacher's converged ODE: "
        f"{'; '.join(told.values())}."
    )
    said = (first, _once(study), _diversity(study), _success(study))
    return " ".join(text for text in said if text)


def _of_arm(study: RoundsStudy, arm: RoundArm) -> str:
    """Where another round stopped paying, with the figures by which that is said."""
    known = standings(study, arm)
    if not known or arm.start == "once":
        return ""
    paying, name = paying_rounds(known, study.least_gain), clean(arm.name)
    figures = f"curvature {_way([one.curvature for one in known])}, gap {_way([one.gap for one in known])}"
    if paying == study.rounds:
        return f"with {name}, round {study.rounds} still paid ({figures})"
    found = judged(study, arm, paying + 1)
    assert found is not None
    agree = f", in {found.count - found.pays} of {found.count} seeds as well" if found.count > 1 else ""
    where = f"another round stopped paying after round {paying}" if paying else "not even round 1 paid"
    return f"with {name}, {where}{agree} ({figures})"


def _way(values: list[float]) -> str:
    return " -> ".join(percent(value) for value in values)


def _once(study: RoundsStudy) -> str:
    """What the steps of all rounds together come to in one."""
    parts = []
    for arm in study.arms:
        known = standings(study, arm) if arm.start == "once" else []
        if known:
            parts.append(
                f"curvature {percent(known[1].curvature)}, gap {percent(known[1].gap)} with {clean(arm.name)}"
            )
    return f"One round of {study.steps * study.rounds:,} steps instead: {'; '.join(parts)}." if parts else ""


def _diversity(study: RoundsStudy) -> str:
    """How far the endpoints of the last round still spread."""
    parts = []
    for arm in study.arms:
        last = arm.rounds_of(study.rounds)
        spread, modes = (over_seeds(study, arm, last, value) for value in (spread_at_one, modes_at_one))
        if spread is not None:
            kept = f" ({percent(modes.middle, 0)})" if modes is not None else ""
            parts.append(f"{percent(spread.middle, 0)}{kept} with {clean(arm.name)}")
    if not parts:
        return ""
    several = (
        " (and all modes, at so many of the observations that have several)"
        if any("(" in part for part in parts)
        else ""
    )
    return (
        f"After the last round endpoints at one step keep of the first teacher's spread over noise{several} "
        f"{counted(parts)}."
    )


def _success(study: RoundsStudy) -> str:
    """Success of the first and the last round at one step."""
    parts = []
    for arm in study.arms:
        rounds = dict.fromkeys((1, arm.rounds_of(study.rounds)))
        rows = [success(study, arm, round) for round in rounds]
        rates = [percent(row.rate, 1) for row in rows if row is not None]
        if len(rates) == len(rounds):
            parts.append(f"{' -> '.join(rates)} with {clean(arm.name)}")
    teacher = study.untrained
    if not parts or teacher is None:
        return ""
    own = [r for r in teacher.success if (r.num_steps, r.group) == (teacher.num_steps, "all")]
    beside = f" (the teacher as deployed {percent(own[0].rate, 1)})" if own else ""
    return f"Success at one step from the first round to the last: {counted(parts)}{beside}."
