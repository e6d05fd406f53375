"""What can be had without training: the best way to spend a number of network evaluations.

Stock LeRobot takes even Euler steps. Another solver or grid costs nothing but a sampler of one's own, so it is what a
student has to beat. The way is chosen on some of the held-out episodes and measured on the others: of a dozen ways one
always looks good on the observations that it was chosen on.

Shapes: N observations, K noises for each, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from chordflow.evaluation.gap import Targets, flatten
from chordflow.evaluation.paired import Way, Work
from chordflow.flow.seeds import generator
from chordflow.flow.solvers import SOLVERS, AdamsBashforth, get_solver
from chordflow.policies import FlowPolicy
from chordflow.results.actions import REFERENCES, TEACHER, FreeWays, PolicyName

GRID_POWERS = (1.0, 1.4, 2.0)
"""Even steps, and two grids whose steps grow smaller towards the action (see `flow.solvers`)."""

CHOICE_NOISES = 2
"""Noises of each observation that ways are chosen on; fewer than are measured on, for a dozen ways are solved."""


def candidates(nfe: int) -> list[Way]:
    """Every way that takes exactly so many evaluations, LeRobot's even Euler steps first.

    A single step has no grid, and a single one of Adams-Bashforth's is midpoint's: neither is listed twice.
    """
    found = []
    for name in SOLVERS:
        num_steps = get_solver(name).num_steps_for(nfe)
        if num_steps is None or (num_steps == 1 and name == AdamsBashforth.name):
            continue
        found += [Way(name, num_steps, power) for power in (GRID_POWERS if num_steps > 1 else (1.0,))]
    return found


def halves(episodes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The rows of `episodes` (N,) to choose on and those to measure on: an episode is in one of the two.

    Where there is one episode alone, both are all rows.
    """
    known = episodes.unique()
    if len(known) == 1:
        rows = torch.arange(len(episodes))
        return rows, rows
    order = known[torch.randperm(len(known), generator=generator(seed, "free ways"))]
    first = torch.isin(episodes, order[: len(known) // 2])
    return first.nonzero().flatten(), (~first).nonzero().flatten()


class Search:
    """Finds the best ways of a teacher, and compares other policies with them on the same pairs.

    Args:
        work: solves, and counts what is done.
        teacher: frozen.
        counts: numbers of evaluations; a single one leaves no choice.
        known: ways whose endpoints `run` will be given.

    Attributes:
        cost: network evaluations that `run` counts.
        found: None before `run`, where no number leaves a choice, and where the endpoints to measure on are all equal.
    """

    def __init__(self, work: Work, teacher: FlowPolicy, counts: Iterable[int], known: Iterable[Way]) -> None:
        self._work, self._teacher, self._known = work, teacher, set(known)
        self._candidates = {nfe: candidates(nfe) for nfe in sorted(counts) if nfe > 1}
        self._chosen_on, self._measured_on = halves(work.held_out.episodes, work.config.seed)
        self._noises = min(work.config.compared_noises, work.config.converged_noises)
        self._choice = min(self._noises, CHOICE_NOISES)
        self._unknown = [w for ways in self._candidates.values() for w in ways if w not in self._known]
        self.cost = work.cost(sum(way.nfe for way in self._unknown), self._choice, self._chosen_on)
        self.cost += work.cost(sum(self._candidates), self._noises, self._measured_on)
        self.found: FreeWays | None = None

    def run(self, solved: Mapping[Way, Tensor], targets: Targets) -> None:
        """Chooses and measures on the teacher's endpoints (N, K, H, D) by the known ways.

        These are at least the even Euler steps of every number of evaluations and those as deployed.
        """
        rows, noises, work = self._measured_on, self._noises, self._work
        self._targets = here = targets.at(rows, noises)
        if not self._candidates or not (_differ(here.deployed) and _differ(here.converged)):
            work.tick(self.cost)
            return
        best = self._choose(solved, targets.converged)
        new = [way for way in best if way not in self._known]
        ends = {way: solved[way][rows, :noises] for way in best if way in self._known}
        ends |= self._solve(new, rows, noises)
        # What is fine on one half may leave the numbers on the other; even Euler steps never did.
        best = [way if ends[way].isfinite().all() else Way("euler", way.nfe) for way in best]
        ends |= {way: solved[way][rows, :noises] for way in best if way in self._known}
        # What was known already counts as done.
        work.tick(work.cost(sum(self._candidates) - sum(way.nfe for way in new), noises, rows))
        self.found = FreeWays(
            chosen_on=work.held_out.episodes[self._chosen_on].unique().tolist(),
            measured_on=here.episodes.unique().tolist(),
            ways=[],
            others=[here.row(TEACHER, here.way, "converged", here.floor)],
        )
        self._best = {}
        for way, reference in product(best, REFERENCES):
            gap = here.gap(ends[way], reference)
            even = here.gap(solved[Way("euler", way.nfe)][rows, :noises], reference)
            row = here.row(TEACHER, way, reference, gap)
            self.found.ways.append(replace(row, ratio_to_untrained=here.ratio(gap, even)))
            if reference == "converged":
                self._best[way.nfe] = gap

    def add_policy(self, name: PolicyName, solved: Mapping[Way, Tensor]) -> None:
        """Adds another policy on the same pairs, by its endpoints (N, K, H, D) of even Euler steps."""
        if self.found is None:
            return
        for way, ends in solved.items():
            gap = self._targets.gap(ends[self._measured_on, : self._noises], "converged")
            row = self._targets.row(name, way, "converged", gap)
            free = self._targets.ratio(gap, self._best.get(way.nfe))
            self.found.others.append(replace(row, ratio_to_free=free))

    def _choose(self, solved: Mapping[Way, Tensor], converged: Tensor) -> list[Way]:
        """The way of each number of evaluations that ends nearest to the converged ODE."""
        rows, noises, chunk = self._chosen_on, self._choice, self._teacher.chunk
        ends = self._solve(self._unknown, rows, noises)
        target = flatten(converged[rows, :noises], chunk)

        def squared(way: Way) -> float:
            found = ends[way] if way in ends else solved[way][rows, :noises]
            # A way that leaves the numbers is as far as can be; even Euler steps never did, or nothing was measured.
            return float(np.nan_to_num(np.mean((flatten(found, chunk) - target) ** 2), nan=np.inf))

        return [min(ways, key=squared) for ways in self._candidates.values()]

    def _solve(self, ways: list[Way], rows: Tensor, noises: int) -> dict[Way, Tensor]:
        return self._work.solve(TEACHER, self._teacher, ways, noises, rows) if ways else {}


def _differ(endpoints: Tensor) -> bool:
    return bool((endpoints != endpoints[:1, :1]).any())
