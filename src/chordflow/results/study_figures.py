"""The figures of a study over seeds: medians and ranges, success, steps to a level, and whether a round pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from chordflow.results.actions import GapRow
from chordflow.results.episodes import SuccessRow
from chordflow.results.paying import Gain, Standing, gain
from chordflow.results.study import STEP_COUNTS, Arm, Diversity, Look, Study, Trial


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
class Reached:
    """When the gap of an arm falls under the level.

    Attributes:
        marks: the first look under it, of each trial that has one, rising.
        trials: trials of which all looks are measured.
    """

    marks: list[float]
    trials: int

    @property
    def text(self) -> str:
        """In a few words: `500-1,000`, or `1,000 (2 of 3)` where not all did; `never`."""
        if not self.marks:
            return "never"
        low, high = f"{self.marks[0]:,g}", f"{self.marks[-1]:,g}"
        marks = low if low == high else f"{low}-{high}"
        return marks if len(self.marks) == self.trials else f"{marks} ({len(self.marks)} of {self.trials})"


@dataclass(frozen=True)
class Judged:
    """What a round of a chain brings.

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
        found: Diversity | None = one.look.figures.diversity_at(1) if one.look.figures is not None else None
        return getattr(found, name, None)

    return figure


def solved(one: Measured) -> float | None:
    """Share of the episodes solved at one step."""
    return one.look.success[0].rate if one.look.success else None


def loss(one: Measured, step: int | None = None) -> float | None:
    """The training loss by which a trial has made so many steps, by default those of the look: at 0 of the first."""
    curve = one.trial.losses if one.trial is not None else None
    upto = max(one.look.step if step is None else step, 1)
    found = [loss for at, loss in zip(curve.steps, curve.losses, strict=True) if at <= upto] if curve else []
    return found[-1] if found else None


def worst_gap(one: Measured) -> float | None:
    """The largest RMS gap over all step counts: how bad the worst choice of them is."""
    found = [one.look.rms(n) for n in STEP_COUNTS]
    known = [value for value in found if value is not None]
    return max(known) if len(known) == len(found) else None


def untaken(study: Study, arm: Arm) -> bool:
    """Whether a measured student of an arm made no step, and so is what it began as."""
    return any(one.trial is not None and one.trial.steps == 0 for one in measured(study, arm))


def middle_seed(rows: Sequence[SuccessRow]) -> SuccessRow | None:
    """The row of the seed with the median success, of an even number the lower of the two; None without rows.

    The students of all seeds run the same episodes against the same outcomes of the teacher. Added up, each episode
    would count once for each seed, and intervals and tests that take episodes as independent would say too much.

    Args:
        rows: of one way to act in one group of episodes, one for each seed.
    """
    return sorted(rows, key=lambda row: row.rate)[(len(rows) - 1) // 2] if rows else None


def success(study: Study, arm: Arm) -> SuccessRow | None:
    """Success at one step after all training, of several seeds that of `middle_seed`; None without episodes."""
    return middle_seed([one.look.success[0] for one in measured(study, arm) if one.look.success])


def reached(study: Study, arm: Arm, name: str = "rms") -> Reached | None:
    """When the gap of an arm at one step falls under the level; None where no trial is measured."""
    trials = [one.trial for one in measured(study, arm) if one.trial is not None]
    trials = [trial for trial in trials if all(look.figures is not None for look in trial.looks)]
    under: Callable[[GapRow | None], bool] = lambda row: row is not None and getattr(row, name) < study.level  # noqa: E731
    firsts = [next((look.mark for look in trial.looks if under(look.gap(1))), None) for trial in trials]
    return Reached(sorted(mark for mark in firsts if mark is not None), len(trials)) if trials else None


def same_couplings(study: Study) -> bool | None:
    """Whether all trials of a seed were trained on the same couplings to the bit; None where that is not known."""
    hashes = [[t.couplings_sha256 for t in study.trials if t.seed == seed] for seed in study.seeds]
    several = [found for found in hashes if len(found) > 1 and all(found)]
    return all(len(set(found)) == 1 for found in several) if several else None


def whole_seeds(study: Study, chain: Sequence[Arm]) -> list[int]:
    """The seeds of which every round of a chain is measured; only those are judged, so that no seed comes and goes."""
    return [s for s in study.seeds if all(_standing(study, arm, s) for arm in (None, *chain))]


def standings(study: Study, chain: Sequence[Arm]) -> list[Standing]:
    """The untrained teacher, and the medians of each round over the whole seeds; empty where there are none."""
    seeds = whole_seeds(study, chain)
    rounds = (
        [[s for seed in seeds if (s := _standing(study, arm, seed))] for arm in (None, *chain)]
        if seeds
        else []
    )
    return [Standing(median(s.curvature for s in found), median(s.gap for s in found)) for found in rounds]


def judged(study: Study, chain: Sequence[Arm], place: int) -> Judged | None:
    """What a round of a chain brings, counted from 0; None where no seed is whole."""
    found, arms = standings(study, chain), [None, *chain]
    pairs = [[_standing(study, arm, s) for arm in arms[place : place + 2]] for s in whole_seeds(study, chain)]
    pays = [gain(before, after, study.least_gain).pays for before, after in pairs if before and after]
    return (
        Judged(gain(found[place], found[place + 1], study.least_gain), sum(pays), len(pays))
        if found
        else None
    )


def _standing(study: Study, arm: Arm | None, seed: int) -> Standing | None:
    """What a seed's student of an arm stands at, or the untrained teacher; None where it is not measured."""
    trial = study.trial(arm.name, seed) if arm is not None else None
    of = trial.last if trial is not None else study.untrained if arm is None else None
    figures = of.figures if of is not None else None
    row = figures.gap(1) if figures is not None else None
    return Standing(figures.curvature, row.rms) if figures is not None and row is not None else None
