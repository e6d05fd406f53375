"""Self-distillation of a two-step shortcut (SnapFlow, Luan et al. 2026, arXiv 2604.05656), without a new input.

Shapes: B batch, n rows of it, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chordflow.checks import check_range
from chordflow.couplings import CouplingBatch
from chordflow.flow import times
from chordflow.flow.path import interpolate, velocity_target
from chordflow.training.methods.base import Method, MethodConfig, VelocityFunction, chosen_rows, on_rows


@MethodConfig.register_subclass("snapflow")
@dataclass
class SnapFlowMethodConfig(MethodConfig):
    """Learn in one step what the student itself does in two, together with flow matching.

    Attributes:
        shortcut_share: share of every batch that learns the shortcut; the rest is flow matching on demonstrations.
    """

    shortcut_share: float = 0.5

    def __post_init__(self) -> None:
        why = "; the shortcut and the field that it is made of are both learned"
        check_range("method.shortcut_share", self.shortcut_share, above=0, below=1, note=why)

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

    needs_couplings = False
    needs_actions = True

    def __init__(self, config: SnapFlowMethodConfig) -> None:
        self.shortcut_share = config.shortcut_share
        self.distance = config.loss
        self.times = times.Beta()

    def loss(
        self, velocity: VelocityFunction, couplings: CouplingBatch, generator: torch.Generator
    ) -> Tensor:
        """The mean over both kinds of samples, a demonstration's over what counts of it, a shortcut's over all."""
        shown = couplings.demonstrated()
        noise = shown.noise
        t = couplings.per_row(lambda n: self.times.sample(n, generator)).to(noise.device)
        shortcut = chosen_rows(couplings, self.shortcut_share, generator)
        t = torch.where(shortcut, 1.0, t)
        v_t = velocity(
            interpolate(noise, shown.actions, t), t, context=couplings.context, batch=couplings.batch
        )
        target = velocity_target(noise, shown.actions)
        rows = shortcut.nonzero().flatten()
        if len(rows):
            target[rows] = self._shortcut(velocity, noise[rows], v_t.detach()[rows], couplings, rows)
        return self.distance(v_t, target, shown.valid | shortcut[:, None, None])

    @torch.no_grad()
    def _shortcut(
        self, velocity: VelocityFunction, noise: Tensor, v_1: Tensor, couplings: CouplingBatch, rows: Tensor
    ) -> Tensor:
        """Mean velocity (n, H, D) of two Euler steps from `noise` (n, H, D), of which the first goes along `v_1`."""
        half = torch.full_like(noise[:, 0, 0], 0.5)
        v_half = on_rows(velocity, noise - 0.5 * v_1, half, couplings, rows)
        return 0.5 * (v_1 + v_half)
