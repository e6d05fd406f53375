"""An environment that goes through stored starts as LeRobot's LIBERO does, in two tasks of a suite."""

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
from lerobot.envs.configs import EnvConfig

from drift_env import TIME_LIMIT, DriftEnv, DriftEnvConfig


class StoredStartsEnv(DriftEnv):
    """`init_state_id`, `_init_states` and `reset` are those of LeRobot's `LiberoEnv`."""

    begun: ClassVar[list[tuple[int, int | None, int]]] = []
    """Task, seed and start of every episode."""

    def __init__(self, task: int, index: int, count: int, starts: int, config: Any) -> None:
        super().__init__(tuple(config.cameras), config.action_dim, config.state_dim, config.render_mode)
        self.task_id = task
        self.init_states = starts > 0
        self._init_states = [1000 + start for start in range(starts)] if self.init_states else None
        self.init_state_id = index
        self._reset_stride = count
        self._max_episode_steps = TIME_LIMIT

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """Whatever the seed, the next stored start."""
        drawn = seed
        if self.init_states and self._init_states is not None:
            drawn = self._init_states[self.init_state_id % len(self._init_states)]
            self.init_state_id += self._reset_stride
        self.begun.append((self.task_id, seed, drawn if drawn is not None else -1))
        return super().reset(seed=drawn, options=options)


@EnvConfig.register_subclass("stored_starts_of_the_tests")
@dataclass
class StoredStartsConfig(DriftEnvConfig):
    """Two tasks, each with `starts` stored starts; 0 has every seed begin by itself."""

    starts: int = 3
    tasks: int = 2

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        def make(task: int, index: int) -> Any:
            return lambda: StoredStartsEnv(task, index, n_envs, self.starts, self)

        def vector(task: int) -> gym.vector.SyncVectorEnv:
            fns = [make(task, index) for index in range(n_envs)]
            return gym.vector.SyncVectorEnv(fns, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP)

        return {"stored": {task: vector(task) for task in range(self.tasks)}}
