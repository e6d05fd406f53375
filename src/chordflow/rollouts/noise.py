"""The noise of a rollout: counter-based, so that policies that run the same episodes are truly paired.

LeRobot's own rollout draws from the global generator: there, what an episode gets depends on the batch, on
the episodes before it and on everything else that drew, and equal seeds do not pair two policies.

Shapes: B batch, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from chordflow.policies import FlowPolicy
from chordflow.policies.sampling import seeded_noise

NOISE_KEY = 2
"""Version of what noise is a function of. In version 1 the task was no part of it, so that all tasks of a suite had the
same noises."""


def chunk_noise(
    policy: FlowPolicy, episode_seed: int, chunk_index: int, task: tuple[str, int] | None = None
) -> Tensor:
    """Noise of one chunk of one episode.

    Args:
        policy: for the shape and the law of its noise; its weights and step count play no part.
        episode_seed: the seed that the environment was reset with.
        chunk_index: 0 for the episode's first chunk.
        task: suite and number of the task, None for the first one of a run.

    Returns:
        Float32 on the CPU, shape (H, D).
    """
    return seeded_noise(policy, episode_seed, "rollout", chunk_index, *(task or ()))


def chunk_noises(
    policy: FlowPolicy, keys: Iterable[tuple[int, int] | tuple[int, int, tuple[str, int] | None]]
) -> Tensor:
    """`chunk_noise` of several (episode seed, chunk index) or (episode seed, chunk index, task), shape (B, H, D)."""
    return torch.stack([chunk_noise(policy, *key) for key in keys])
