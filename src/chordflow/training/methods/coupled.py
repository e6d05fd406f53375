"""Methods that learn from couplings: reflow, the endpoint alone, and consistency along the teacher's trajectories.

Shapes: B batch, K states of a trajectory, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from chordflow.checks import number
from chordflow.couplings import CouplingBatch, Needs
from chordflow.flow import times
from chordflow.flow.path import interpolate, velocity_target
from chordflow.training.methods.base import Method, MethodConfig, VelocityFunction, chosen_rows
from chordflow.training.objective import TimesConfig, UniformTimes

WHY_NOT_ALL = "; a step from the noise has to be learned too"
"""Why not every coupling is entered on its way."""


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
    path_share: float = number(0.0, at_least=0, below=1, note=WHY_NOT_ALL)
    real_data_share: float = number(
        0.0, at_least=0, below=1, note="; without any coupling, noise_biased is the method"
    )

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
        self.config, self.times = config, config.times.build()
        self.needs = Needs(actions=config.real_data_share > 0, paths=config.path_share > 0)
        if config.times.at_noise == 1.0 and self.needs == Needs():
            self.step_counts = (1,)

    def loss(
        self, velocity: VelocityFunction, couplings: CouplingBatch, generator: torch.Generator
    ) -> Tensor:
        """E || v(x_t, t) - (x_1 - x_0) ||^2 per dimension."""
        noise, endpoint, valid = couplings.noise, couplings.endpoint, None
        t = couplings.per_row(lambda n: self.times.sample(n, generator)).to(noise.device)
        if self.needs.actions:
            shown = couplings.demonstrated()
            real = chosen_rows(couplings, self.config.real_data_share, generator)
            theirs = couplings.per_row(lambda n: times.Beta().sample(n, generator)).to(noise.device)
            t = torch.where(real, theirs, t)
            real = real[:, None, None]
            noise = torch.where(real, shown.noise, noise)
            endpoint = torch.where(real, shown.actions, endpoint)
            valid = shown.valid | ~real
        x_t, target = interpolate(noise, endpoint, t), velocity_target(noise, endpoint)
        if self.needs.paths:
            path = couplings.travelled()
            entered = chosen_rows(couplings, self.config.path_share, generator)
            # The first state is the noise, from where the chord begins anyway.
            point = couplings.per_row(lambda n: torch.randint(1, len(path.times), (n,), generator=generator))
            if self.needs.actions:
                entered &= ~real[:, 0, 0]
            t = torch.where(entered, path.times[point].to(t.device), t)
            state = path.states[torch.arange(len(point)), point]
            entered = entered[:, None, None]
            x_t = torch.where(entered, state, x_t)
            target = torch.where(entered, (state - couplings.endpoint) / t[:, None, None], target)
        v_t = velocity(x_t, t, context=couplings.context, batch=couplings.batch)
        return self.config.loss(v_t, target, valid)


@MethodConfig.register_subclass("endpoint")
@dataclass
class EndpointMethodConfig(MethodConfig):
    """Learn where each noise ends, and nothing about the way there.

    Attributes:
        path_share: share of every batch that starts at a state of the teacher's trajectory instead of at the noise
            (endpoint) or a point of the chord (reflow), and ends at the same endpoint; above 0 a student of endpoint
            can take more than one step.
    """

    path_share: float = number(0.0, at_least=0, below=1, note=WHY_NOT_ALL)

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
        self.config = config
        self.needs = Needs(paths=config.path_share > 0)
        self.step_counts = None if self.needs.paths else (1,)

    def loss(
        self, velocity: VelocityFunction, couplings: CouplingBatch, generator: torch.Generator
    ) -> Tensor:
        """E || v(x_1, 1) - (x_1 - x_0) ||^2 per dimension, or the same from points of the trajectory."""
        noise, endpoint = couplings.noise, couplings.endpoint
        if not self.needs.paths:
            t = torch.ones_like(noise[:, 0, 0])
            v_t = velocity(noise, t, context=couplings.context, batch=couplings.batch)
            return self.config.loss(v_t, velocity_target(noise, endpoint), couplings.real)
        path = couplings.travelled()
        later = couplings.per_row(lambda n: torch.randint(1, len(path.times), (n,), generator=generator))
        later = torch.where(chosen_rows(couplings, self.config.path_share, generator).cpu(), later, 0)
        x_t = path.states[torch.arange(len(later)), later]
        t = path.times[later].to(noise.device)
        v_t = velocity(x_t, t, context=couplings.context, batch=couplings.batch)
        return self.config.loss(v_t, (x_t - endpoint) / t[:, None, None])


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

    needs = Needs(paths=True)

    def __init__(self, config: ConsistencyMethodConfig) -> None:
        self.config = config

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
        return self.config.loss(v_t, (x_t - there) / t[:, None, None])
