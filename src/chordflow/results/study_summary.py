"""What a study shows: its figures over seeds, whether a round pays, and its answer in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

from chordflow.results.episodes import SuccessRow
from chordflow.results.paying import Gain, Standing, gain, paying_rounds
from chordflow.results.study import STEP_COUNTS, Arm, Look, Study, Trial
from chordflow.results.wording import clean, counted, percent, plural


class Measured(NamedTuple):
    """One student, or the untrained teacher, whose trial is None."""

    trial: Trial | None
    look: Look


type Figure = Callable[[Measured], float | None]


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        middle: its median.
        low: the least.
        high: the largest.
        count: seeds.
    """

    middle: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Judged:
    """The gain of a round of a chain.

    Attributes:
        gain: between the medians over seeds.
        pays: seeds in which the round pays by itself.
        count: seeds in which it is known.
    """

    gain: Gain
    pays: int
    count: int


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """One figure for each seed, where it is known; None where it is for none."""
    found = [value for value in values if value is not None]
    return Spread(median(found), min(found), max(found), len(found)) if found else None


def measured(study: Study, arm: Arm, mark: float | None = None) -> list[Measured]:
    """The measured students of an arm, one for each seed: at the end of their training, or at a look."""
    trials = [trial for seed in study.seeds if (trial := study.trial(arm.name, seed)) is not None]
    looks = [(trial, trial.last if mark is None else trial.look(mark)) for trial in trials]
    return [Measured(t, look) for t, look in looks if look is not None and look.figures is not None]


def over_seeds(study: Study, arm: Arm, figure: Figure, mark: float | None = None) -> Spread | None:
    """A figure over the measured students of an arm; None where none has it."""
    return spread_of(figure(one) for one in measured(study, arm, mark))


def gap(num_steps: int = 1, name: str = "rms") -> Figure:
    """A figure of the gap to the converged ODE of the study's teacher, by its name, at a number of Euler steps."""
    return lambda one: getattr(one.look.gap(num_steps), name, None)


def curvature(one: Measured) -> float | None:
    """The curvature."""
    return one.look.figures.curvature if one.look.figures is not None else None


def diversity(name: str) -> Figure:
    """A figure of the spread over noise at one step, by its name."""

    def figure(one: Measured) -> float | None:
        rows = one.look.figures.diversity if one.look.figures is not None else []
        return next((getattr(row, name) for row in rows if row.num_steps == 1), None)

    return figure


def solved(one: Measured) -> float | None:
    """Share of the episodes solved at one step."""
    return one.look.success[0].rate if one.look.success else None


def loss(one: Measured, step: int | None = None) -> float | None:
    """The training loss by which a trial has made so many steps, by default those of the look: at 0 of the first."""
    curve = one.trial.losses if one.trial is not None else None
    if curve is None:
        return None
    upto = max(one.look.step if step is None else step, 1)
    found = [loss for at, loss in zip(curve.steps, curve.losses, strict=True) if at <= upto]
    return found[-1] if found else None


def worst_gap(one: Measured) -> float | None:
    """The largest RMS gap over all step counts: how bad the worst choice of them is."""
    found = [rms for n in STEP_COUNTS if (rms := one.look.rms(n)) is not None]
    return max(found) if len(found) == len(STEP_COUNTS) else None


def without_steps(study: Study, arm: Arm) -> bool:
    """Whether a measured student of an arm made no step."""
    return any(one.trial is not None and one.trial.steps == 0 for one in measured(study, arm))


def middle_seed(rows: Sequence[SuccessRow]) -> SuccessRow | None:
    """The row of the seed with the median success, of an even number the lower of the two; None without rows.

    The students of all seeds run the same episodes against the same outcomes of the teacher. Added up, each episode
    would count once for each seed, and intervals that take episodes as independent would be too narrow.
    """
    return sorted(rows, key=lambda row: row.rate)[(len(rows) - 1) // 2] if rows else None


def success(study: Study, arm: Arm) -> SuccessRow | None:
    """Success at one step after all training, of several seeds that of `middle_seed`; None without episodes."""
    return middle_seed([one.look.success[0] for one in measured(study, arm) if one.look.success])


def untrained(study: Study, num_steps: int = 1) -> Measured | None:
    """The teacher with its success over all episodes at a number of steps; None until it is measured."""
    if study.untrained is None:
        return None
    acted = [row for row in study.untrained.success if (row.num_steps, row.group) == (num_steps, "all")]
    return Measured(None, Look(0, 0, None, "", study.teacher_sha256, study.untrained.figures, acted))


def reached(study: Study, arm: Arm, name: str = "rms") -> str | None:
    """When the gap of an arm at one step falls under the level, by the first look of each trial that shows it.

    Such as `500-1,000`, `1,000 (2 of 3)` where not all did, or `never`; None where no trial is measured whole.
    """
    trials = [one.trial for one in measured(study, arm) if one.trial is not None]
    trials = [trial for trial in trials if all(look.figures is not None for look in trial.looks)]
    under = [
        [look.mark for look in trial.looks if (row := look.gap(1)) and getattr(row, name) < study.level]
        for trial in trials
    ]
    firsts = sorted(marks[0] for marks in under if marks)
    if not firsts:
        return "never" if trials else None
    text = "-".join(dict.fromkeys(f"{mark:,g}" for mark in (firsts[0], firsts[-1])))
    return text if len(firsts) == len(trials) else f"{text} ({len(firsts)} of {len(trials)})"


def same_couplings(study: Study) -> bool | None:
    """Whether all trials of a seed were trained on the same couplings to the bit; None where that is not known."""
    hashes = [[t.couplings_sha256 for t in study.trials if t.seed == seed] for seed in study.seeds]
    several = [found for found in hashes if len(found) > 1 and all(found)]
    return all(len(set(found)) == 1 for found in several) if several else None


def whole_seeds(study: Study, chain: Sequence[Arm]) -> dict[int, list[Standing]]:
    """Figures of the untrained teacher and each round of a chain, by seed, for seeds with every round measured.

    So the medians of all rounds are over the same seeds.
    """
    found = {s: [_standing(study, arm, s) for arm in (None, *chain)] for s in study.seeds}
    return {seed: [one for one in line if one] for seed, line in found.items() if all(line)}


def standings(study: Study, chain: Sequence[Arm]) -> list[Standing]:
    """The untrained teacher, and the medians of each round over the whole seeds; empty where there are none."""
    rounds = zip(*whole_seeds(study, chain).values(), strict=True)
    return [Standing(median(s.curvature for s in found), median(s.gap for s in found)) for found in rounds]


def judged(study: Study, chain: Sequence[Arm], place: int) -> Judged | None:
    """The gain of a round of a chain, counted from 0; None where no seed is whole."""
    seeds, found = whole_seeds(study, chain).values(), standings(study, chain)
    gains = [gain(line[place], line[place + 1], study.least_gain) for line in (found, *seeds) if line]
    return Judged(gains[0], sum(one.pays for one in gains[1:]), len(gains) - 1) if gains else None


def _standing(study: Study, arm: Arm | None, seed: int) -> Standing | None:
    """Figures of a seed's student of an arm, or of the untrained teacher; None where they are not measured."""
    trial = study.trial(arm.name, seed) if arm is not None else None
    of = trial.last if trial is not None else study.untrained if arm is None else None
    figures = of.figures if of is not None else None
    row = figures.gap(1) if figures is not None else None
    return Standing(figures.curvature, row.rms) if figures is not None and row is not None else None


# ---- The answer in words ----------------------------------------------------------------------------------


def answers(study: Study) -> list[str]:
    """The headline with its figure; then sentences on other measures, the untrained teacher and what is left out."""
    found = _rounds(study) if study.preset == "rounds" else _best_arms(study)
    return [text for text in found if text] or ["Nothing is measured yet."]


def budget(study: Study, arm: Arm | None = None) -> str:
    """The budget of a trial, such as `2000 steps`."""
    own = arm.steps if arm is not None else None
    return f"{study.seconds:g} s" if study.seconds is not None else plural(own or study.steps or 0, "step")


def level(study: Study) -> str:
    """The level in percent, as it was given."""
    return f"{100 * study.level:g} %"


# ---- Which arm is best ------------------------------------------------------------------------------------


def leaders(study: Study) -> list[Arm]:
    """The arms that the first two sentences name; of rounds these name the first chain, which stands first."""
    names = [] if study.preset == "rounds" else _close(_by_way(study, _rivals(study), gap()))[:3]
    return [arm for arm in study.arms if study.label(arm) in names]


def _rivals(study: Study) -> list[Arm]:
    # Arms with equal settings differ by chance alone: the first stands for both. Converted files have no settings.
    arms: dict[str, Arm] = {}
    for arm in study.arms:
        if measured(study, arm) and not without_steps(study, arm):
            key = json.dumps([arm.settings or arm.differs, arm.teacher, arm.steps], sort_keys=True)
            arms.setdefault(key, arm)
    return list(arms.values())


def _best_arms(study: Study) -> list[str]:
    idle, rivals = [arm for arm in study.arms if without_steps(study, arm)], _rivals(study)
    any_steps = _by_way(study, [arm for arm in rivals if arm.step_counts is None], worst_gap)
    one = _by_way(study, rivals, gap())
    left = counted([clean(study.label(arm)) for arm in idle])
    return [
        _smallest_gap(one, {arm.steps or study.steps or 0 for arm in rivals}),
        _nearest(one, "At one step") if len(_close(one)) > 1 else "",
        _nearest(any_steps, f"At every step count (the worst of {counted(STEP_COUNTS)})"),
        _most_successful(study, rivals),
        _untrained(study, rivals),
        f"Left out, because the budget was too small for a step: {left}." if idle else "",
    ]


def _by_way(study: Study, arms: Sequence[Arm], figure: Figure) -> dict[str, Spread]:
    found = ((study.label(arm), over_seeds(study, arm, figure)) for arm in arms)
    return {name: spread for name, spread in found if spread is not None}


def _smallest_gap(found: dict[str, Spread], budgets: set[int]) -> str:
    """The headline: which arm has the smallest gap at one step, and whether others could."""
    if not found:
        return ""
    first, *others = close = _close(found)
    name, rms = clean(first), percent(found[first].middle)
    if len(found) == 1:
        return f"Arm {name} has a gap of {rms} to the teacher's converged ODE at one step."
    lead = f"No clear winner{_single(found, close)}: arm" if others else "Arm"
    differ = f", but budgets differ ({min(budgets)} to {max(budgets)} steps)" if len(budgets) > 1 else ""
    return f"{lead} {name} has the smallest gap at one step to the converged ODE, {rms}{differ}."


def _nearest(found: dict[str, Spread], where: str) -> str:
    """Which arm has the smallest gap, where the ranges over seeds leave no doubt."""
    return _named_best(where, found, _close(found), "has the smallest gap to the teacher's converged ODE")


def _most_successful(study: Study, arms: Sequence[Arm]) -> str:
    """Which arm succeeds most often, where neither seeds nor episodes leave a doubt.

    Ranges over seeds that do not overlap say nothing of the chance of episodes, which all seeds share: the intervals of
    the median seeds must not overlap either.
    """
    rows = {study.label(arm): row for arm in arms if (row := success(study, arm)) is not None}
    found = {name: replace(s, middle=rows[name].rate) for name, s in _by_way(study, arms, solved).items()}
    first = max(rows, key=lambda name: rows[name].rate, default="")
    rivals = [
        name
        for name, row in rows.items()
        if found[name].high >= found[first].low or row.interval.high >= rows[first].interval.low
    ]
    close = _close(found, first, rivals)
    return _named_best("In episodes at one step", found, close, "succeeds most often", decimals=1)


def _close(found: dict[str, Spread], first: str = "", rivals: Sequence[str] = ()) -> list[str]:
    """The best arm, by default the one with the least median, then those that may equal it; empty where none is known.

    By default those are the arms whose ranges overlap with the best one's. A single seed has no range.
    """
    if not found:
        return []
    first = first or min(found, key=lambda name: found[name].middle)
    rivals = rivals or [name for name in found if found[name].low <= found[first].high]
    close = [n for n, s in found.items() if n in rivals or n == first or min(s.count, found[first].count) < 2]
    return sorted(close, key=lambda name: (name != first, abs(found[name].middle - found[first].middle)))


def _single(found: dict[str, Spread], close: Sequence[str]) -> str:
    counts = [found[name].count for name in close]
    return f" with a single seed{' of some arms' if max(counts) > 1 else ''}" if min(counts) < 2 else ""


def _named_best(
    where: str, found: dict[str, Spread], close: Sequence[str], wins: str, decimals: int | None = None
) -> str:
    """The sentence on the best arm, the first of `close`, and on those that may equal it."""
    if not close:
        return ""
    named = [f"{clean(name)} ({_spread(found[name], decimals)})" for name in close[:3]]
    named += [f"{len(close) - 3} more"] if len(close) > 3 else []
    if len(found) == 1:
        return f"{where} there is {named[0]} alone."
    if len(close) == 1:
        return f"{where} {named[0]} {wins}."
    return f"{where} there is no clear winner{_single(found, close)} between {counted(named)}."


def _untrained(study: Study, arms: Sequence[Arm]) -> str:
    """Whether the untrained teacher at two steps is as good as the best student at one."""
    two, found = untrained(study, 2), _by_way(study, arms, gap())
    free = two.look.gap(2) if two is not None else None
    if two is None or free is None or not found:
        return ""
    best = min(found, key=lambda name: found[name].middle)
    one = found[best]
    how = "at least " if free.rms <= one.middle else "" if free.rms <= one.high else "not "
    gaps = f"{percent(free.rms)} against {percent(one.middle)}"
    text = f"The untrained teacher at two steps is {how}as good as {clean(best)} at one by its gap ({gaps})"
    rows = {study.label(arm): row for arm in arms if (row := success(study, arm)) is not None}
    if rows and two.look.success:
        most, acted = max(rows, key=lambda name: rows[name].rate), two.look.success[0]
        text += (
            f", and {'' if acted.interval.high >= rows[most].interval.low else 'not '}as good as {clean(most)} in "
            f"episodes ({percent(acted.rate, 1)} against {percent(rows[most].rate, 1)})"
        )
    return f"{text}."


def _spread(spread: Spread, decimals: int | None = None) -> str:
    low, middle, high = (percent(value, decimals) for value in (spread.low, spread.middle, spread.high))
    return middle + (f", {low} to {high} over {spread.count} seeds" if spread.count > 1 else "")


# ---- Rounds -----------------------------------------------------------------------------------------------


def _rounds(study: Study) -> list[str]:
    """After which round another one stopped paying in the first chain, then every chain by round."""
    chains = [c for c in study.chains if len(c) > 1 and standings(study, c)]
    if not chains:
        return ["No seed has all its rounds yet."]
    first, seeds = chains[0], [(len(whole_seeds(study, c)), study.planned(c[-1])) for c in chains]
    whole, planned = min(seeds, key=lambda counts: counts[0] - counts[1])
    known = standings(study, first)
    rms = percent(known[paying_rounds(known, study.least_gain) or 1].gap)
    once = [
        f"curvature {percent(known[1].curvature)}, gap {percent(known[1].gap)} with {clean(chain[0].way)} "
        f"({budget(study, chain[0])})"
        for chain in study.chains
        if len(chain) == 1 and (known := standings(study, chain))
    ]
    return [
        f"Chain {clean(first[-1].way)}: {_paying(study, first)}, at a one-step gap of {rms} to the first teacher's "
        "converged ODE.",
        f"Judged by {whole} of {plural(planned, 'seed')} so far." if whole < planned else "",
        *(_by_round(study, chain) for chain in chains),
        f"One round instead: {'; '.join(once)}." if once else "",
    ]


def _paying(study: Study, chain: Sequence[Arm]) -> str:
    """Where another round stopped paying."""
    paying = paying_rounds(standings(study, chain), study.least_gain)
    if paying == len(chain):
        return f"round {paying} still paid"
    return f"another round stopped paying after round {paying}" if paying else "not even round 1 paid"


def _by_round(study: Study, chain: Sequence[Arm]) -> str:
    """Where another round stopped paying, the figures by which it is judged, and how many seeds agree."""
    known = standings(study, chain)
    curvatures, gaps = (" -> ".join(percent(getattr(s, of)) for s in known) for of in ("curvature", "gap"))
    paying = paying_rounds(known, study.least_gain)
    found = judged(study, chain, paying) if paying < len(chain) else None
    agree = f"; {found.count - found.pays} of {found.count} seeds agree" if found and found.count > 1 else ""
    return f"{clean(chain[-1].way)}: {_paying(study, chain)} (curvature {curvatures}, gap {gaps}{agree})."
