"""Whether an environment shows and takes what a policy was trained for, said before the policy stumbles."""

from __future__ import annotations

from typing import Any

from lerobot.utils.constants import OBS_IMAGE, OBS_PREFIX, OBS_STATE

from chordflow.errors import UserError
from chordflow.policies import FlowPolicy


def check_state(policy: FlowPolicy, env_cfg: Any, observation: dict[str, Any]) -> None:
    """Raises UserError if the state's size is another one than the checkpoint's.

    Args:
        policy: who is to act.
        env_cfg: a LeRobot `EnvConfig`.
        observation: under LeRobot's names, before the policy's preprocessor.
    """
    feature = policy.config.robot_state_feature
    state = observation.get(OBS_STATE)
    if feature is not None and state is not None and tuple(state.shape[1:]) != tuple(feature.shape):
        raise UserError(
            f"env.type={env_cfg.type}: {OBS_STATE} has shape {tuple(state.shape[1:])}, but the checkpoint was "
            f"trained with {tuple(feature.shape)}; give the environment that it was trained for."
        )


def check_inputs(policy: FlowPolicy, env_cfg: Any, observation: dict[str, Any]) -> None:
    """Raises UserError if cameras or the state are missing.

    Args:
        policy: who is to act.
        env_cfg: a LeRobot `EnvConfig`.
        observation: under LeRobot's names, before the policy's preprocessor, whose rename_map is heeded.
    """
    name = f"env.type={env_cfg.type}"
    keys, seen = policy.image_keys, {policy.own_name(key) for key in observation}
    missing = [key for key in keys if key not in seen]
    has = ", ".join(key for key in observation if key.startswith(OBS_PREFIX)) or "nothing"
    # A camera that the checkpoint does not know, where it lacks one: more likely another name than a blank.
    unknown = {key for key in seen if key.startswith(OBS_IMAGE)} - set(keys)
    if len(missing) > policy.max_missing_cameras or (missing and (unknown or len(missing) == len(keys))):
        raise UserError(
            f"{name} lacks the checkpoint's camera(s) {', '.join(missing)}; it observes {has}: map them with "
            "--rename_map."
        )
    if policy.config.robot_state_feature is not None and OBS_STATE not in seen:
        raise UserError(f"{name} has no {OBS_STATE}, which the checkpoint needs; it observes {has}.")


def check_actions(policy: FlowPolicy, env_cfg: Any, shape: tuple[int, ...]) -> None:
    """Raises UserError if the environment takes actions of another `shape` than the checkpoint's."""
    own = (policy.chunk.action_dim,)
    if tuple(shape) != own:
        raise UserError(
            f"env.type={env_cfg.type} takes actions of shape {tuple(shape)}, but the checkpoint's have shape "
            f"{own}; give the environment that it was trained for."
        )
