"""Demonstrations for closed-form policies: observations whose actions are drawn from the policy's own Gaussian."""

from typing import Any

import torch

from chordflow.couplings import Observations
from chordflow.flow.seeds import generator
from gaussian_policy import GaussianFlowPolicy
from gaussian_setup import StateDataset


class DemonstratedDataset(StateDataset):
    """States with a chunk of actions each, of which the last ones may lie behind the episode's end."""

    def __init__(self, policy: GaussianFlowPolicy, count: int, seed: int = 0, *, exact: bool = False) -> None:
        super().__init__(count, policy.config.state_dim, seed)
        mean = policy.encode({"observation.state": self.states}).means[:, 0]
        drawn = torch.randn(mean.shape, generator=generator(seed, "actions"))
        whole = mean if exact else mean + policy.std * drawn
        self.actions = whole[..., : policy.config.action_dim].detach()
        self.is_pad = torch.zeros(count, policy.config.horizon, dtype=torch.bool)
        self.is_pad[::3, -1] = True
        # Never to be counted.
        self.actions[self.is_pad] = 1e3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            **super().__getitem__(index),
            "action": self.actions[index],
            "action_is_pad": self.is_pad[index],
        }


def make_demonstrations(
    policy: GaussianFlowPolicy, count: int, seed: int = 0, *, exact: bool = False
) -> Observations:
    """Observations with actions by the policy's own law, or at its mean where `exact`."""
    dataset = DemonstratedDataset(policy, count, seed, exact=exact)
    return Observations(dataset, range(count), actions=True)  # type: ignore[arg-type]
