"""Distillation of the endpoint: the chord at t = 1 alone (Liu et al. 2023, InstaFlow, arXiv 2309.06380).

Shapes: B batch, K solver steps, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chordflow.checks import check_range
from chordflow.couplings import CouplingBatch
from chordflow.flow.path import velocity_target
from chordflow.training.methods.base import Method, MethodConfig, VelocityFunction, chosen_rows


@MethodConfig.register_subclass("endpoint")
@dataclass
class EndpointMethodConfig(MethodConfig):
    """Learn where each noise ends, and nothing about the way there.

    Attributes:
        path_share: share of every batch that starts at a state of the teacher's trajectory instead of at the noise
            (endpoint) or a point of the chord (reflow), and ends at the same endpoint; above 0 a student of endpoint
            can take more than one step.
    """

    path_share: float = 0.0

    def __post_init__(self) -> None:
        why = "; a step from the noise has to be learned too"
        check_range("method.path_share", self.path_share, at_least=0, below=1, note=why)

    def build(self) -> Method:
        """The method."""
        return EndpointMethod(self)


class EndpointMethod(Method):
    """v(x_1, 1) against x_1 - x_0, so that one Euler step ends at the teacher's endpoint.

    The optimum is the mean endpoint given the noise; as the teacher's ODE carries a noise to one endpoint only, that
    is the coupling itself. All that the network can do goes into one time, which makes the most exact one-step student
    and ruins every other number of steps. InstaFlow reports that it needs a reflow first where the coupling is hard to
    learn: give that student as `--student.init_path`.

    What one step does in the padded dimensions is cut off before anything sees it, so the loss is over what the
    robot can run. With `path_share`, some samples start at a state x_t of the teacher's trajectory, at any of the
    times after the first, and learn (x_t - x_0) / t; as more steps then are of use and feed on the padded dimensions,
    the loss is over all.
    """

    def __init__(self, config: EndpointMethodConfig) -> None:
        self.distance = config.loss
        self.path_share = config.path_share
        self.needs_paths = config.path_share > 0
        self.step_counts = None if self.needs_paths else (1,)

    def loss(
        self, velocity: VelocityFunction, couplings: CouplingBatch, generator: torch.Generator
    ) -> Tensor:
        """E || v(x_1, 1) - (x_1 - x_0) ||^2 per dimension, or the same from points of the trajectory."""
        noise, endpoint = couplings.noise, couplings.endpoint
        if not self.needs_paths:
            v_t = velocity(
                noise, torch.ones_like(noise[:, 0, 0]), context=couplings.context, batch=couplings.batch
            )
            return self.distance(v_t, velocity_target(noise, endpoint), couplings.real)
        path = couplings.travelled()
        later = couplings.per_row(lambda n: torch.randint(1, len(path.times), (n,), generator=generator))
        later = torch.where(chosen_rows(couplings, self.path_share, generator).cpu(), later, 0)
        x_t = path.states[torch.arange(len(later)), later]
        t = path.times[later].to(noise.device)
        v_t = velocity(x_t, t, context=couplings.context, batch=couplings.batch)
        return self.distance(v_t, (x_t - endpoint) / t[:, None, None])
