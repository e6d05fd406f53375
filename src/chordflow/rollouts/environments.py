"""LeRobot's environments: made by its factory, begun by a seed, and stepped one by one.

The vector environment that the factory makes steps all sub-environments at once and resets those that ended without a
seed. Here each is stepped by itself, begins by an explicit seed only, and is never stepped beyond its end. A whole
chunk of actions goes in and what came of it comes out, so that another process costs one message each way per chunk.

Shapes: A action dimension, K actions that are sent, k <= K that are executed before the episode ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import concatenate, create_empty_array
from lerobot.envs import close_envs, make_env, preprocess_observation
from lerobot.envs.utils import NEW_ROLLOUT_OPTION
from lerobot.utils.import_utils import register_third_party_plugins
from numpy.typing import NDArray

from chordflow.errors import UserError, explained, reason
from chordflow.quiet import quiet_stdout

type Vector = gym.vector.VectorEnv[Any, Any, Any]

TaskKey = tuple[str, int]
"""Suite and number of the task within it, as LeRobot names them."""


def register_environments() -> None:
    """Registers what is installed as lerobot_env_*, as LeRobot's own commands do, and the demo's environment."""
    # LeRobot looks for distributions, and chordflow's wheel holds the demo's without one.
    register_third_party_plugins()
    import_module("lerobot_env_detour")


def make_environments(env_cfg: Any, count: int, use_async_envs: bool = False) -> dict[TaskKey, Vector]:
    """The vector environment of each task, in LeRobot's order, with `count` sub-environments.

    Raises:
        UserError: if they cannot be made: a package that is not installed, an unknown task, wrong options.
    """

    def sentence(error: Exception) -> str:
        fault = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return (
            f"env.type={env_cfg.type}: the environment cannot be made ({fault}); check the env options and that its "
            "package is installed."
        )

    with explained(sentence), quiet_stdout():
        made = make_env(env_cfg, n_envs=count, use_async_envs=use_async_envs)
    return {(group, number): vector for group, tasks in made.items() for number, vector in tasks.items()}


def batch_observations(space: gym.Space[Any], observations: Sequence[Any]) -> dict[str, Any]:
    """Joins observations of a `space` as a vector environment does, named as by LeRobot (images in [0, 1])."""
    joined = concatenate(space, observations, create_empty_array(space, n=len(observations)))
    return preprocess_observation(joined)


class Spaces(NamedTuple):
    """What the sub-environments of a task show and take."""

    observation: gym.Space[Any]
    action: gym.Space[Any]


@dataclass(frozen=True)
class StartOrder:
    """Begin the episode of `seed` in the sub-environment number `slot`; send pictures where it is `recorded`.

    A chunk brings back the last `kept` observations: above 1 for a policy with a history, None for all of them, the
    last one of an episode included.
    """

    slot: int
    seed: int
    recorded: bool = False
    kept: int | None = 1


class Started(NamedTuple):
    """An episode's beginning: observation, instruction and, where recorded, a picture."""

    observation: Any
    task: str
    frame: NDArray[np.uint8] | None


@dataclass(frozen=True)
class ChunkOrder:
    """Execute `actions` (K, A) in the sub-environment number `slot`, as far as its episode goes."""

    slot: int
    actions: NDArray[np.float32]


@dataclass
class Outcome:
    """What came of a chunk: a reward for each of the k executed actions, and as many pictures where recorded.

    Attributes:
        observations: those after the last executed actions, the oldest first, as many as `StartOrder.kept` says; none
            where the episode is over, unless all were asked for.
        success: whether `is_success` was reported at any of them.
        side: the last `info["side"]`, None where there was none.
        ended: whether the episode is over.
    """

    observations: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success: bool = False
    side: str | None = None
    ended: bool = False
    frames: list[NDArray[np.uint8]] = field(default_factory=list)


class LocalHost:
    """Sub-environments by number, in this process, all of one task at a time.

    LeRobot makes those of all tasks at once; most load their simulator at the first reset, and it is freed as
    the run turns to the next task, so that memory holds one task at a time.
    """

    def __init__(self, env_cfg: Any) -> None:
        self.env_cfg = env_cfg
        self.name = f"env.type={env_cfg.type}"
        self._made: dict[TaskKey, Vector] = {}
        self._starts: dict[TaskKey, int | None] = {}
        self._count = 0
        self._selected: TaskKey | None = None
        self._slots: list[_Slot] = []

    def make(self, count: int) -> dict[TaskKey, int | None]:
        """Makes sure that there are at least `count` sub-environments; gives the tasks in LeRobot's order.

        Each comes with the number of its starts: seeds that differ by so many begin alike. It is None where each seed
        has a start of its own.
        """
        if count > self._count:
            self._make(count)
        return dict(self._starts)

    def select(self, task: TaskKey) -> Spaces:
        """Opens a task; the sub-environments of the one before are closed."""
        if self._selected != task:
            if self._selected is not None:
                close_envs([self._made.pop(self._selected)])
                self._slots, self._selected = [], None
            if task not in self._made:
                # Closed before: not every environment works again after that.
                self._make(self._count)
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
        """Begins episodes; answers in the order of `orders`."""
        return [self._slots[order.slot].start(order) for order in orders]

    def step(self, orders: Sequence[ChunkOrder]) -> list[Outcome]:
        """Executes chunks; answers in the order of `orders`."""
        return [self._slots[order.slot].step(order.actions) for order in orders]

    def close(self) -> None:
        """Closes everything; may be called again."""
        made, self._made = self._made, {}
        self._slots, self._selected, self._count = [], None, 0
        close_envs(list(made.values()))

    def _make(self, count: int) -> None:
        self.close()
        self._made = make_environments(self.env_cfg, count)
        self._starts = {key: _number_of_starts(vector) for key, vector in self._made.items()}
        self._count = count


class _Slot:
    """One sub-environment and the episode that runs in it."""

    def __init__(self, env: gym.Env[Any, Any], name: str) -> None:
        self.env, self.name = env, name
        self.order = StartOrder(0, 0)
        self.length = 0
        self.limit: int | None = None

    def start(self, order: StartOrder) -> Started:
        self.order, self.length = order, 0
        with self._faults("cannot be reset"):
            observation = _reset(self.env, order.seed)
            self.limit = _step_limit(self.env)
            picture = _frame(self.env, observation) if order.recorded else None
            task = instruction(self.env.get_wrapper_attr, "")
            return Started(self._own(observation), str(task() if callable(task) else task), picture)

    def step(self, actions: NDArray[np.float32]) -> Outcome:
        kept, outcome = self.order.kept, Outcome()
        with self._faults("failed"):
            for left, action in zip(reversed(range(len(actions))), actions, strict=True):
                observation, reward, terminated, truncated, info = self.env.step(action)
                self.length += 1
                outcome.rewards.append(float(reward))
                outcome.success |= bool(info.get("is_success", False))
                outcome.side = str(info["side"]) if "side" in info else outcome.side
                if self.order.recorded:
                    outcome.frames.append(_frame(self.env, observation))
                if kept is None or left < kept:
                    outcome.observations.append(self._own(observation))
                if terminated or truncated or self.length == self.limit:
                    outcome.ended = True
                    break
        if outcome.ended and kept is not None:
            outcome.observations.clear()
        return outcome

    def _own(self, observation: Any) -> Any:
        """What outlives the next step: environments may write all their observations into the same arrays."""
        return observation if self.order.kept == 1 else deepcopy(observation)

    def _faults(self, what: str) -> AbstractContextManager[None]:
        return explained(
            lambda error: (
                f"{self.name}: the environment {what} in the episode of seed {self.order.seed}, step {self.length} "
                f"({reason(error)}); check the env options, or leave this seed out."
            )
        )


def _reset(env: gym.Env[Any, Any], seed: int) -> Any:
    """Starts the episode of `seed` and returns its first observation."""
    inner = env.unwrapped
    if hasattr(inner, "init_state_id"):
        # LIBERO goes through its stored starts by sub-environment and resets, whatever the seed; in `lerobot-eval` an
        # episode that ends early takes one more (LeRobot's issue 4152). Here the start is the seed's remainder.
        inner.init_state_id = seed
    # The option that LeRobot's rollout passes: its wrappers tell a new episode from an autoreset by it.
    observation, _ = env.reset(seed=seed, options={NEW_ROLLOUT_OPTION: True})
    return observation


def _number_of_starts(vector: Vector) -> int | None:
    for env in getattr(vector.unwrapped, "envs", None) or []:
        inner = env.unwrapped
        stored = getattr(inner, "_init_states", None)
        if hasattr(inner, "init_state_id") and getattr(inner, "init_states", False) and stored is not None:
            return len(stored)
    return None


def instruction(get: Callable[[str], Any], otherwise: Any) -> Any:
    """What LeRobot's rollout gives the policy as `task`: the attribute `task_description`, else `task`."""
    for name in ("task_description", "task"):
        with suppress(AttributeError, NotImplementedError):
            return get(name)
    return otherwise


def _step_limit(env: gym.Env[Any, Any]) -> int | None:
    """Steps after which LeRobot's rollout cuts an episode off; None where the environment names none."""
    try:
        return int(env.get_wrapper_attr("_max_episode_steps"))
    except (AttributeError, TypeError):
        return None


def _frame(env: gym.Env[Any, Any], observation: Any) -> NDArray[np.uint8]:
    """A picture of the scene, uint8 (height, width, 3): what `render` returns, else the first camera."""
    picture = env.render() if env.render_mode is not None else None
    if not isinstance(picture, np.ndarray):
        picture = observation.get("pixels") if isinstance(observation, dict) else None
        if isinstance(picture, dict):
            picture = next(iter(picture.values()), None)
    if picture is None:
        raise UserError(
            "record_frames: the environment neither renders nor has a camera; set env.render_mode=rgb_array."
        )
    return np.array(picture, dtype=np.uint8)
