"""Are flips real? First chunks at another mode, compared with the side on which the obstacle is passed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chordflow.couplings.blocks import join
from chordflow.demo.teacher import CAMERA
from chordflow.evaluation.gap import Modes
from chordflow.evaluation.paired import Way, solve
from chordflow.policies import FlowPolicy
from chordflow.policies.sampling import seeded_noise
from chordflow.results.schema import FlipCheck, PolicyName
from chordflow.rollouts.acting import chunk_noise
from chordflow.rollouts.episodes import Episode
from lerobot_env_detour import DetourEnv

NOISES = 16
"""Endpoints of the teacher from which the modes of a start are found."""


class TeacherStarts:
    """The starts of the teacher's episodes, all under one instruction, with the modes that it has there.

    `num_steps` are its steps as deployed.
    """

    def __init__(self, teacher: FlowPolicy, num_steps: int, episodes: Sequence[Episode]) -> None:
        self.episodes = episodes
        drawn = [
            [
                *(seeded_noise(teacher, e.seed, "modes", k) for k in range(NOISES)),
                chunk_noise(teacher, e.seed, 0),
            ]
            for e in episodes
        ]
        noise = torch.stack([torch.stack(own) for own in drawn])
        ends = _endpoints(teacher, num_steps, episodes, noise)
        self.modes = Modes(ends[:, :-1], teacher.chunk)
        self.labels = self.modes.labels(ends[:, -1:])

    def check(
        self, name: PolicyName, policy: FlowPolicy, num_steps: int, episodes: Sequence[Episode]
    ) -> FlipCheck:
        """Compares flips of another policy's first chunk with sides, in the episodes in which both pass the obstacle.

        Of its `episodes` those of the same seeds are looked at.
        """
        by_seed = {episode.seed: episode for episode in episodes}
        noise = torch.stack([chunk_noise(policy, first.seed, 0)[None] for first in self.episodes])
        flipped = self.modes.labels(_endpoints(policy, num_steps, self.episodes, noise)) != self.labels
        count = flips = other = agree = 0
        for first, flip in zip(self.episodes, flipped[:, 0].tolist(), strict=True):
            second = by_seed[first.seed]
            if "none" in (first.side, second.side):
                continue
            changed = first.side != second.side
            count, flips, other = count + 1, flips + flip, other + changed
            agree += flip == changed
        return FlipCheck(name, num_steps, episodes=count, flips=flips, other_side=other, agree=agree)


@torch.no_grad()
def _endpoints(policy: FlowPolicy, num_steps: int, episodes: Sequence[Episode], noise: Tensor) -> Tensor:
    """Endpoints (N, K, H, D) of noises (N, K, H, D) at the first observations of N episodes."""
    items = [_observation(episode) for episode in episodes]
    context, way = policy.encode(policy.preprocess(join(items))), Way("euler", num_steps)
    return solve(policy, context, noise, [way])[way]


def _observation(episode: Episode) -> dict[str, Any]:
    """What the episode began with, as the checkpoint's preprocessor takes it."""
    env = DetourEnv(instruction=episode.task)
    observation, _ = env.reset(seed=episode.seed)
    pixels = torch.from_numpy(observation["pixels"]).permute(2, 0, 1)[None].float() / 255
    state = torch.from_numpy(observation["agent_pos"])[None]
    return {CAMERA: pixels, "observation.state": state, "task": [episode.task]}
