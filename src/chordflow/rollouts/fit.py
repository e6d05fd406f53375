"""Whether an environment shows and takes what a policy was trained for, said before the policy stumbles."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chordflow.errors import UserError
from chordflow.policies import FlowPolicy, check_inputs


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
