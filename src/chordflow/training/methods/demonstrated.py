"""Methods that learn from demonstrations, without a teacher: biased to noise, and SnapFlow.

Shapes: B batch, n rows of it, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from chordflow.checks import number
from chordflow.couplings import CouplingBatch, Needs
from chordflow.flow import times
from chordflow.flow.path import interpolate, velocity_target
from chordflow.training.methods.base import Method, MethodConfig, VelocityFunction, chosen_rows, on_rows
from chordflow.training.objective import BetaTimes, TimesConfig


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

    needs = Needs(couplings=False, actions=True)

    def __init__(self, config: NoiseBiasedMethodConfig) -> None:
        self.config, self.times = config, config.times.build()
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
        return self.config.loss(v_t, velocity_target(shown.noise, shown.actions), shown.valid)


@MethodConfig.register_subclass("snapflow")
@dataclass
class SnapFlowMethodConfig(MethodConfig):
    """Learn in one step what the student itself does in two, together with flow matching.

    Attributes:
        shortcut_share: share of every batch that learns the shortcut; the rest is flow matching on demonstrations.
    """

    shortcut_share: float = number(
        0.5, above=0, below=1, note="; the shortcut and the field that it is made of are both learned"
    )

    def build(self) -> Method:
        """The method."""
        return SnapFlowMethod(self)


class SnapFlowMethod(Method):
    """Flow matching on demonstrations, mixed with a two-step Euler shortcut of the student itself at t = 1.

    The shortcut's target is the mean velocity of two Euler steps, (v(x_1, 1) + v(x_1/2, 1/2)) / 2 with
    x_1/2 = x_1 - v(x_1, 1) / 2, by the student as it is, without gradients. No teacher is used.

    What differs from the paper, which was read in part: it gives the network the time that a step goes to as a second
    input (an MLP that begins at zero), so that the field at t = 1 and the shortcut from t = 1 are two outputs. That
    input is no part of LeRobot's classes, so here they are one: the student stays a stock checkpoint, and

    - at t = 1 the shortcut replaces the field. Then v(x_1, 1) stands in its own target, which rests where
      v(x_1, 1) = v(x_1 - v(x_1, 1) / 2, 1/2): one Euler step is then one step of the implicit midpoint rule through
      the field at t = 1/2, of second order, and not the end of the teacher's ODE;
    - flow matching, by LeRobot's own law of times, keeps the field at t < 1. At times next to 1 it asks for the mean
      action; a network that is smooth in time cannot follow both, and gives up part of the shortcut.

    So it is a cheap baseline, for which no couplings are made: at best its one step is as good as one of second order.
    """

    needs = Needs(couplings=False, actions=True)

    def __init__(self, config: SnapFlowMethodConfig) -> None:
        self.config, self.times = config, times.Beta()

    def loss(
        self, velocity: VelocityFunction, couplings: CouplingBatch, generator: torch.Generator
    ) -> Tensor:
        """The mean over both kinds of samples, a demonstration's over what counts of it, a shortcut's over all."""
        shown = couplings.demonstrated()
        noise = shown.noise
        t = couplings.per_row(lambda n: self.times.sample(n, generator)).to(noise.device)
        shortcut = chosen_rows(couplings, self.config.shortcut_share, generator)
        t = torch.where(shortcut, 1.0, t)
        x_t = interpolate(noise, shown.actions, t)
        v_t = velocity(x_t, t, context=couplings.context, batch=couplings.batch)
        target = velocity_target(noise, shown.actions)
        rows = shortcut.nonzero().flatten()
        if len(rows):
            target[rows] = self._shortcut(velocity, noise[rows], v_t.detach()[rows], couplings, rows)
        return self.config.loss(v_t, target, shown.valid | shortcut[:, None, None])

    @torch.no_grad()
    def _shortcut(
        self, velocity: VelocityFunction, noise: Tensor, v_1: Tensor, couplings: CouplingBatch, rows: Tensor
    ) -> Tensor:
        """Mean velocity (n, H, D) of two Euler steps from `noise` (n, H, D), of which the first goes along `v_1`."""
        half = torch.full_like(noise[:, 0, 0], 0.5)
        v_half = on_rows(velocity, noise - 0.5 * v_1, half, couplings, rows)
        return 0.5 * (v_1 + v_half)
