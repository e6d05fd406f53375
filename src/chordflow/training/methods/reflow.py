"""Reflow: flow matching on the deterministic coupling (Liu et al. 2022, arXiv 2209.03003, eq. 1).

Shapes: B batch, K states of a trajectory, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from chordflow.checks import check_range
from chordflow.couplings import CouplingBatch
from chordflow.flow import times
from chordflow.flow.path import interpolate, velocity_target
from chordflow.training.methods.base import Method, MethodConfig, VelocityFunction, chosen_rows
from chordflow.training.times import TimesConfig, UniformTimes


@MethodConfig.register_subclass("reflow")
@dataclass
class ReflowMethodConfig(MethodConfig):
    """Learn the straight line between each noise and its endpoint.

    Attributes:
        times: at which times the student is trained.
        path_share: share of every batch that starts at a state of the teacher's trajectory instead of at the noise
            (endpoint) or a point of the chord (reflow), and ends at the same endpoint; above 0 a student of endpoint
            can take more than one step.
        real_data_share: share of every batch that is LeRobot's own loss on demonstrations instead, against the
            collapse of rounds that see nothing real.
    """

    times: TimesConfig = field(default_factory=UniformTimes)
    path_share: float = 0.0
    real_data_share: float = 0.0

    def __post_init__(self) -> None:
        why = "; a step from the noise has to be learned too"
        check_range("method.path_share", self.path_share, at_least=0, below=1, note=why)
        why = "; without any coupling, noise_biased is the method"
        check_range("method.real_data_share", self.real_data_share, at_least=0, below=1, note=why)

    def build(self) -> Method:
        """The method."""
        return ReflowMethod(self)


class ReflowMethod(Method):
    """The student's velocity against the chord x_1 - x_0, over all padded dimensions.

    The padded dimensions count because the student feeds on its own when it takes more than one step. No
    mask is applied: the teacher's whole chunk is what the robot runs.

    Rounds of reflow that see their own endpoints alone collapse (Zhu et al. 2024, arXiv 2412.08175); a share of
    real data prevents it. Here that share is what LeRobot itself trains on: a demonstration, zero-padded, noise
    drawn apart from it, LeRobot's law of times, and a loss on the real dimensions inside the episode alone. It
    pulls towards the mean action near t = 1, where a coupling says which action, so the share should be small.

    With `path_share`, some couplings are entered at a state x_t of the teacher's own trajectory, at any of the solver's
    times after the first, and the target is the chord from there, (x_t - x_0) / t. On the chord from the noise that is
    x_1 - x_0, so both kinds of samples ask for one thing: a straight line to the endpoint (the function that a
    consistency model learns, Song et al. 2023, arXiv 2303.01469, section 3, with the solver's endpoint as its value).
    """

    def __init__(self, config: ReflowMethodConfig) -> None:
        self.times = config.times.build()
        self.distance = config.loss
        self.real_data_share = config.real_data_share
        self.needs_actions = config.real_data_share > 0
        self.path_share = config.path_share
        self.needs_paths = config.path_share > 0
        if config.times.at_noise == 1.0 and not (self.needs_actions or self.needs_paths):
            self.step_counts = (1,)

    def loss(
        self, velocity: VelocityFunction, couplings: CouplingBatch, generator: torch.Generator
    ) -> Tensor:
        """E || v(x_t, t) - (x_1 - x_0) ||^2 per dimension."""
        noise, endpoint, valid = couplings.noise, couplings.endpoint, None
        t = couplings.per_row(lambda n: self.times.sample(n, generator)).to(noise.device)
        if self.needs_actions:
            shown = couplings.demonstrated()
            real = chosen_rows(couplings, self.real_data_share, generator)
            theirs = couplings.per_row(lambda n: times.Beta().sample(n, generator)).to(noise.device)
            t = torch.where(real, theirs, t)
            real = real[:, None, None]
            noise = torch.where(real, shown.noise, noise)
            endpoint = torch.where(real, shown.actions, endpoint)
            valid = shown.valid | ~real
        x_t, target = interpolate(noise, endpoint, t), velocity_target(noise, endpoint)
        if self.needs_paths:
            path = couplings.travelled()
            entered = chosen_rows(couplings, self.path_share, generator)
            # The first state is the noise, from where the chord begins anyway.
            point = couplings.per_row(lambda n: torch.randint(1, len(path.times), (n,), generator=generator))
            if self.needs_actions:
                entered &= ~real[:, 0, 0]
            t = torch.where(entered, path.times[point].to(t.device), t)
            state = path.states[torch.arange(len(point)), point]
            entered = entered[:, None, None]
            x_t = torch.where(entered, state, x_t)
            target = torch.where(entered, (state - couplings.endpoint) / t[:, None, None], target)
        v_t = velocity(x_t, t, context=couplings.context, batch=couplings.batch)
        return self.distance(v_t, target, valid)
