"""Flow matching on demonstrations at times near noise: no teacher (Chen et al. 2026, arXiv 2606.05737).

Shapes: B batch, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from chordflow.couplings import CouplingBatch
from chordflow.flow.path import interpolate, velocity_target
from chordflow.training.methods.base import Method, MethodConfig, VelocityFunction
from chordflow.training.times import BetaTimes, TimesConfig


@MethodConfig.register_subclass("noise_biased")
@dataclass
class NoiseBiasedMethodConfig(MethodConfig):
    """Train on as LeRobot does, but mostly near noise: what a few-step student costs without any distillation.

    Attributes:
        times: at which times; by default half of the samples exactly at noise, half by LeRobot's own law.
    """

    times: TimesConfig = field(default_factory=BetaTimes)

    def build(self) -> Method:
        """The method."""
        return NoiseBiasedMethod(self)


class NoiseBiasedMethod(Method):
    """LeRobot's own loss, a demonstration and noise drawn apart from it, with the times biased to noise.

    "Let It Be Simple" (arXiv 2606.05737, read in part) keeps flow matching as it is and biases its times to high
    noise; which law it draws them from was not among what was read. Here it is 0.5 delta(t = 1) + 0.5 (0.001 +
    0.999 Beta(1.5, 1)), the latter being LeRobot's own law; `times` sets another.

    Times do not change the optimum, E[x_1 - x_0 | x_t], which is the teacher's own field where the teacher was
    trained on the same demonstrations; they change where the network is exact. At t = 1 the noise says nothing about
    the action, so that the optimum's one step is the mean action: good where an observation decides the action, wrong
    where there are two ways to act. Any distillation has to beat this.
    """

    needs_couplings = False
    needs_actions = True

    def __init__(self, config: NoiseBiasedMethodConfig) -> None:
        self.times = config.times.build()
        self.distance = config.loss
        if config.times.at_noise == 1.0:
            self.step_counts = (1,)

    def loss(
        self, velocity: VelocityFunction, couplings: CouplingBatch, generator: torch.Generator
    ) -> Tensor:
        """E || v(x_t, t) - (x_1 - action) ||^2 per real dimension inside the episode."""
        shown = couplings.demonstrated()
        t = couplings.per_row(lambda n: self.times.sample(n, generator)).to(shown.noise.device)
        x_t = interpolate(shown.noise, shown.actions, t)
        v_t = velocity(x_t, t, context=couplings.context, batch=couplings.batch)
        return self.distance(v_t, velocity_target(shown.noise, shown.actions), shown.valid)
