"""How couplings are made and how many are kept, as settings of the command line."""

from __future__ import annotations

from dataclasses import dataclass

from chordflow.checks import Checked, number
from chordflow.errors import UserError
from chordflow.flow.solvers import SolverName, get_solver
from chordflow.policies import FlowPolicy
from chordflow.policies.sampling import Sampler

LEAST_STEPS = 10
"""Steps that a policy saved with a single one takes where it teaches, and the fewest of couplings by Euler."""

LEAST_FINE_STEPS = 16
"""The fewest steps of couplings by another solver, unless the user asks for fewer."""


@dataclass
class CouplingConfig(Checked):
    """How the teacher's ODE is solved; never taken from the step count that a policy is saved with.

    Attributes:
        solver: adams_bashforth, which takes one evaluation a step and one more, midpoint, heun, or euler, the policy's
            own: by it and grid_power=1 the student is taught what the teacher does when deployed, errors included.
        num_steps: solver steps from noise to endpoint; by default as many as the teacher takes when deployed, but at
            least 16, and with euler at least ten.
        grid_power: above 1, steps grow smaller towards the action: their times are u ** grid_power for evenly
            spaced u.
    """

    PREFIX = "coupling."

    solver: SolverName = "adams_bashforth"
    num_steps: int | None = number(None, at_least=1)
    grid_power: float = number(1.4, above=0, note=", such as 1 (uniform) or 1.4")

    @property
    def steps(self) -> int:
        """`num_steps`; the least as long as it is not known how the teacher is deployed."""
        return self._least if self.num_steps is None else self.num_steps

    @property
    def _least(self) -> int:
        return LEAST_STEPS if self.solver == "euler" else LEAST_FINE_STEPS

    @property
    def nfe(self) -> int:
        """Network evaluations of a coupling."""
        return get_solver(self.solver).nfe(self.steps)

    def settle(self, deployed: int) -> None:
        """Writes the default out, now that the steps that the teacher takes when deployed are known."""
        if self.num_steps is None:
            self.num_steps = max(self._least, deployed)

    def sampler(self, teacher: FlowPolicy) -> Sampler:
        """The teacher with this solver."""
        return Sampler(teacher, self.steps, self.solver, self.grid_power)

    def kept_steps(self, points: int | None) -> frozenset[int]:
        """The steps before which a trajectory's state is kept: the first and `points` others, spread evenly, or all.

        Raises:
            UserError: where the solver does not pass through so many, or through none.
        """
        between = self.steps - 1
        if between == 0:
            raise UserError(
                "coupling.num_steps=1: the method trains on states between noise and endpoint, and one step has none; "
                "give at least 2."
            )
        if points is not None and points > between:
            raise UserError(
                f"buffer.path_points={points}: coupling.num_steps={self.steps} passes through {between} between "
                "noise and endpoint; give at most that many."
            )
        every = self.steps if points is None else points + 1
        return frozenset(step * self.steps // every for step in range(every))


@dataclass
class BufferConfig(Checked):
    """How many couplings are kept and how long.

    Attributes:
        num_observations: observations in the whole buffer.
        noises_per_observation: noises that share one encoded observation, on average.
        uses_per_coupling: how often a coupling is trained on, on average, before it is replaced; null fills the
            whole buffer before the first step and never replaces any.
        block_size: observations that are encoded together, and replaced together.
        adaptive_share: share of the noises that goes to the observations in proportion to how far their
            endpoints spread, where a policy has to decide; the rest, at least two each, goes to all alike, so that of
            1 or 2 noises_per_observation none is left for it.
        start_observations: observations with which training begins, at least as many as a step draws from; more are
            added as it goes on, until there are num_observations. Not used where uses_per_coupling is null.
        path_points: states between noise and endpoint that are kept of each of the teacher's trajectories, evenly
            spread over its solver's steps, where a method trains on them; by default all.
    """

    PREFIX = "buffer."

    num_observations: int = number(512, at_least=1)
    noises_per_observation: int = number(4, at_least=1)
    uses_per_coupling: int | None = number(
        12, at_least=1, note=", or null for couplings that are never replaced"
    )
    block_size: int = number(64, at_least=1)
    adaptive_share: float = number(0.5, at_least=0, at_most=1)
    start_observations: int = number(64, at_least=1)
    path_points: int | None = number(None, at_least=1, note=", or leave it out for all")

    @property
    def even_noises(self) -> int:
        """Noises that every observation gets."""
        if self.adaptive_share == 0.0:
            return self.noises_per_observation
        even = round(self.noises_per_observation * (1.0 - self.adaptive_share))
        return min(self.noises_per_observation, max(2, even))

    @property
    def sharing(self) -> str:
        """How the noises are shared out among the observations, for the user; empty where all get the same by wish."""
        noises, even = self.noises_per_observation, self.even_noises
        if even < noises:
            return f" ({even} each, and {noises - even} more where endpoints spread)"
        if self.adaptive_share > 0.0:
            return f" (all alike: of {noises}, buffer.adaptive_share={self.adaptive_share:g} has none to share out)"
        return ""
