"""Couplings: the joint law of noise and the endpoint to which a frozen teacher carries it.

Shapes: B batch, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from chordflow.errors import UserError
from chordflow.flow.solvers import get_solver
from chordflow.policies import Context, FlowPolicy
from chordflow.policies.sampling import Sampler


@dataclass
class CouplingConfig:
    """How the teacher's ODE is solved; never taken from the step count that a policy is saved with.

    Attributes:
        solver: euler (the policy's own), midpoint, or heun.
        num_steps: solver steps from noise to endpoint.
    """

    solver: str = "euler"
    num_steps: int = 10

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UserError(f"coupling.num_steps={self.num_steps}: give at least 1 solver step.")
        get_solver(self.solver)


def endpoints(teacher: FlowPolicy, context: Context, noise: Tensor, config: CouplingConfig) -> Tensor:
    """The endpoints (B, H, D) of `noise` (B, H, D) under the teacher's ODE (Liu et al. 2022, 2209.03003).

    All padded dimensions are carried along: they feed back into the network at every step, and the robot's
    dimensions depend on them. Nothing is cut, and no demonstration's mask is applied, because the robot will
    run the teacher's whole chunk.
    """
    return Sampler(teacher, config.num_steps, config.solver)(context, noise)
