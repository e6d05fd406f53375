"""Who holds the sub-environments: a host starts and steps them by number, here or in another process.

A whole chunk of actions goes in and what came of it comes out, so a host in another process costs one message
each way per chunk.

Shapes: A action dimension, K actions that are sent, k <= K that are executed before the episode ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.envs import close_envs
from numpy.typing import NDArray

from chordflow.errors import UserError, machine_refuses, ran_out_of_memory, reason
from chordflow.rollouts.environment import (
    frame,
    instruction,
    make_environments,
    number_of_starts,
    reset,
    step_limit,
)

TaskKey = tuple[str, int]
"""Suite and number of the task within it, as LeRobot names them."""


@dataclass(frozen=True)
class Spaces:
    """What the sub-environments of a task show and take."""

    observation: gym.Space[Any]
    action: gym.Space[Any]


@dataclass(frozen=True)
class StartOrder:
    """Begin an episode.

    Attributes:
        slot: number of the sub-environment.
        seed: the episode's.
        recorded: whether to send pictures.
        kept: how many of the last observations a chunk brings back; above 1 for a policy with a history.
        all_kept: whether all come back instead, the last one of an episode included.
    """

    slot: int
    seed: int
    recorded: bool
    kept: int = 1
    all_kept: bool = False


@dataclass(frozen=True)
class Started:
    """An episode's beginning: observation, instruction and, where recorded, a picture."""

    observation: Any
    task: str
    frame: NDArray[np.uint8] | None


@dataclass(frozen=True)
class ChunkOrder:
    """Execute `actions` (K, A) in the sub-environment number `slot`, as far as its episode goes."""

    slot: int
    actions: NDArray[np.float32]


@dataclass(frozen=True)
class Outcome:
    """What came of a chunk.

    Attributes:
        observations: those after the last `kept` executed actions, or after all if there are fewer, the oldest
            first; none where the episode is over, unless all were asked for.
        rewards: one for each of the k executed actions.
        success: whether `is_success` was reported at any of them.
        side: the last `info["side"]`, None where there was none.
        ended: whether the episode is over.
        frames: k pictures, where recorded.
    """

    observations: list[Any]
    rewards: list[float]
    success: bool
    side: str | None
    ended: bool
    frames: list[NDArray[np.uint8]]


class Host(ABC):
    """Sub-environments by number, all of one task at a time."""

    @abstractmethod
    def make(self, count: int) -> dict[TaskKey, int | None]:
        """Makes sure that there are at least `count` sub-environments.

        Returns:
            The tasks in their order, each with the number of its starts (see `environment.number_of_starts`).
        """

    @abstractmethod
    def select(self, task: TaskKey) -> Spaces:
        """Turns to a task; the sub-environments of the one before are closed."""

    @abstractmethod
    def start(self, orders: Sequence[StartOrder]) -> list[Started]:
        """Begins episodes, answers in the order of `orders`."""

    @abstractmethod
    def step(self, orders: Sequence[ChunkOrder]) -> list[Outcome]:
        """Executes chunks, answers in the order of `orders`."""

    @abstractmethod
    def close(self) -> None:
        """Closes everything; may be called again."""


class LocalHost(Host):
    """Sub-environments in this process.

    LeRobot makes those of all tasks at once; most load their simulator at the first reset, and it is freed as
    the run turns to the next task, so that memory holds one task at a time.

    Args:
        env_cfg: a LeRobot `EnvConfig`.
    """

    def __init__(self, env_cfg: Any) -> None:
        self.env_cfg = env_cfg
        self.name = f"env.type={env_cfg.type}"
        self._made: dict[TaskKey, gym.vector.VectorEnv[Any, Any, Any]] = {}
        self._starts: dict[TaskKey, int | None] = {}
        self._count = 0
        self._selected: TaskKey | None = None
        self._slots: list[_Slot] = []

    def make(self, count: int) -> dict[TaskKey, int | None]:
        """Makes sure that there are at least `count` sub-environments; gives the tasks with their starts."""
        if count > self._count:
            self.close()
            self._make(count)
        return dict(self._starts)

    def select(self, task: TaskKey) -> Spaces:
        """Turns to a task; the sub-environments of the one before are closed."""
        if self._selected != task:
            if self._selected is not None:
                self._slots = []
                close_envs([self._made.pop(self._selected)])
                self._selected = None
            if task not in self._made:
                # Closed before: not every environment works again after that.
                count = self._count
                self.close()
                self._make(count)
            vector = self._made[task].unwrapped
            if not isinstance(vector, gym.vector.SyncVectorEnv):
                raise UserError(
                    f"{self.name}: this environment is no SyncVectorEnv of separate sub-environments, which "
                    "paired episodes need; give one that is."
                )
            self._slots = [_Slot(env, self.name) for env in vector.envs]
            self._selected = task
        env = self._slots[0].env
        return Spaces(env.observation_space, env.action_space)

    def start(self, orders: Sequence[StartOrder]) -> list[Started]:
        """Begins episodes."""
        return [self._slots[order.slot].start(order) for order in orders]

    def step(self, orders: Sequence[ChunkOrder]) -> list[Outcome]:
        """Executes chunks."""
        return [self._slots[order.slot].step(order.actions) for order in orders]

    def close(self) -> None:
        """Closes all sub-environments."""
        made, self._made = self._made, {}
        self._slots, self._selected, self._count = [], None, 0
        close_envs(list(made.values()))

    def _make(self, count: int) -> None:
        made = make_environments(self.env_cfg, count)
        self._made = {
            (group, number): vector for group, tasks in made.items() for number, vector in tasks.items()
        }
        self._starts = {key: number_of_starts(vector) for key, vector in self._made.items()}
        self._count = count


class _Slot:
    """One sub-environment and the episode that runs in it."""

    def __init__(self, env: gym.Env[Any, Any], name: str) -> None:
        self.env = env
        self.name = name
        self.seed = 0
        self.length = 0
        self.limit: int | None = None
        self.recorded = False
        self.kept = 1
        self.all_kept = False

    def start(self, order: StartOrder) -> Started:
        self.seed, self.length, self.recorded = order.seed, 0, order.recorded
        self.kept, self.all_kept = order.kept, order.all_kept
        with self._faults("cannot be reset"):
            observation = reset(self.env, order.seed)
            task = instruction(self.env)
            self.limit = step_limit(self.env)
            picture = frame(self.env, observation) if self.recorded else None
        return Started(self._own(observation), task, picture)

    def step(self, actions: NDArray[np.float32]) -> Outcome:
        rewards: list[float] = []
        frames: list[NDArray[np.uint8]] = []
        observations: list[Any] = []
        success, side, ended = False, None, False
        with self._faults("failed"):
            for number, action in enumerate(actions, start=1):
                observation, reward, terminated, truncated, info = self.env.step(action)
                self.length += 1
                rewards.append(float(reward))
                success = success or bool(info.get("is_success", False))
                if "side" in info:
                    side = str(info["side"])
                if self.recorded:
                    frames.append(frame(self.env, observation))
                if self.all_kept or number > len(actions) - self.kept:
                    observations.append(self._own(observation))
                ended = bool(terminated or truncated or self.length == self.limit)
                if ended:
                    break
        brought = observations if self.all_kept or not ended else []
        return Outcome(brought, rewards, success, side, ended, frames)

    def _own(self, observation: Any) -> Any:
        """What outlives the next step: environments may write all their observations into the same arrays."""
        return deepcopy(observation) if self.all_kept or self.kept > 1 else observation

    @contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if machine_refuses(error) or ran_out_of_memory(error):
                raise
            raise UserError(
                f"{self.name}: the environment {what} in the episode of seed {self.seed}, step {self.length} "
                f"({reason(error)}); check the env options, or leave this seed out."
            ) from error
