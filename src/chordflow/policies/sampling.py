"""From noise to endpoint with one policy, plainly and with real-time chunking.

Real-time chunking (Black et al. 2025, arXiv 2506.07339): while a chunk is computed the robot continues with the
previous one. The new chunk is guided towards the actions of the previous one that are not yet executed, so that the two
join. LeRobot's guidance is tuned to ten Euler steps; `guidance_weight` makes it follow the number of steps.

Shapes: B batch, H chunk size, D padded action dimension, A real action dimension, T actions left over.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from torch import Tensor

from chordflow.flow.seeds import generator
from chordflow.flow.solvers import OnStep, get_solver, require_num_steps
from chordflow.policies.base import FlowPolicy
from chordflow.policies.context import Context
from chordflow.policies.exported import ExportedPolicy

_LEROBOT = RTCConfig()
LEROBOT_WEIGHT = _LEROBOT.max_guidance_weight
"""LeRobot's default `max_guidance_weight`, whatever the number of steps."""
LEROBOT_STEPS = 10
"""The number of steps that it suits: the default of LeRobot's policies with real-time chunking."""


@dataclass(frozen=True)
class Sampler:
    """A policy with an explicit solver and number of steps; never the step count that it is saved with.

    Attributes:
        policy: whose velocity is followed.
        num_steps: solver steps from noise to endpoint.
        solver: euler (LeRobot's own), midpoint, heun, or adams_bashforth.
        grid_power: times are `u ** grid_power` for evenly spaced u; 1 is LeRobot's uniform grid.
    """

    policy: FlowPolicy
    num_steps: int
    solver: str = "euler"
    grid_power: float = 1.0

    @torch.no_grad()
    def __call__(self, context: Context, noise: Tensor, *, on_step: OnStep | None = None) -> Tensor:
        """The endpoints (B, H, D) of `noise` (B, H, D), all padded dimensions carried along.

        `on_step` receives the state before every step, at no cost. An exported folder takes its own steps.
        """
        if isinstance(self.policy, ExportedPolicy):
            return self.policy.endpoints(context, noise)
        return get_solver(self.solver).integrate(
            lambda x, t: self.policy.velocity(x, t, context),
            noise,
            self.num_steps,
            grid_power=self.grid_power,
            callback=on_step,
        )


def seeded_noise(policy: FlowPolicy, *parts: int | str) -> Tensor:
    """Noise (H, D) on the CPU by the family's own law, a pure function of `parts` (see `flow.seeds`)."""
    return policy.sample_noise(1, generator(*parts))[0]


def guidance_weight(
    num_steps: int, reference_weight: float = LEROBOT_WEIGHT, reference_steps: int = LEROBOT_STEPS
) -> float:
    """The `max_guidance_weight` for a number of Euler steps: proportional to it.

    At time t, where t = 1 is noise, LeRobot's `RTCProcessor.denoise_step` foresees the endpoint
    `x_t - t v`, takes its error `e = w * (left over - foreseen)` with the prefix weights w, and follows
    `v - g e` instead of v, where `g = min(max, ((1 - t)^2 + t^2) / (t (1 - t)))`. The fraction is infinite at
    t = 1, so the first step has g = max. A step of length 1/n then moves x, and with it the endpoint that
    is foreseen, by `max / n * e`: with max = n exactly onto what is left over (where w = 1), with less only
    part of the way, with more beyond it. As g never exceeds max, neither does any later step overshoot.
    LeRobot's 10 suits its 10 steps; at one step it goes ten times too far.

    (LeRobot evaluates v before x_t is tracked by autograd, so e comes without the Jacobian of the network
    that the paper's eq. 2 has.)

    Args:
        num_steps: Euler steps of the policy that is to be guided.
        reference_weight: a weight that is right at `reference_steps`.
        reference_steps: the number of steps that it belongs to.
    """
    return reference_weight * require_num_steps(num_steps) / require_num_steps(reference_steps)


@dataclass(frozen=True)
class RealTimeSampler:
    """A policy with real-time chunking: LeRobot's own guidance and Euler loop over the policy's velocity.

    The same as a stock policy's `predict_action_chunk` with `rtc_config` enabled, bit for bit. What the policy is
    saved with plays no part.

    Attributes:
        policy: whose velocity is followed; any family, whether or not LeRobot offers real-time chunking for
            it (`supports_real_time_chunking`).
        num_steps: Euler steps from noise to endpoint.
        max_guidance_weight: the guidance's upper limit, above 0; by default `guidance_weight(num_steps)`.
        execution_horizon: leading actions that are guided at all, at least 1; by default LeRobot's.
        schedule: how guidance fades over them, from the first that the delay leaves open to the last.
    """

    policy: FlowPolicy
    num_steps: int
    max_guidance_weight: float | None = None
    execution_horizon: int = _LEROBOT.execution_horizon
    schedule: RTCAttentionSchedule = _LEROBOT.prefix_attention_schedule

    @torch.no_grad()
    def __call__(
        self, context: Context, noise: Tensor, left_over: Tensor | None = None, inference_delay: int = 0
    ) -> Tensor:
        """The endpoints (B, H, D) of `noise` (B, H, D).

        Args:
            context: the encoded observations.
            noise: of each.
            left_over: (B, T, A), the previous endpoints' real dimensions from the first action that was not
                executed when the observation was taken; T is at most H. None for an episode's first chunk:
                no guidance. LeRobot pads it with zeros to (B, H, D): the actions after T have weight 0, but
                the padded dimensions of the first T are guided towards zero, where the policy's own endpoints
                are not. They are never executed; with more than one step the network does see them.
            inference_delay: leading actions that will be executed before this chunk arrives; these are
                guided with full weight.
        """
        weight = self.max_guidance_weight
        config = RTCConfig(
            prefix_attention_schedule=self.schedule,
            max_guidance_weight=guidance_weight(self.num_steps) if weight is None else weight,
            execution_horizon=self.execution_horizon,
        )
        return euler_integrate(
            lambda x_t, t: self.policy.velocity(x_t, t, context),
            noise,
            self.num_steps,
            rtc_processor=RTCProcessor(config),
            rtc_enabled=True,
            inference_delay=inference_delay,
            prev_chunk_left_over=None if left_over is None else left_over.to(noise),
            execution_horizon=self.execution_horizon,
        )
