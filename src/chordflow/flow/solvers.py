"""Explicit solvers that carry noise at t = 1 to an action at t = 0 along a velocity field.

The number of steps is an argument, never a policy's own.

Shapes: B batch, H chunk, D padded dimension.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from chordflow.errors import UserError

Velocity = Callable[[Tensor, Tensor], Tensor]
"""`velocity(x_t, t) -> v_t` with `x_t` and `v_t` of shape (B, H, D) and `t` float32 of shape (B,)."""

Slope = tuple[float, Tensor]
"""The length `dt` of the step before this one, and the velocity (B, H, D) at its start."""

OnStep = Callable[[int, float, Tensor, Tensor], None]
"""`callback(step, t, x_t, v_t)` with the state before the step and the velocity there."""


def time_grid(num_steps: int, power: float = 1.0) -> list[tuple[float, float]]:
    """The time at the start of each step from t = 1 to t = 0, and the step's signed length.

    The times are `u ** power` for evenly spaced u. A power above 1 makes steps smaller towards t = 0, where a
    learned field bends most because data are sharper than noise (compare Karras et al. 2022, arXiv 2206.00364,
    eq. 5); 1 is the uniform grid, whose steps are of equal length to the last bit.

    Returns:
        `num_steps` pairs; the lengths are negative and add up to -1.

    Raises:
        UserError: if num_steps is not a whole number above 0, or power not a finite number above 0.
    """
    num_steps, power = require_num_steps(num_steps), require_grid_power(power)
    dt = -1.0 / num_steps
    even = [1.0 + step * dt for step in range(num_steps)]
    if power == 1.0:
        return [(t, dt) for t in even]
    times = [*(u**power for u in even), 0.0]
    return [(t, t_next - t) for t, t_next in pairwise(times)]


def require_num_steps(num_steps: int) -> int:
    """The same number, or a UserError if it is not a whole number above 0."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise UserError(f"num_steps is {num_steps!r}; choose a whole number of at least 1.")
    return num_steps


def require_grid_power(power: float) -> float:
    """The same number, or a UserError if it is not a finite number above 0."""
    if not (power > 0 and math.isfinite(power)):
        raise UserError(f"grid_power is {power!r}; choose a number above 0, such as 1 (uniform) or 1.4.")
    return power


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
        """Change of x (B, H, D) over one step from t of the signed length `dt`.

        `v_t` is `velocity(x, t)`; `before` is of the step before, None on the first one.
        """

    def integrate(
        self,
        velocity: Velocity,
        noise: Tensor,
        num_steps: int,
        *,
        grid_power: float = 1.0,
        callback: OnStep | None = None,
    ) -> Tensor:
        """Carries noise (B, H, D) from t = 1 to the endpoint (B, H, D) at t = 0.

        On the uniform grid, Euler's arithmetic is that of LeRobot's `euler_integrate`, operation by operation.

        Args:
            velocity: the field.
            noise: state at t = 1.
            num_steps: number of steps.
            grid_power: how the steps are graded, see `time_grid`, which raises for either number.
            callback: called as each step starts; it costs no evaluation.
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
        """All states on the way of `integrate`, (num_steps + 1, B, H, D): the noise first, the endpoint last."""
        states: list[Tensor] = []

        def keep(_step: int, _t: float, x: Tensor, _v: Tensor) -> None:
            states.append(x)

        end = self.integrate(velocity, noise, num_steps, grid_power=grid_power, callback=keep)
        return torch.stack([*states, end])

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


SolverName = Literal["euler", "midpoint", "heun", "adams_bashforth"]

SOLVERS: dict[str, type[Solver]] = {solver.name: solver for solver in (Euler, Midpoint, Heun, AdamsBashforth)}
"""Every solver by its name."""


def get_solver(name: str) -> Solver:
    """The solver of this name; solvers have no state. Raises UserError if there is none."""
    if name not in SOLVERS:
        raise UserError(f"solver is {name!r}; choose one of {', '.join(SOLVERS)}.")
    return SOLVERS[name]()


def time_tensor(t: float, x: Tensor) -> Tensor:
    """The time t once per sample of x (B, ...), float32, on its device, as LeRobot's networks expect it.

    Values below 0, which rounding can leave at the end of a grid, become 0.
    """
    return torch.tensor(max(t, 0.0), dtype=torch.float32, device=x.device).expand(x.shape[0])
