"""Reflow: flow matching on the deterministic coupling (Liu et al. 2022, arXiv 2209.03003, eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from chordflow.couplings import CouplingBatch
from chordflow.flow.path import interpolate, velocity_target
from chordflow.training.methods.base import Method, MethodConfig, VelocityFunction
from chordflow.training.times import TimesConfig, UniformTimes


@MethodConfig.register_subclass("reflow")
@dataclass
class ReflowMethodConfig(MethodConfig):
    """Learn the straight line between each noise and its endpoint.

    Attributes:
        times: at which times the student is trained.
    """

    times: TimesConfig = field(default_factory=UniformTimes)

    def build(self) -> Method:
        """The method."""
        return ReflowMethod(self)


class ReflowMethod(Method):
    """Mean squared error between the student's velocity and the chord, over all padded dimensions.

    The padded dimensions count because the student feeds on its own when it takes more than one step. No
    mask is applied: the teacher's whole chunk is what the robot runs.
    """

    def __init__(self, config: ReflowMethodConfig) -> None:
        self.times = config.times.build()

    def loss(
        self, velocity: VelocityFunction, couplings: CouplingBatch, generator: torch.Generator
    ) -> Tensor:
        """E || v(x_t, t) - (x_1 - x_0) ||^2 per dimension."""
        noise, endpoint = couplings.noise, couplings.endpoint
        t = self.times.sample(noise.shape[0], generator, device=noise.device)
        x_t = interpolate(noise, endpoint, t)
        v_t = velocity(x_t, t, context=couplings.context, batch=couplings.batch)
        return torch.nn.functional.mse_loss(v_t, velocity_target(noise, endpoint))
