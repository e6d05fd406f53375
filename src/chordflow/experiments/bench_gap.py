"""The one-step gap of a student while it trains, on the same held-out pairs for all.

Shapes: N observations, K noises for each, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chordflow.couplings import Observations
from chordflow.evaluation.gap import Modes, action_gap
from chordflow.evaluation.paired import Way, encode_held_out, solve
from chordflow.experiments.bench_config import BenchMeasureConfig
from chordflow.policies import FlowPolicy
from chordflow.results.bench import BenchGap

ONE = Way("euler", 1)


class HeldOutGap:
    """The teacher's endpoints on held-out observations, and how far another's are from them.

    Args:
        teacher: the frozen teacher.
        observations: held out by episode.
        config: how much is measured.
        teacher_steps: Euler steps of the teacher as deployed.
        on_progress: told the network evaluations done, of how many.
    """

    def __init__(
        self,
        teacher: FlowPolicy,
        observations: Observations,
        config: BenchMeasureConfig,
        teacher_steps: int,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._teacher, self._observations = teacher, observations
        self._config = config.full()
        held_out = encode_held_out({"teacher": teacher}, observations, self._config)
        self._context = held_out.contexts["teacher"]
        fine = Way("euler", self._config.fine_num_steps(teacher_steps))
        deployed = Way("euler", teacher_steps)
        self._noise = held_out.noise[:, : config.converged_noises]
        sizes = [
            max(1, config.batch_size // k) for k in (config.noises_per_observation, config.converged_noises)
        ]
        counts = [-(-held_out.num_observations // size) for size in sizes]
        total, done = counts[0] * (teacher_steps + 1) + counts[1] * (fine.nfe + 1), 0

        def tick(nfe: int) -> None:
            nonlocal done
            done += nfe
            on_progress(min(done, total), total)

        batch_size = config.batch_size
        ends = solve(
            teacher, self._context, held_out.noise, [deployed], batch_size=batch_size, on_batch=tick
        )[deployed]
        self._modes = Modes(ends, teacher.chunk)
        self._deployed = ends[:, : config.converged_noises]
        ways = [fine, ONE]
        solved = solve(teacher, self._context, self._noise, ways, batch_size=batch_size, on_batch=tick)
        self._converged = solved[fine]
        on_progress(total, total)
        self.floor = self._gap(self._deployed)
        self.untrained = self._gap(solved[ONE])

    @property
    def pairs(self) -> int:
        """N * K."""
        return self._noise.shape[0] * self._noise.shape[1]

    def of(self, student: FlowPolicy, *, shares_prefix: bool) -> BenchGap:
        """The gap of a student at one Euler step, with its weights as they are.

        Args:
            student: whose velocity is asked.
            shares_prefix: whether the teacher's encoded observations are the student's.
        """
        context = self._context
        if not shares_prefix:
            held_out = encode_held_out({"student": student}, self._observations, self._config)
            context = held_out.contexts["student"]
        solved = solve(student, context, self._noise, [ONE], batch_size=self._config.batch_size)
        return self._gap(solved[ONE])

    @torch.no_grad()
    def _gap(self, ends: Tensor) -> BenchGap:
        gap = action_gap(ends, self._converged, self._modes, self._teacher)
        deployed = action_gap(ends, self._deployed, self._modes, self._teacher)
        return BenchGap(gap.rms, gap.median, gap.flip_rate, deployed.rms)
