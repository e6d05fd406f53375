"""From running episodes to their next chunks: observations, noise, network, actions in the robot's units.

Noise is counter-based, so that policies that run the same episodes are truly paired. LeRobot's own rollout draws from
the global generator: there, what an episode gets depends on the batch, the episodes before it and all else that drew.

LeRobot's policies with a history keep a queue that every control step fills, and that an episode's first observation
fills alone. Here episodes bring back the observations that the next chunk needs.

Shapes: B batch, T observed control steps, H chunk size, D padded and A real action dimension, N actions that are
needed, from the present on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from lerobot.envs import make_env_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_PREFIX
from numpy.typing import NDArray
from torch import Tensor

from chordflow.errors import UserError
from chordflow.policies import FlowPolicy, check_inputs
from chordflow.policies.sampling import RealTimeSampler, Sampler, seeded_noise
from chordflow.rollouts.delay import NO_DELAY, Execution
from chordflow.rollouts.environments import Spaces, TaskKey, batch_observations
from chordflow.rollouts.episodes import Timing

NOISE_KEY = 2
"""Version of what noise is a function of. In version 1 the task was no part of it, so that all tasks of a suite had the
same noises."""


def chunk_noise(
    policy: FlowPolicy, episode_seed: int, chunk_index: int, task: TaskKey | None = None
) -> Tensor:
    """Noise (H, D) of one chunk of one episode, float32 on the CPU.

    The policy's weights and step count play no part. `task` is None for the first one of a run, whose noises so depend
    on seed and chunk alone.
    """
    return seeded_noise(policy, episode_seed, "rollout", chunk_index, *(task or ()))


@dataclass(frozen=True)
class History:
    """Which observations a policy looks at: control steps relative to the present (0), the oldest first."""

    indices: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, policy: FlowPolicy) -> History:
        """What `policy` looks at; raises UserError if it looks at what is yet to come."""
        indices = tuple(policy.observation_delta_indices or (0,))
        if max(indices) > 0:
            raise UserError(
                f"observation_delta_indices of policy type {policy.family!r} holds {max(indices)}: an episode has no "
                "observations of the future to show; this policy can be measured on a dataset only."
            )
        return cls(indices)

    @property
    def span(self) -> int:
        """How many of an episode's last observations are needed, those between included."""
        return 1 - min(self.indices)

    def choose(self, seen: Sequence[Any]) -> tuple[Any, ...]:
        """The T observations among the last ones (the present is the last); the first stands for those before it."""
        return tuple(seen[max(len(seen) - 1 + index, 0)] for index in self.indices)

    def fold(self, observation: dict[str, Any]) -> dict[str, Any]:
        """From observations one by one, (B T, ...), to those of each episode, (B, T, ...); (B, ...) for the present."""
        if self.indices == (0,):
            return observation
        steps = len(self.indices)
        folded = dict(observation)
        for key, value in observation.items():
            if key == "task":
                folded[key] = value[::steps]
            elif key.startswith(OBS_PREFIX) and isinstance(value, Tensor):
                folded[key] = value.unflatten(0, (-1, steps))
        return folded


@dataclass(frozen=True)
class Request:
    """What a chunk is made from: T `observations` of the environment, the present one last, and the instruction.

    `chunk_index` counts the episode's chunks before, `step` its executed actions. `previous` is the endpoint (H, D) of
    the chunk before, None for an episode's first. `noise_task` is the task as far as noise depends on it.
    """

    seed: int
    chunk_index: int
    step: int
    observations: tuple[Any, ...]
    task: str
    previous: Tensor | None = None
    noise_task: TaskKey | None = None


class Actor:
    """A policy with its solver, its way of execution, and the processors of environment and checkpoint.

    Args:
        policy: who acts.
        env_cfg: a LeRobot `EnvConfig`.
        num_steps: solver steps for each chunk; the step count that the policy is saved with is not used.
        solver: euler, midpoint, heun or adams_bashforth.
        grid_power: how the steps are graded; 1 for LeRobot's even steps.
        n_action_steps: executed actions of each chunk; the policy's own by default.
        execution: what delay there is and what the robot does meanwhile.

    Attributes:
        executed: K, the actions of a chunk until the next one is asked for.
        timing: where the time goes that it takes.

    Raises:
        UserError: for impossible arguments.
    """

    def __init__(
        self,
        policy: FlowPolicy,
        env_cfg: Any,
        num_steps: int,
        solver: str = "euler",
        grid_power: float = 1.0,
        n_action_steps: int | None = None,
        execution: Execution = NO_DELAY,
    ) -> None:
        self.policy, self.env_cfg, self.execution = policy, env_cfg, execution
        self.executed = policy.chunk.num_executed if n_action_steps is None else n_action_steps
        self.history = History.of(policy)
        self.sampler = Sampler(policy, num_steps, solver, grid_power)
        self.timing = Timing()
        policy.chunk.check_executed(self.executed)
        execution.check(policy.chunk, self.executed)
        self._guided: RealTimeSampler | None = None
        if execution.mode == "rtc":
            assert (solver, grid_power) == ("euler", 1.0)
            guided = RealTimeSampler(policy, num_steps, execution.max_guidance_weight)
            # Counted from the present, like the delay.
            horizon = guided.execution_horizon + policy.chunk.first_executed
            self._guided = replace(guided, execution_horizon=horizon)
        self._before, self._after = make_env_pre_post_processors(env_cfg, policy_cfg=policy.config)

    @torch.no_grad()
    def act(self, requests: Sequence[Request], spaces: Spaces) -> tuple[NDArray[np.float32], Tensor]:
        """The actions of a batch that may be executed (B, N, A), in the robot's units, and the endpoints (B, H, D).

        Raises UserError if the environment does not fit the policy, or an action is not finite.
        """
        policy, measure = self.policy, self.timing.measure
        with measure("processors", policy.device):
            batch = policy.preprocess(self.observe(requests, spaces.observation))
        noises = [chunk_noise(policy, one.seed, one.chunk_index, one.noise_task) for one in requests]
        with measure("network", policy.device):
            endpoint = self._sample(batch, torch.stack(noises).to(policy.device), requests)
        with measure("processors", policy.device):
            actions = self._to_robot(endpoint)
        check_actions(policy, self.env_cfg, spaces.action.shape or ())
        for request, rows in zip(requests, actions, strict=True):
            check_finite(rows, request.seed, request.step)
        return actions, endpoint

    def observe(self, requests: Sequence[Request], space: gym.Space[Any]) -> dict[str, Any]:
        """The batch that the policy's preprocessor takes, as a dataset gives it: (B, ...) or (B, T, ...)."""
        # The environment's processors know single observations only: the axis T comes after them.
        seen = [(request, observation) for request in requests for observation in request.observations]
        observation = batch_observations(space, [observation for _, observation in seen])
        observation["task"] = [request.task for request, _ in seen]
        if len(self._before):
            observation = self._before(observation)
        check_observation(self.policy, self.env_cfg, observation)
        return self.history.fold(observation)

    def _sample(self, batch: dict[str, Any], noise: Tensor, requests: Sequence[Request]) -> Tensor:
        context = self.policy.encode(batch)
        if self._guided is None:
            return self.sampler(context, noise)
        endpoint = torch.empty_like(noise)
        chunk = self.policy.chunk
        # What lies in the past was executed, and so is what comes before this chunk arrives.
        fixed = chunk.first_executed + self.execution.delay
        # An episode's first chunk follows nothing.
        for first in (True, False):
            rows = [i for i, request in enumerate(requests) if (request.previous is None) == first]
            if not rows:
                continue
            previous = [old for i in rows if (old := requests[i].previous) is not None]
            # The old chunks from where the new ones begin, K actions later: prev[K:], (B, H - K, A).
            left_over = torch.stack(previous)[:, self.executed :, : chunk.action_dim] if previous else None
            own = context if len(rows) == len(requests) else context.index(torch.tensor(rows))
            endpoint[rows] = self._guided(own, noise[rows], left_over, fixed)
        return endpoint

    def _to_robot(self, endpoint: Tensor) -> NDArray[np.float32]:
        first = self.policy.chunk.first_executed
        needed = self.execution.actions_needed(self.executed)
        chunk = self.policy.to_action(endpoint[:, first : first + needed])
        if len(self._after):
            # One control step at a time, as LeRobot's rollout hands actions to the environment's processor.
            chunk = torch.stack([self._after({ACTION: step})[ACTION] for step in chunk.unbind(1)], dim=1)
        return chunk.to("cpu", torch.float32).numpy()


def check_finite(actions: NDArray[np.float32], seed: int, step: int) -> None:
    """Raises UserError if an action (T, A) of the episode of `seed`, from its `step` on, is not finite."""
    bad = np.flatnonzero(~np.isfinite(actions).all(axis=1))
    if bad.size:
        raise UserError(
            f"the policy's action is NaN or infinite in episode {seed}, step {step + bad[0]}; check the checkpoint's "
            "weights and the observations."
        )


def check_observation(policy: FlowPolicy, env_cfg: Any, observation: dict[str, Any]) -> None:
    """Raises UserError if cameras or the state of an `observation` (B, ...), by LeRobot's names, do not fit."""
    shapes = {key: value.shape[1:] for key, value in observation.items() if isinstance(value, Tensor)}
    check_inputs(policy, shapes, f"env.type={env_cfg.type}")


def check_actions(policy: FlowPolicy, env_cfg: Any, shape: tuple[int, ...]) -> None:
    """Raises UserError if the environment takes actions of another `shape` than the checkpoint's."""
    own = (policy.chunk.action_dim,)
    if tuple(shape) != own:
        raise UserError(
            f"env.type={env_cfg.type} takes actions of shape {tuple(shape)}, but the checkpoint's have shape "
            f"{own}; give the environment that it was trained for."
        )
