"""A policy whose flow is known in closed form: what the maths of couplings, training and measures is held to.

It is no LeRobot policy and needs no checkpoint. An observation is a state; the action is a mixture of
Gaussians around a mean that depends linearly on the state, and the velocity is the exact optimum of the
flow-matching loss for it. With one mode endpoints, gap and curvature are formulas; with two, noises choose.

Shapes: B batch, H chunk size, D padded action dimension, A real action dimension, K modes, S state size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from chordflow.errors import UserError
from chordflow.flow.closed_forms import GaussianFlow, GaussianMixtureFlow
from chordflow.policies.base import Batch, ChunkSpec, FlowPolicy, Role
from chordflow.policies.context import Context, TensorContext


@dataclass
class GaussianConfig:
    """The flow and its shapes.

    Attributes:
        horizon: H.
        padded_dim: D.
        action_dim: A, at most D.
        state_dim: S.
        num_modes: K, 1 or more, all equally likely.
        separation: distance between neighbouring modes in each real entry of the chunk.
        std: standard deviation of each mode in each entry, above 0.
        num_steps: solver steps that the policy is saved with.
        action_scale: the robot's units per unit of an endpoint.
        seed: of the initial weights.
    """

    horizon: int = 4
    padded_dim: int = 4
    action_dim: int = 2
    state_dim: int = 2
    num_modes: int = 1
    separation: float = 4.0
    std: float = 0.5
    num_steps: int = 10
    action_scale: float = 1.0
    seed: int = 0
    observation_delta_indices: list[int] | None = None
    image_features: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("horizon", "action_dim", "state_dim", "num_modes", "num_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: give at least 1.")
        if self.action_dim > self.padded_dim:
            raise UserError(f"action_dim={self.action_dim} is more than padded_dim={self.padded_dim}.")
        if not self.std > 0:
            raise UserError(f"std={self.std}: give a standard deviation above 0.")


@dataclass(frozen=True)
class GaussianContext(TensorContext):
    """The mean of every mode at each observation.

    Attributes:
        means: (B, K, H, D).
    """

    means: Tensor


class GaussianModule(nn.Module):
    """The parameters: where the modes lie and how wide they are.

    Attributes:
        state_proj: from a state to the centre of the modes.
        log_std: (H, D), logarithm of every mode's standard deviation.
    """

    offsets: Tensor

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__()
        shape = (config.horizon, config.padded_dim)
        self.state_proj = nn.Linear(config.state_dim, math.prod(shape))
        self.log_std = nn.Parameter(torch.full(shape, math.log(config.std)))
        places = config.separation * (torch.arange(config.num_modes) - (config.num_modes - 1) / 2)
        real = (torch.arange(config.padded_dim) < config.action_dim).float()
        self.register_buffer("offsets", (places[:, None, None] * real).expand(-1, *shape).contiguous())


class GaussianFlowPolicy(FlowPolicy):
    """A Gaussian or mixture flow as a policy.

    The context, and so the prefix, is `state_proj`; the action head is `log_std`. The modes differ in the
    real dimensions only, the padded ones carry noise of the same width around a mean of their own.

    Args:
        config: shapes, modes and widths; weights are drawn from its seed.
    """

    family = "gaussian"
    policy_class = GaussianModule

    def __init__(self, config: GaussianConfig) -> None:
        self.config = config
        # Constructors of torch draw from the global generator; the caller's stream is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.module = self.make_module()

    @property
    def chunk(self) -> ChunkSpec:
        """Shape of noise and chunk; all of it is executed."""
        config = self.config
        return ChunkSpec(config.horizon, config.padded_dim, config.action_dim, config.horizon)

    def preprocess(self, items: Mapping[str, Any]) -> Batch:
        """The state (B, S), and the action (B, H, A) where there is one, as they are."""
        return {key: items[key] for key in (OBS_STATE, ACTION, "action_is_pad") if key in items}

    def to_action(self, endpoint: Tensor) -> Tensor:
        """The real dimensions, times the config's `action_scale`."""
        return endpoint[..., : self.config.action_dim] * self.config.action_scale

    def encode(self, batch: Batch) -> GaussianContext:
        """The means of all modes."""
        centre = self.module.get_submodule("state_proj")(batch[OBS_STATE]).unflatten(-1, self.chunk.shape)
        return GaussianContext(centre[:, None] + self.module.get_buffer("offsets"))

    def flow(self, context: Context) -> GaussianFlow:
        """The flow of a policy with one mode: endpoints and reflowed velocity in closed form.

        Raises:
            ValueError: if there are several modes, of which no closed form of the endpoint is known.
        """
        assert isinstance(context, GaussianContext)
        if self.config.num_modes != 1:
            raise ValueError(f"num_modes is {self.config.num_modes}; endpoints are known for one mode only")
        return GaussianFlow(context.means[:, 0], self.std)

    def mixture(self, context: Context) -> GaussianMixtureFlow:
        """The flow as a mixture."""
        assert isinstance(context, GaussianContext)
        modes = self.config.num_modes
        weights = torch.full((modes,), 1 / modes, device=context.means.device)
        return GaussianMixtureFlow(weights, context.means, self.std.expand(modes, -1, -1))

    @property
    def std(self) -> Tensor:
        """Standard deviation of every mode, (H, D)."""
        return self.module.get_parameter("log_std").exp()

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """The optimum of the flow-matching loss, exactly."""
        return self.mixture(context).velocity(x_t, t)

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Standard normal float32 over the whole chunk and all padded dimensions."""
        return torch.randn((n, *self.chunk.shape), generator=generator, device=generator.device)

    def action_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Zero-padded demonstrations, valid in the real dimensions inside the episode."""
        actions = batch[ACTION]
        target = nn.functional.pad(actions, (0, self.config.padded_dim - self.config.action_dim))
        valid = torch.zeros_like(target, dtype=torch.bool)
        valid[..., : self.config.action_dim] = True
        if "action_is_pad" in batch:
            valid &= ~batch["action_is_pad"].bool()[..., None]
        return target, valid

    @property
    def default_num_steps(self) -> int:
        """`num_steps` of the config."""
        return self.config.num_steps

    def set_num_steps(self, num_steps: int) -> None:
        """Sets `num_steps`."""
        self.config.num_steps = num_steps

    def role_of(self, name: str) -> Role:
        """`state_proj` is the prefix's projection, the rest the action head."""
        return Role.PREFIX_PROJECTIONS if name.startswith("state_proj.") else Role.ACTION_HEAD

    def build_fresh(self) -> nn.Module:
        """The module with weights from the global generator."""
        return self.make_module()

    def make_module(self) -> nn.Module:
        """The module with fresh weights; a student with another head overrides it."""
        return GaussianModule(self.config)
