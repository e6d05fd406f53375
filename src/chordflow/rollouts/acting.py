"""From running episodes to their next chunks: observations, noise, network, actions in the robot's units.

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
from lerobot.utils.constants import ACTION
from numpy.typing import NDArray
from torch import Tensor

from chordflow.errors import UserError
from chordflow.policies import FlowPolicy, check_inputs
from chordflow.policies.sampling import RealTimeSampler, Sampler
from chordflow.rollouts.delay import Execution
from chordflow.rollouts.environment import batch_observations
from chordflow.rollouts.history import History
from chordflow.rollouts.noise import chunk_noises
from chordflow.rollouts.timing import Timing


@dataclass(frozen=True)
class Request:
    """What a chunk is made from.

    Attributes:
        seed: the episode's.
        chunk_index: chunks of the episode that were made before.
        step: actions that the episode has executed.
        observations: the environment's, T of them, the present one last.
        task: the instruction.
        previous: the endpoint (H, D) of the chunk before; None for an episode's first.
        noise_task: suite and number of its task as far as noise depends on them; see `rollouts.noise`.
    """

    seed: int
    chunk_index: int
    step: int
    observations: tuple[Any, ...]
    task: str
    previous: Tensor | None
    noise_task: tuple[str, int] | None = None


class Actor:
    """A policy with its solver, its way of execution, and the processors of environment and checkpoint.

    Args:
        policy: who acts.
        env_cfg: a LeRobot `EnvConfig`.
        num_steps: solver steps for each chunk.
        solver: which solver.
        executed: actions of a chunk until the next one is asked for, K.
        execution: what delay there is.
        timing: where seconds are added.
        grid_power: how the solver's steps are graded.

    Attributes:
        history: the observations that it looks at.

    Raises:
        UserError: for impossible arguments.
    """

    def __init__(
        self,
        policy: FlowPolicy,
        env_cfg: Any,
        num_steps: int,
        solver: str,
        executed: int,
        execution: Execution,
        timing: Timing,
        grid_power: float = 1.0,
    ) -> None:
        self.policy = policy
        self.history = History.of(policy)
        self.env_cfg = env_cfg
        self.sampler = Sampler(policy, num_steps, solver, grid_power)
        self.executed = executed
        self.execution = execution
        self.timing = timing
        execution.check(policy.chunk, executed)
        self._guided: RealTimeSampler | None = None
        if execution.mode == "rtc":
            if (solver, grid_power) != ("euler", 1.0):
                raise UserError(
                    f"solver is {solver!r} and grid_power {grid_power:g}; real-time chunking has even Euler steps: "
                    "choose euler with grid_power 1."
                )
            guided = RealTimeSampler(policy, num_steps, execution.max_guidance_weight)
            # Counted from the present, like the delay.
            self._guided = replace(guided, execution_horizon=guided.horizon + policy.chunk.first_executed)
        self._before, self._after = make_env_pre_post_processors(env_cfg, policy_cfg=policy.config)

    @torch.no_grad()
    def act(
        self, requests: Sequence[Request], observation_space: gym.Space[Any], action_space: gym.Space[Any]
    ) -> tuple[NDArray[np.float32], Tensor]:
        """The chunks of a batch.

        Returns:
            The actions that may be executed (B, N, A), from the present on and in the robot's units, and the
            whole endpoints (B, H, D).

        Raises:
            UserError: if the environment does not fit the policy, or an action is not finite.
        """
        policy = self.policy
        with self.timing.measure("processors", policy.device):
            batch = policy.preprocess(self.observe(requests, observation_space))
        keys = [(request.seed, request.chunk_index, request.noise_task) for request in requests]
        noise = chunk_noises(policy, keys)
        with self.timing.measure("network", policy.device):
            endpoint = self._sample(batch, noise.to(policy.device), requests)
        with self.timing.measure("processors", policy.device):
            actions = self._to_robot(endpoint)
        check_actions(policy, self.env_cfg, action_space.shape or ())
        _check_finite(actions, requests)
        return actions, endpoint

    def observe(self, requests: Sequence[Request], space: gym.Space[Any]) -> dict[str, Any]:
        """What the policy's preprocessor is handed of a batch: as a dataset gives it, (B, ...) or (B, T, ...).

        Raises:
            UserError: if the environment does not fit the policy.
        """
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
        # An episode's first chunk follows nothing.
        for first in (True, False):
            rows = [i for i, request in enumerate(requests) if (request.previous is None) == first]
            if not rows:
                continue
            where = torch.tensor(rows)
            left_over = None if first else self._left_over([requests[i].previous for i in rows])
            own = context if len(rows) == len(requests) else context.index(where)
            # What lies in the past was executed, and so is what comes before this chunk arrives.
            fixed = self.policy.chunk.first_executed + self.execution.delay
            endpoint[rows] = self._guided(own, noise[rows], left_over, fixed)
        return endpoint

    def _left_over(self, previous: Sequence[Tensor | None]) -> Tensor:
        """The old chunks from where the new ones begin, K actions later: prev[K:], (B, H - K, A)."""
        chunks = torch.stack([chunk for chunk in previous if chunk is not None])
        return chunks[:, self.executed :, : self.policy.chunk.action_dim]

    def _to_robot(self, endpoint: Tensor) -> NDArray[np.float32]:
        first = self.policy.chunk.first_executed
        chunk = self.policy.to_action(
            endpoint[:, first : first + self.execution.actions_needed(self.executed)]
        )
        if len(self._after):
            # One control step at a time, as LeRobot's rollout hands actions to the environment's processor.
            steps = [self._after({ACTION: step})[ACTION] for step in chunk.unbind(1)]
            chunk = torch.stack(steps, dim=1)
        return chunk.to("cpu", torch.float32).numpy()


def _check_finite(actions: NDArray[np.float32], requests: Sequence[Request]) -> None:
    if np.isfinite(actions).all():
        return
    for request, rows in zip(requests, actions, strict=True):
        if not np.isfinite(rows).all():
            raise UserError(
                f"the policy's action is NaN or infinite in episode {request.seed}, step {request.step}; check "
                "the checkpoint's weights and the observations."
            )


def check_observation(policy: FlowPolicy, env_cfg: Any, observation: dict[str, Any]) -> None:
    """Raises UserError if cameras or the state are missing or of another size.

    Args:
        policy: who is to act.
        env_cfg: a LeRobot `EnvConfig`.
        observation: under LeRobot's names, before the policy's preprocessor, (B, ...).
    """
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
