"""A teacher solved once on held-out observations, and any number of students compared with it, one at a time.

Every figure is the one that `evaluation.measure` gives for the same settings.

Shapes: N observations, K noises for each, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from chordflow.couplings import Observations
from chordflow.evaluation.gap import Modes, Targets
from chordflow.evaluation.paired import HeldOutSet, MeasureConfig, Way, encode_held_out
from chordflow.evaluation.spread import diversity
from chordflow.evaluation.work import Tick, Work, curvature_row
from chordflow.policies import FlowPolicy
from chordflow.results.actions import REFERENCES, TEACHER, CurvatureRow, GapRow, PolicyName
from chordflow.results.study import Diversity


@dataclass(frozen=True)
class Held:
    """What was found of one policy.

    Attributes:
        curvature: on its own trajectories.
        gaps: a row for each number of Euler steps and reference.
        endpoints: (N, K, H, D) by number of Euler steps, on the CPU.
    """

    curvature: CurvatureRow
    gaps: list[GapRow]
    endpoints: dict[int, Tensor]


class Yardstick:
    """The teacher's endpoints on held-out observations, as deployed and as its ODE converges.

    Args:
        teacher: frozen.
        observations: held out by episode.
        config: how much; of its steps and solvers Euler at `num_steps` is used.
        teacher_steps: Euler steps of the teacher as deployed.
        on_progress: told the network evaluations done, of how many.

    Attributes:
        teacher: its own figures at `config.num_steps` and as deployed; the latter to the converged ODE is the floor.

    Raises:
        UserError: for observations that cannot be read, or actions that are not finite.
    """

    @torch.no_grad()
    def __init__(
        self,
        teacher: FlowPolicy,
        observations: Observations,
        config: MeasureConfig,
        teacher_steps: int,
        on_progress: Tick = lambda done, total: None,
    ) -> None:
        self._config = replace(config, converged_num_steps=config.fine_num_steps(teacher_steps))
        self._policy, self._observations = teacher, observations
        self._held_out = encode_held_out({TEACHER: teacher}, observations, self._config)
        self._prefix = teacher.prefix_hash()
        self._deployed = deployed = Way("euler", teacher_steps)
        ways = list(dict.fromkeys([*self._ways, deployed]))
        work = self._work(self._held_out, ways, self._config.noises_per_observation, on_progress)
        sums, converged = work.converge(TEACHER, teacher)
        solved = work.solve(TEACHER, teacher, ways, self._config.noises_per_observation)
        self._targets = Targets(
            teacher,
            deployed=solved[deployed],
            deployed_steps=teacher_steps,
            converged=converged,
            converged_steps=self._config.converged_num_steps,
            modes=Modes(solved[deployed], teacher.chunk),
            episodes=self._held_out.episodes,
            seed=self._config.seed,
            noises=self._config.gap_noises,
        )
        curvature = curvature_row(TEACHER, sums, self._held_out, self._config.seed)
        self.teacher = Held(curvature, self._gaps(TEACHER, solved), _by_steps(solved))

    @property
    def num_observations(self) -> int:
        """N."""
        return self._held_out.num_observations

    @torch.no_grad()
    def of(self, name: PolicyName, student: FlowPolicy, on_progress: Tick = lambda done, total: None) -> Held:
        """Measures a student, as reloaded from its checkpoint.

        Args:
            name: of the student in its rows.
            student: of the teacher's family and chunk.
            on_progress: told the network evaluations done, of how many.

        Raises:
            UserError: if its actions are not finite.
        """
        held_out = self._held_out
        context = held_out.contexts[TEACHER]
        if student.prefix_hash() != self._prefix:
            context = encode_held_out({name: student}, self._observations, self._config).contexts[name]
        own = replace(held_out, contexts={name: context})
        noises = self._config.gap_noises or self._config.noises_per_observation
        work = self._work(own, self._ways, noises, on_progress)
        sums, _ = work.converge(name, student)
        solved = work.solve(name, student, self._ways, noises)
        curvature = curvature_row(name, sums, own, self._config.seed)
        return Held(curvature, self._gaps(name, solved), _by_steps(solved))

    def diversity(self, held: Held) -> list[Diversity]:
        """How far a policy's endpoints spread over noise beside the teacher's as deployed, at each number of steps."""
        reference = self._targets.deployed
        return [
            diversity(ends, reference[:, : ends.shape[1]], self._targets.modes, num_steps)
            for num_steps, ends in sorted(held.endpoints.items())
        ]

    @property
    def _ways(self) -> list[Way]:
        return [Way("euler", n) for n in sorted(set(self._config.num_steps))]

    def _work(self, held_out: HeldOutSet, ways: Sequence[Way], noises: int, on_progress: Tick) -> Work:
        work = Work(held_out, self._config, on_progress)
        work.total = work.cost(sum(way.nfe for way in ways), noises)
        work.total += work.cost(self._config.converged_num_steps, self._config.converged_noises)
        return work

    def _gaps(self, name: PolicyName, solved: dict[Way, Tensor]) -> list[GapRow]:
        targets, rows = self._targets, []
        for (way, ends), reference in product(solved.items(), REFERENCES):
            itself = (name, way, reference) == (TEACHER, self._deployed, "converged")
            gap = targets.floor if itself else targets.gap(ends, reference)
            rows.append(targets.row(name, way, reference, gap))
        return rows


def _by_steps(solved: dict[Way, Tensor]) -> dict[int, Tensor]:
    return {way.num_steps: ends for way, ends in solved.items()}
