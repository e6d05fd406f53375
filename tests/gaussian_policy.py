"""A policy whose flow is known in closed form: a mixture of Gaussians around a mean that is linear in the state.

Shapes: B batch, H chunk size, D padded action dimension, A real action dimension, K modes, S state size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from chordflow.policies.base import Batch, ChunkSpec, FlowPolicy, Role
from chordflow.policies.context import Context
from closed_forms import GaussianFlow, GaussianMixtureFlow


@dataclass
class GaussianConfig:
    """`separation` lies between neighbouring modes, `action_scale` is the robot's units per unit of an endpoint."""

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


@dataclass(frozen=True)
class GaussianContext(Context):
    """The means (B, K, H, D) of the modes at each observation."""

    means: Tensor


class GaussianModule(nn.Module):
    """The parameters: where the modes lie (`state_proj`) and how wide they are (`log_std`, (H, D))."""

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
    """Its prefix is `state_proj`, its action head `log_std`; modes differ in the real dimensions only."""

    family = "gaussian"
    policy_class = GaussianModule
    preprocessor = postprocessor = SimpleNamespace(steps=[], state_dict=dict)

    def __init__(self, config: GaussianConfig) -> None:
        self.config = config
        # Constructors of torch draw from the global generator; the caller's stream is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.module = self.make_module()

    @property
    def chunk(self) -> ChunkSpec:
        config = self.config
        return ChunkSpec(config.horizon, config.padded_dim, config.action_dim, config.horizon)

    def preprocess(self, items: Mapping[str, Any]) -> Batch:
        """The state (B, S), and the action (B, H, A) where there is one, as they are."""
        return {key: items[key] for key in (OBS_STATE, ACTION, "action_is_pad") if key in items}

    def to_action(self, endpoint: Tensor) -> Tensor:
        return endpoint[..., : self.config.action_dim] * self.config.action_scale

    def encode(self, batch: Batch) -> GaussianContext:
        centre = self.module.get_submodule("state_proj")(batch[OBS_STATE]).unflatten(-1, self.chunk.shape)
        return GaussianContext(centre[:, None] + self.module.get_buffer("offsets"))

    def flow(self, context: Context) -> GaussianFlow:
        """The flow of a policy with one mode: only there an endpoint's closed form is known."""
        assert isinstance(context, GaussianContext)
        if self.config.num_modes != 1:
            raise ValueError(f"num_modes is {self.config.num_modes}; endpoints are known for one mode only")
        return GaussianFlow(context.means[:, 0], self.std)

    def mixture(self, context: Context) -> GaussianMixtureFlow:
        assert isinstance(context, GaussianContext)
        modes = self.config.num_modes
        weights = torch.full((modes,), 1 / modes, device=context.means.device)
        return GaussianMixtureFlow(weights, context.means, self.std.expand(modes, -1, -1))

    @property
    def std(self) -> Tensor:
        return self.module.get_parameter("log_std").exp()

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.mixture(context).velocity(x_t, t)

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
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
        return self.config.num_steps

    def set_num_steps(self, num_steps: int) -> None:
        self.config.num_steps = num_steps

    def role_of(self, name: str) -> Role:
        """`state_proj` is the prefix's projection, the rest the action head."""
        return Role.PREFIX_PROJECTIONS if name.startswith("state_proj.") else Role.ACTION_HEAD

    def build_fresh(self) -> nn.Module:
        return self.make_module()

    def make_module(self) -> nn.Module:
        """The module with fresh weights; a student with another head overrides it."""
        return GaussianModule(self.config)
