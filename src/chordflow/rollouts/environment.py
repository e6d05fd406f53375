"""LeRobot's environments, one sub-environment at a time.

LeRobot's factory makes a vector environment, whose `step` drives all sub-environments at once and resets
those that ended without a seed. Rollouts here step the sub-environments themselves: an episode starts by
an explicit seed only, and none is stepped beyond its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import concatenate, create_empty_array
from lerobot.envs import make_env, preprocess_observation
from lerobot.envs.utils import NEW_ROLLOUT_OPTION
from numpy.typing import NDArray

from chordflow.errors import UserError, machine_refuses, ran_out_of_memory
from chordflow.quiet import quiet_stdout


def make_environments(
    env_cfg: Any, count: int, use_async_envs: bool = False
) -> dict[str, dict[int, gym.vector.VectorEnv[Any, Any, Any]]]:
    """LeRobot's `{suite: {number of the task: vector environment}}`, with `count` sub-environments for each task.

    Raises:
        UserError: if they cannot be made: a package that is not installed, an unknown task, wrong options.
    """
    with quiet_stdout():
        try:
            return make_env(env_cfg, n_envs=count, use_async_envs=use_async_envs)
        except Exception as error:
            if machine_refuses(error) or ran_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"env.type={env_cfg.type}: the environment cannot be made ({reason}); check the env options and "
                "that its package is installed."
            ) from error


def reset(env: gym.Env[Any, Any], seed: int) -> Any:
    """Starts the episode of `seed` and returns its first observation."""
    inner = env.unwrapped
    if hasattr(inner, "init_state_id"):
        # LIBERO goes through its stored starts by sub-environment and resets, whatever the seed; in `lerobot-eval` an
        # episode that ends early takes one more (LeRobot's issue 4152). Here the start is a function of the seed:
        # its remainder by their number.
        inner.init_state_id = seed
    # The option that LeRobot's rollout passes: its wrappers tell a new episode from an autoreset by it.
    observation, _ = env.reset(seed=seed, options={NEW_ROLLOUT_OPTION: True})
    return observation


def number_of_starts(vector: gym.vector.VectorEnv[Any, Any, Any]) -> int | None:
    """How many starts the episodes of a task have between them: seeds that differ by so many begin alike.

    None where each seed has a start of its own.
    """
    for env in getattr(vector.unwrapped, "envs", None) or []:
        inner = env.unwrapped
        stored = getattr(inner, "_init_states", None)
        if hasattr(inner, "init_state_id") and getattr(inner, "init_states", False) and stored is not None:
            return len(stored)
    return None


def instruction(env: gym.Env[Any, Any]) -> str:
    """What LeRobot's rollout gives the policy as `task`: `task_description`, else `task`, else nothing."""
    for name in ("task_description", "task"):
        try:
            value = env.get_wrapper_attr(name)
        except (AttributeError, NotImplementedError):
            continue
        return str(value() if callable(value) else value)
    return ""


def step_limit(env: gym.Env[Any, Any]) -> int | None:
    """Steps after which LeRobot's rollout cuts an episode off; None where the environment names none."""
    try:
        return int(env.get_wrapper_attr("_max_episode_steps"))
    except (AttributeError, TypeError):
        return None


def batch_observations(space: gym.Space[Any], observations: Sequence[Any]) -> dict[str, Any]:
    """Joins observations of a `space` as a vector environment does, named as by LeRobot (images in [0, 1])."""
    joined = concatenate(space, observations, create_empty_array(space, n=len(observations)))
    return preprocess_observation(joined)


def frame(env: gym.Env[Any, Any], observation: Any) -> NDArray[np.uint8]:
    """A picture of the scene, uint8 (height, width, 3): what `render` returns, else the first camera.

    Raises:
        UserError: if the environment shows neither.
    """
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
