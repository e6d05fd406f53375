"""Vector environments of tasks, as LeRobot's commands take them."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from lerobot.envs.utils import _LazyAsyncVectorEnv

from lerobot_env_metaworld_light.env import LightMetaworldEnv
from lerobot_env_metaworld_light.tasks import tasks_of


def make_vector_envs(
    names: str, n_envs: int, use_async_envs: bool, options: dict[str, Any]
) -> dict[str, dict[int, gym.vector.VectorEnv]]:
    """Make `n_envs` environments of each task, as {group or task: {number: vector environment}}.

    Args:
        names: tasks and groups, joined by commas.
        n_envs: environments of each.
        use_async_envs: whether they live in processes of their own, started as they are first used.
        options: of `LightMetaworldEnv`.

    Raises:
        ValueError: if a task is unknown.
    """
    made: dict[str, dict[int, gym.vector.VectorEnv]] = {}
    for group, tasks in tasks_of(names).items():
        made[group] = {}
        for number, task in enumerate(tasks):
            makers = [_maker(task, options) for _ in range(n_envs)]
            if use_async_envs and n_envs > 1:
                made[group][number] = _LazyAsyncVectorEnv(makers)
            else:
                made[group][number] = gym.vector.SyncVectorEnv(makers)
    return made


def _maker(task: str, options: dict[str, Any]) -> Callable[[], LightMetaworldEnv]:
    return lambda: LightMetaworldEnv(task, **options)
