"""How far a flow's own trajectories are from straight lines.

The grid is always an argument, never a policy's saved step count: on a single Euler step every field is
perfectly straight.

Shapes: B batch, H chunk, D padded dimension, A real dimensions (the first A of D), N grid steps.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from chordflow.flow.solvers import Euler, Velocity


@dataclass(frozen=True)
class Curvature:
    """Sums over trajectories, from which S and the curvature follow; add batches with `merge`.

    S is the straightness of Liu et al. 2022 (arXiv 2209.03003),
    `S = integral over t of E || (x_1 - x_0) - v(x_t, t) ||^2`, along the model's own trajectories. Norms
    are means over the chunk's H rows, so that S does not grow with the chunk.

    Attributes:
        deviation: sum over trajectories, mean over H, of `((x_1 - x_0) - v(x_t, t))^2`, by grid time and
            dimension. float64, shape (N, D).
        chord: the same of `(x_1 - x_0)^2`. float64, shape (D,).
        times: grid times, from 1 downwards. float64, shape (N,).
        count: number of trajectories.
        real_dims: a, the number of real dimensions.
        deviation_of_each: for each trajectory the same over the real dimensions, mean over grid times.
            float64, shape (count,).
        chord_of_each: for each trajectory `(x_1 - x_0)^2` over the real dimensions. float64, shape (count,).
    """

    deviation: Tensor
    chord: Tensor
    times: Tensor
    count: int
    real_dims: int
    deviation_of_each: Tensor
    chord_of_each: Tensor

    def merge(self, other: "Curvature") -> "Curvature":
        """Curvature over the trajectories of both, which were measured on one grid."""
        return Curvature(
            self.deviation + other.deviation,
            self.chord + other.chord,
            self.times,
            self.count + other.count,
            self.real_dims,
            torch.cat([self.deviation_of_each, other.deviation_of_each]),
            torch.cat([self.chord_of_each, other.chord_of_each]),
        )

    @property
    def num_steps(self) -> int:
        """Euler steps of the grid."""
        return self.deviation.shape[0]

    @property
    def s_by_time_and_dim(self) -> Tensor:
        """Integrand of S at each grid time, by dimension. Shape (N, D)."""
        return self.deviation / self.count

    @property
    def s_by_dim(self) -> Tensor:
        """S of each dimension alone. Shape (D,)."""
        return self.s_by_time_and_dim.mean(dim=0)

    @property
    def s_by_time(self) -> Tensor:
        """Integrand of S over the real dimensions at each grid time; its mean is `s`. Shape (N,)."""
        return self.s_by_time_and_dim[:, : self.real_dims].sum(dim=1)

    @property
    def s(self) -> float:
        """S over the real dimensions."""
        return float(self.s_by_dim[: self.real_dims].sum())

    @property
    def s_all_dims(self) -> float:
        """S over all padded dimensions."""
        return float(self.s_by_dim.sum())

    @property
    def curvature(self) -> float:
        """`sqrt(S / E ||x_1 - x_0||^2)` over the real dimensions, as a fraction: 0 is straight."""
        return self._relative(slice(self.real_dims))

    @property
    def curvature_all_dims(self) -> float:
        """The same over all padded dimensions."""
        return self._relative(slice(None))

    def _relative(self, dims: slice) -> float:
        chord = float(self.chord[dims].sum()) / self.count
        # A field that moves nothing has no direction to deviate from.
        return math.sqrt(float(self.s_by_dim[dims].sum()) / chord) if chord > 0 else 0.0


@torch.no_grad()
def measure_curvature(
    velocity: Velocity,
    noise: Tensor,
    num_steps: int,
    *,
    real_dims: int,
    real_rows: slice = slice(None),
) -> tuple[Curvature, Tensor]:
    """Follows trajectories from noise on an Euler grid and compares their velocity with their chord.

    Args:
        velocity: the field, `velocity(x_t, t) -> v_t`.
        noise: starting points at t = 1, (B, H, D), B at least 1. The velocities of all N steps are
            held in memory, on the device of the noise.
        num_steps: N, the Euler steps of the grid; at least 2, because one step is always straight.
        real_dims: A: the first A dimensions are the robot's.
        real_rows: which of the H actions are counted, in all dimensions.

    Returns:
        The curvature of these B trajectories, and their endpoints (B, H, D).
    """
    velocities: list[Tensor] = []
    times: list[float] = []

    def record(_step: int, t: float, _x: Tensor, v_t: Tensor) -> None:
        times.append(t)
        velocities.append(v_t)

    endpoint = Euler().integrate(velocity, noise, num_steps, callback=record)
    # Sums in float64, on the CPU: not every device has it.
    chord = (noise.cpu().double() - endpoint.cpu().double())[:, real_rows]
    # (N, B, D): one mean over H per time, so that no more than the velocities is held.
    deviation = torch.stack(
        [(chord - v_t[:, real_rows].cpu().double()).square().mean(dim=1) for v_t in velocities]
    )
    length = chord.square().mean(dim=1)
    sums = Curvature(
        deviation=deviation.sum(dim=1),
        chord=length.sum(dim=0),
        times=torch.tensor(times, dtype=torch.float64),
        count=noise.shape[0],
        real_dims=real_dims,
        deviation_of_each=deviation[..., :real_dims].sum(dim=2).mean(dim=0),
        chord_of_each=length[:, :real_dims].sum(dim=1),
    )
    return sums, endpoint
