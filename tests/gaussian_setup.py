"""Closed-form policies with observations to match: no checkpoint, no dataset on disk."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from chordflow.couplings import CouplingConfig, Observations
from chordflow.flow.seeds import generator
from chordflow.policies import Context
from gaussian_policy import GaussianConfig, GaussianContext, GaussianFlowPolicy


class StateDataset:
    """What `Observations` asks of a LeRobotDataset, with states drawn from a seed."""

    meta = SimpleNamespace(video_keys=[], camera_keys=[], features={})
    absolute_to_relative_idx = None

    def __init__(self, count: int, state_dim: int, seed: int = 0) -> None:
        self.states = torch.randn(count, state_dim, generator=generator(seed, "states"))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "observation.state": self.states[index],
            "action": torch.full((1,), torch.nan),  # never to be read
            "task": "",
            "episode_index": torch.tensor(index // 2),
            "frame_index": torch.tensor(index),
        }


def make_observations(count: int, state_dim: int = 2, seed: int = 0) -> Observations:
    """Observations that are a state alone."""
    return Observations(StateDataset(count, state_dim, seed), range(count))  # type: ignore[arg-type]


def make_policy(**options: Any) -> GaussianFlowPolicy:
    """A Gaussian policy with frozen parameters, as a teacher's are."""
    policy = GaussianFlowPolicy(GaussianConfig(**options))
    policy.module.requires_grad_(False)
    return policy


class AffineModule(nn.Module):
    """`state_proj` as in the Gaussian policy, and two coefficients per dimension as functions of time."""

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__()
        self.state_proj = nn.Linear(config.state_dim, config.horizon * config.padded_dim)
        self.register_buffer("offsets", torch.zeros(1, config.horizon, config.padded_dim))
        self.net = nn.Sequential(
            nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2 * config.padded_dim)
        )


class AffineStudent(GaussianFlowPolicy):
    """Learns `v = a(t) x + b(t) m`, the form of every velocity between Gaussians, from the teacher's own prefix."""

    def make_module(self) -> nn.Module:
        return AffineModule(self.config)

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        assert isinstance(context, GaussianContext)
        slope, level = self.module.get_submodule("net")(t[:, None]).chunk(2, dim=-1)
        return slope[:, None] * x_t + level[:, None] * context.means[:, 0]


def euler(num_steps: int) -> CouplingConfig:
    """Couplings as a policy makes them that is deployed at this many steps, where formulas or counts are of Euler's."""
    return CouplingConfig("euler", num_steps, grid_power=1.0)


def euler_factor(std: Tensor, num_steps: int) -> Tensor:
    """c in `endpoint = m + c * noise` after Euler steps: each multiplies x - (1 - t) m by `1 - dt * slope(t)`."""
    factor = torch.ones_like(std)
    for step in range(num_steps):
        t = 1 - step / num_steps
        slope = (t - (1 - t) * std**2) / (t**2 + (1 - t) ** 2 * std**2)
        factor = factor * (1 - slope / num_steps)
    return factor
