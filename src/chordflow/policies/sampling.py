"""From noise to endpoint with one policy, for callers that hold no flow mathematics of their own.

Shapes: B batch, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chordflow.flow.grids import require_grid_power, require_num_steps
from chordflow.flow.seeds import generator
from chordflow.flow.solvers import OnStep, get_solver
from chordflow.policies.base import FlowPolicy
from chordflow.policies.context import Context


@dataclass(frozen=True)
class Sampler:
    """A policy with an explicit solver and number of steps; never the step count that it is saved with.

    Attributes:
        policy: whose velocity is followed.
        num_steps: solver steps from noise to endpoint.
        solver: euler (LeRobot's own), midpoint, heun, or adams_bashforth.
        grid_power: times are `u ** grid_power` for evenly spaced u; 1 is LeRobot's uniform grid.

    Raises:
        UserError: if there is no such solver, num_steps is not a whole number above 0, or grid_power no number
            above 0.
    """

    policy: FlowPolicy
    num_steps: int
    solver: str = "euler"
    grid_power: float = 1.0

    def __post_init__(self) -> None:
        get_solver(self.solver)
        require_num_steps(self.num_steps)
        require_grid_power(self.grid_power)

    @torch.no_grad()
    def __call__(self, context: Context, noise: Tensor, *, on_step: OnStep | None = None) -> Tensor:
        """The endpoints (B, H, D) of `noise` (B, H, D), all padded dimensions carried along.

        `on_step` receives the state before every step, at no cost.
        """
        solver = get_solver(self.solver)
        return solver.integrate(
            lambda x, t: self.policy.velocity(x, t, context),
            noise,
            self.num_steps,
            grid_power=self.grid_power,
            callback=on_step,
        )


def seeded_noise(policy: FlowPolicy, *parts: int | str) -> Tensor:
    """Noise (H, D) on the CPU by the family's own law, a pure function of `parts` (see `flow.seeds`)."""
    return policy.sample_noise(1, generator(*parts))[0]
