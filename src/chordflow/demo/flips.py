"""Are flips real? First chunks at another mode, compared with the side on which the obstacle is passed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chordflow.evaluation.gap import Modes
from chordflow.policies import FlowPolicy
from chordflow.policies.sampling import Sampler, seeded_noise
from chordflow.results.schema import FlipCheck, PolicyName
from chordflow.rollouts.acting import chunk_noise
from chordflow.rollouts.episodes import Episode
from lerobot_env_detour import DetourEnv

NOISES = 32
"""Endpoints of the teacher from which the modes of a start are found."""


class TeacherStarts:
    """The starts of the teacher's episodes, all under one instruction, with the modes that it has there.

    `num_steps` are its steps as deployed.
    """

    def __init__(self, teacher: FlowPolicy, num_steps: int, episodes: Sequence[Episode]) -> None:
        self.episodes = episodes
        self.modes: list[Modes] = []
        self.labels: list[int] = []
        for episode in episodes:
            own = [seeded_noise(teacher, episode.seed, "modes", k) for k in range(NOISES)]
            noise = torch.stack([*own, chunk_noise(teacher, episode.seed, 0)])
            ends = _endpoints(teacher, num_steps, episode, noise)
            self.modes.append(Modes(ends[None, :-1], teacher.chunk))
            self.labels.append(int(self.modes[-1].labels(ends[None, -1:])[0, 0]))

    def check(
        self, name: PolicyName, policy: FlowPolicy, num_steps: int, episodes: Sequence[Episode]
    ) -> FlipCheck:
        """Compares flips of another policy's first chunk with sides, in the episodes in which both pass the obstacle.

        Of its `episodes` those of the same seeds are looked at.
        """
        by_seed = {episode.seed: episode for episode in episodes}
        count = flips = other = agree = 0
        for first, modes, label in zip(self.episodes, self.modes, self.labels, strict=True):
            second = by_seed[first.seed]
            if "none" in (first.side, second.side):
                continue
            noise = chunk_noise(policy, first.seed, 0)[None]
            end = _endpoints(policy, num_steps, first, noise)
            flip = int(modes.labels(end[None])[0, 0]) != label
            changed = first.side != second.side
            count, flips, other = count + 1, flips + flip, other + changed
            agree += flip == changed
        return FlipCheck(name, num_steps, episodes=count, flips=flips, other_side=other, agree=agree)


def _endpoints(policy: FlowPolicy, num_steps: int, episode: Episode, noise: Tensor) -> Tensor:
    """Endpoints (K, H, D) of noises (K, H, D) at the first observation of an episode."""
    context = policy.encode(policy.preprocess(_observation(episode)))
    return Sampler(policy, num_steps)(context.repeat(len(noise)), noise).cpu()


def _observation(episode: Episode) -> dict[str, Any]:
    """What the episode began with, as the checkpoint's preprocessor takes it."""
    env = DetourEnv(instruction=episode.task)
    observation, _ = env.reset(seed=episode.seed)
    pixels = torch.from_numpy(observation["pixels"]).permute(2, 0, 1)[None].float() / 255
    state = torch.from_numpy(observation["agent_pos"])[None]
    return {"observation.image": pixels, "observation.state": state, "task": [episode.task]}
