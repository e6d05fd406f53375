"""Explicit solvers that carry noise at t = 1 to an action at t = 0 along a velocity field.

A solver never asks a policy how many steps to take: the number is an argument.

Shapes: B batch, H chunk, D padded dimension.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from chordflow.errors import UserError
from chordflow.flow.grids import require_num_steps as require_num_steps
from chordflow.flow.grids import time_grid

Velocity = Callable[[Tensor, Tensor], Tensor]
"""`velocity(x_t, t) -> v_t` with `x_t` and `v_t` of shape (B, H, D) and `t` float32 of shape (B,)."""

Slope = tuple[float, Tensor]
"""The length `dt` of the step before this one, and the velocity (B, H, D) at its start."""

OnStep = Callable[[int, float, Tensor, Tensor], None]
"""`callback(step, t, x_t, v_t)` with the state before the step and the velocity there."""


class Solver(ABC):
    """One rule for a step of the ODE `d x / d t = v(x, t)`.

    Attributes:
        name: the name on the command line.
        order: the global error falls as `num_steps ** -order` on a smooth field; a test measures it.
        nfe_per_step: network evaluations per step.
        nfe_to_start: evaluations that the first step takes in addition.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    nfe_per_step: ClassVar[int]
    nfe_to_start: ClassVar[int] = 0

    @abstractmethod
    def increment(
        self, velocity: Velocity, x: Tensor, t: float, dt: float, v_t: Tensor, before: Slope | None = None
    ) -> Tensor:
        """Change of x over one step, given the velocity `v_t` at its start.

        Args:
            velocity: the field.
            x: state at t, shape (B, H, D).
            t: time at the start of the step.
            dt: signed length of the step; negative, because time runs from 1 to 0.
            v_t: `velocity(x, t)`, shape (B, H, D).
            before: of the step before, for a solver that looks back; None on the first step.

        Returns:
            The change of x, shape (B, H, D).
        """

    def step(self, velocity: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
        """State at `t_next` from the state at `t`, with no step before it.

        Args:
            velocity: the field.
            x: state at t, shape (B, H, D).
            t: time at the start of the step, in [0, 1].
            t_next: time at its end; smaller than t on the way to the action.

        Returns:
            State at t_next, shape (B, H, D).
        """
        return x + self.increment(velocity, x, t, t_next - t, velocity(x, time_tensor(t, x)))

    def integrate(
        self,
        velocity: Velocity,
        noise: Tensor,
        num_steps: int,
        *,
        grid_power: float = 1.0,
        callback: OnStep | None = None,
    ) -> Tensor:
        """Carry noise from t = 1 to the endpoint at t = 0.

        On the uniform grid, Euler's arithmetic is that of LeRobot's `euler_integrate`, operation by operation.

        Args:
            velocity: the field.
            noise: state at t = 1, shape (B, H, D).
            num_steps: number of steps, at least 1.
            grid_power: how the steps are graded, see `grids.time_grid`.
            callback: called as each step starts; it costs no evaluation.

        Returns:
            The endpoint, shape (B, H, D).

        Raises:
            UserError: if num_steps is not a whole number above 0, or grid_power not a number above 0.
        """
        x = noise
        before: Slope | None = None
        for step, (t, dt) in enumerate(time_grid(num_steps, grid_power)):
            v_t = velocity(x, time_tensor(t, x))
            if callback is not None:
                callback(step, t, x, v_t)
            x = x + self.increment(velocity, x, t, dt, v_t, before)
            before = (dt, v_t)
        return x

    def path(self, velocity: Velocity, noise: Tensor, num_steps: int, *, grid_power: float = 1.0) -> Tensor:
        """All states on the way, from the noise to the endpoint.

        Args:
            velocity: the field.
            noise: state at t = 1, shape (B, H, D).
            num_steps: number of steps, at least 1.
            grid_power: how the steps are graded, see `grids.time_grid`.

        Returns:
            Shape (num_steps + 1, B, H, D): the noise first, the endpoint last.

        Raises:
            UserError: if num_steps is not a whole number above 0, or grid_power not a number above 0.
        """
        states: list[Tensor] = []
        endpoint = self.integrate(
            velocity,
            noise,
            num_steps,
            grid_power=grid_power,
            callback=lambda _s, _t, x, _v: states.append(x),
        )
        return torch.stack([*states, endpoint])

    def nfe(self, num_steps: int) -> int:
        """Network evaluations that `integrate` makes with this number of steps."""
        return self.nfe_to_start + self.nfe_per_step * num_steps

    def num_steps_for(self, nfe: int) -> int | None:
        """The number of steps that takes this many evaluations, or None where none takes exactly so many."""
        num_steps, rest = divmod(nfe - self.nfe_to_start, self.nfe_per_step)
        return num_steps if num_steps >= 1 and rest == 0 else None


class Euler(Solver):
    """Forward Euler: the velocity at the start of the step. What LeRobot's policies run."""

    name = "euler"
    order = 1
    nfe_per_step = 1

    def increment(
        self, velocity: Velocity, x: Tensor, t: float, dt: float, v_t: Tensor, before: Slope | None = None
    ) -> Tensor:
        """See the base class."""
        return dt * v_t


class Midpoint(Solver):
    """Explicit midpoint rule: the velocity half a step ahead. Never evaluates the field at t = 0."""

    name = "midpoint"
    order = 2
    nfe_per_step = 2

    def increment(
        self, velocity: Velocity, x: Tensor, t: float, dt: float, v_t: Tensor, before: Slope | None = None
    ) -> Tensor:
        """See the base class."""
        middle = x + (0.5 * dt) * v_t
        return dt * velocity(middle, time_tensor(t + 0.5 * dt, x))


class Heun(Solver):
    """Heun's rule (explicit trapezoid): mean of the velocities at both ends of an Euler step.

    Its last step evaluates the field at t = 0, which flow-matching training hardly visits, so on learned
    fields it can be far worse than its order says.
    """

    name = "heun"
    order = 2
    nfe_per_step = 2

    def increment(
        self, velocity: Velocity, x: Tensor, t: float, dt: float, v_t: Tensor, before: Slope | None = None
    ) -> Tensor:
        """See the base class."""
        v_next = velocity(x + dt * v_t, time_tensor(t + dt, x))
        return (0.5 * dt) * (v_t + v_next)


class AdamsBashforth(Solver):
    """Two-step Adams-Bashforth rule: the velocity here and at the step before, carried on in a straight line.

    One evaluation a step, as Euler's, and order 2. The first step has none before it and is a midpoint step, which
    keeps the order at one evaluation more. Never evaluates the field at t = 0.

    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I (1993), III.1 and, for steps of
    unequal length, III.5.
    """

    name = "adams_bashforth"
    order = 2
    nfe_per_step = 1
    nfe_to_start = 1

    def increment(
        self, velocity: Velocity, x: Tensor, t: float, dt: float, v_t: Tensor, before: Slope | None = None
    ) -> Tensor:
        """See the base class."""
        if before is None:
            return Midpoint().increment(velocity, x, t, dt, v_t)
        dt_before, v_before = before
        half_ratio = 0.5 * dt / dt_before
        return dt * ((1.0 + half_ratio) * v_t - half_ratio * v_before)


SOLVERS: dict[str, type[Solver]] = {solver.name: solver for solver in (Euler, Midpoint, Heun, AdamsBashforth)}
"""Every solver by its name."""


def get_solver(name: str) -> Solver:
    """The solver of this name.

    Args:
        name: a key of `SOLVERS`.

    Returns:
        An instance; solvers have no state.

    Raises:
        UserError: if no solver has this name.
    """
    if name not in SOLVERS:
        raise UserError(f"solver is {name!r}; choose one of {', '.join(SOLVERS)}.")
    return SOLVERS[name]()


def time_tensor(t: float, x: Tensor) -> Tensor:
    """The time t once per sample of x, as LeRobot's networks expect it.

    Args:
        t: a time; values below 0, which rounding can leave at the end of a grid, become 0.
        x: shape (B, ...).

    Returns:
        float32, shape (B,), on the device of x.
    """
    return torch.tensor(max(t, 0.0), dtype=torch.float32, device=x.device).expand(x.shape[0])
