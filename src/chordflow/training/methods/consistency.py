"""Consistency distillation along the teacher's trajectories (Song et al. 2023, arXiv 2303.01469, algorithm 2).

Shapes: B batch, K solver steps, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chordflow.couplings import CouplingBatch
from chordflow.training.methods.base import Method, MethodConfig, VelocityFunction


@MethodConfig.register_subclass("consistency")
@dataclass
class ConsistencyMethodConfig(MethodConfig):
    """Learn to end at one place from neighbouring points of a trajectory."""

    def build(self) -> Method:
        """The method."""
        return ConsistencyMethod(self)


class ConsistencyMethod(Method):
    """f(x_t, t) = x_t - t v(x_t, t) is made equal at neighbouring points of each of the teacher's trajectories.

    At t = 0 f is the identity by its form, the boundary condition of the paper (its eq. 5), so nothing is added to
    the network. The fixed point is the teacher's own map from each state to the endpoint of its solver's trajectory:
    the paper's theorem 1 with the solver's endpoint instead of the exact one.

    What differs from the paper: both points are taken from the trajectory on which the coupling was solved, rather
    than from a demonstration with noise and one step of the teacher. So no demonstration is needed, and the padded
    dimensions are those that inference visits. The target's network is the student itself without gradients, not a
    moving average of it, as Song and Dhariwal (2310.14189) recommend. The error is measured on the velocity, that is
    on f with the weight 1 / t^2, on which the network's output has one scale at all times.

    The endpoint is known here, and `endpoint` with `path_share` learns it from the same points without the detour;
    this is for comparison with what consistency models do where trajectories are too dear.
    """

    needs_paths = True

    def __init__(self, config: ConsistencyMethodConfig) -> None:
        self.distance = config.loss

    def loss(
        self, velocity: VelocityFunction, couplings: CouplingBatch, generator: torch.Generator
    ) -> Tensor:
        """E || v(x_t, t) - (x_t - f(x_s, s)) / t ||^2 per dimension, s the next time on the solver's grid."""
        path, endpoint = couplings.travelled(), couplings.endpoint
        steps = len(path.times)
        now = couplings.per_row(lambda n: torch.randint(steps, (n,), generator=generator))
        rows = torch.arange(len(now))
        x_t, t = path.states[rows, now], path.times[now].to(endpoint.device)
        with torch.no_grad():
            last = (now == steps - 1).to(endpoint.device)[:, None, None]
            after = (now + 1).clamp_max(steps - 1)
            x_s, s = path.states[rows, after], path.times[after].to(endpoint.device)
            there = x_s - s[:, None, None] * velocity(
                x_s, s, context=couplings.context, batch=couplings.batch
            )
            # f(x_0, 0) = x_0, whatever the network.
            there = torch.where(last, endpoint, there)
        v_t = velocity(x_t, t, context=couplings.context, batch=couplings.batch)
        return self.distance(v_t, (x_t - there) / t[:, None, None])
