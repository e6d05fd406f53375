"""Couplings: the joint law of noise and the endpoint to which a frozen teacher carries it.

Shapes: B batch, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chordflow.checks import check_choice, check_range
from chordflow.errors import UserError
from chordflow.flow.solvers import SOLVERS, get_solver
from chordflow.policies import Context, FlowPolicy
from chordflow.policies.sampling import Sampler

LEAST_STEPS = 10
"""Steps that a policy saved with a single one takes where it teaches, and the fewest of couplings by Euler."""

LEAST_FINE_STEPS = 16
"""The fewest steps of couplings by another solver, unless the user asks for fewer."""


@dataclass
class CouplingConfig:
    """How the teacher's ODE is solved; never taken from the step count that a policy is saved with.

    Attributes:
        solver: adams_bashforth, which takes one evaluation a step and one more, midpoint, heun, or euler, the policy's
            own: by it and grid_power=1 the student is taught what the teacher does when deployed, errors included.
        num_steps: solver steps from noise to endpoint; by default as many as the teacher takes when deployed, but at
            least 16, and with euler at least ten.
        grid_power: above 1, steps grow smaller towards the action: their times are u ** grid_power for evenly
            spaced u.
    """

    solver: str = "adams_bashforth"
    num_steps: int | None = None
    grid_power: float = 1.4

    def __post_init__(self) -> None:
        check_range("coupling.num_steps", self.num_steps, at_least=1)
        check_range("coupling.grid_power", self.grid_power, above=0, note=", such as 1 (uniform) or 1.4")
        check_choice("coupling.solver", self.solver, SOLVERS)

    @property
    def steps(self) -> int:
        """`num_steps`; the least as long as it is not known how the teacher is deployed."""
        return self._least if self.num_steps is None else self.num_steps

    @property
    def _least(self) -> int:
        return LEAST_STEPS if self.solver == "euler" else LEAST_FINE_STEPS

    def settle(self, deployed: int) -> None:
        """Writes the default out, now that the teacher is known.

        Args:
            deployed: steps that it takes when deployed; one where it is itself a student of one step, whose
                couplings take the least.
        """
        if self.num_steps is None:
            self.num_steps = max(self._least, deployed)

    def sampler(self, teacher: FlowPolicy) -> Sampler:
        """The teacher with this solver."""
        return Sampler(teacher, self.steps, self.solver, self.grid_power)

    def check_points(self, points: int | None) -> None:
        """Makes sure that there are as many states between noise and endpoint as are to be kept; None is all.

        Raises:
            UserError: where there are not, or none at all.
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

    @property
    def nfe(self) -> int:
        """Network evaluations of a coupling."""
        return get_solver(self.solver).nfe(self.steps)


@dataclass(frozen=True)
class Path:
    """The states that a solver goes through on its way from noise to endpoint.

    Attributes:
        states: before K of the steps, the noise first; (B, K, H, D). The endpoint is not among them.
        times: of those states, falling from 1; float32 (K,) on the CPU.
    """

    states: Tensor
    times: Tensor


def endpoints(teacher: FlowPolicy, context: Context, noise: Tensor, config: CouplingConfig) -> Tensor:
    """The endpoints (B, H, D) of `noise` (B, H, D) under the teacher's ODE (Liu et al. 2022, 2209.03003).

    All padded dimensions are carried along: they feed back into the network at every step, and the robot's
    dimensions depend on them. Nothing is cut, and no demonstration's mask is applied, because the robot will
    run the teacher's whole chunk.
    """
    return config.sampler(teacher)(context, noise)


def endpoints_and_path(
    teacher: FlowPolicy, context: Context, noise: Tensor, config: CouplingConfig, points: int | None = None
) -> tuple[Tensor, Path]:
    """`endpoints`, and the way there: the same numbers at the same cost, but K times the memory.

    Args:
        teacher: whose ODE is solved.
        context: of B observations.
        noise: (B, H, D).
        config: how it is solved.
        points: how many states are kept beside the noise, evenly spread over the steps; by default all.

    Raises:
        UserError: if the solver does not pass through so many.
    """
    config.check_points(points)
    every = config.steps if points is None else points + 1
    kept = {step * config.steps // every for step in range(every)}
    states: list[Tensor] = []
    times: list[float] = []

    def keep(step: int, t: float, x_t: Tensor, _v_t: Tensor) -> None:
        if step in kept:
            states.append(x_t)
            times.append(t)

    endpoint = config.sampler(teacher)(context, noise, on_step=keep)
    return endpoint, Path(torch.stack(states, dim=1), torch.tensor(times))
