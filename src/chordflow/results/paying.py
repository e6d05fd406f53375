"""Whether another round of reflow pays: one rule, for `chordflow reflow --rounds=auto` and `chordflow study rounds`.

A round pays where its student's gap to the *first* teacher's converged ODE is no larger than that of the round before,
and curvature or gap is smaller by the least gain or more. The first round is compared with the untrained teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from chordflow.results.wording import percent

LEAST_GAIN = 0.1
"""Relative reduction of curvature or gap that makes a round worth it, unless the user says otherwise."""


@dataclass(frozen=True)
class Standing:
    """The figures of a policy that the rule compares.

    Attributes:
        curvature: a fraction.
        gap: RMS gap at the few steps that the student is for, to the first teacher's converged ODE, a fraction.
    """

    curvature: float
    gap: float


@dataclass(frozen=True)
class Gain:
    """The gain of one round.

    Attributes:
        curvature: its relative reduction; below 0 where it grew.
        gap: likewise.
        least: the reduction of either that makes a round worth it.
    """

    curvature: float
    gap: float
    least: float

    @property
    def drifted(self) -> bool:
        """Whether the student is farther from the first teacher than the one before."""
        return self.gap < 0

    @property
    def pays(self) -> bool:
        """Whether the round was worth it."""
        return not self.drifted and (self.curvature >= self.least or self.gap >= self.least)

    @property
    def reason(self) -> str:
        """Why the round was not worth it, or why it was, in words."""
        gap = f"the gap to the first teacher's converged ODE {_change(self.gap)}"
        if self.drifted:
            return gap
        found = f"curvature {_change(self.curvature)} and {gap}"
        if self.pays:
            return found
        return f"{found}, where {percent(self.least)} of either is needed"


def gain(before: Standing, after: Standing, least: float = LEAST_GAIN) -> Gain:
    """The gain of a round over the one before it, or over the untrained teacher."""
    return Gain(_reduction(before.curvature, after.curvature), _reduction(before.gap, after.gap), least)


def paying_rounds(standings: Sequence[Standing], least: float = LEAST_GAIN) -> int:
    """How many rounds pay, one after the other, until one does not; the untrained teacher stands first."""
    pays = (gain(before, after, least).pays for before, after in pairwise(standings))
    return sum(1 for _ in takewhile(bool, pays))


def _reduction(before: float, after: float) -> float:
    if before == 0:
        # Nothing is left to reduce.
        return 0.0 if after == 0 else -math.inf
    return (before - after) / before


def _change(reduction: float) -> str:
    if math.isinf(reduction):
        return "grew from nothing"
    return f"{'grew' if reduction < 0 else 'fell'} by {percent(abs(reduction))}"
