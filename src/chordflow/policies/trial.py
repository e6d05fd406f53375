"""One observation through a loaded checkpoint, before a job relies on it.

Shapes: B batch, H chunk size, D padded action dimension, A real action dimension, T observed steps.
"""

from __future__ import annotations

from typing import Any

import torch
from lerobot.configs import FeatureType
from torch import Tensor

from chordflow.errors import UserError, machine_refuses, ran_out_of_memory, reason
from chordflow.flow.seeds import generator
from chordflow.policies.base import FlowPolicy
from chordflow.policies.files import CONFIG, POSTPROCESSOR, PREPROCESSOR, WEIGHTS
from chordflow.policies.processors import lower_bound


@torch.no_grad()
def try_out(policy: FlowPolicy, preprocessor: Any, where: str) -> None:
    """Takes a blank observation to actions in one step, so that what cannot work fails before any training.

    Args:
        policy: a loaded checkpoint.
        preprocessor: its observation pipeline, as LeRobot loads it.
        where: the option that names the checkpoint and its value, for messages.

    Raises:
        UserError: naming the part that fails, or if actions are not finite or of another size than the chunk's.
    """
    chunk = policy.chunk
    if chunk.action_dim > chunk.padded_dim:
        raise UserError(
            f"{where}: {CONFIG} has actions of size {chunk.action_dim}, but max_action_dim is {chunk.padded_dim}; give "
            "a checkpoint that was trained with a max_action_dim of at least that size."
        )
    part = f"the preprocessor ({PREPROCESSOR})"
    # What a family draws in passing leaves the caller's stream as it was.
    with torch.random.fork_rng(devices=[]):
        try:
            batch = policy.preprocess(blank_observation(policy, preprocessor))
            part = f"the network ({CONFIG})"
            context = policy.encode(batch)
            noise = policy.sample_noise(1, generator(0, "trial")).to(policy.device)
            endpoint = noise - policy.velocity(noise, torch.ones(1, device=policy.device), context)
            part = f"the postprocessor ({POSTPROCESSOR})"
            actions = policy.to_action(endpoint)
        except Exception as error:
            if isinstance(error, UserError) or machine_refuses(error):
                raise
            if ran_out_of_memory(error):
                raise UserError(
                    f"{where}: one observation does not fit into the memory of {policy.device} ({reason(error)}); give "
                    "a --device with more, or free what other programs hold of it."
                ) from error
            raise UserError(
                f"{where}: {part} fails on a blank observation of the sizes in {CONFIG} and {PREPROCESSOR} "
                f"({reason(error)}); give a checkpoint whose config, statistics and steps are of one robot."
            ) from error
    expected = (1, chunk.horizon, chunk.action_dim)
    if tuple(actions.shape) != expected:
        raise UserError(
            f"{where}: {POSTPROCESSOR} makes actions of shape {tuple(actions.shape)} of a chunk of {expected}; give a "
            "checkpoint whose config, statistics and steps are of one robot."
        )
    if not chunk.real(actions).isfinite().all():
        raise UserError(
            f"{where}: its steps end in NaN or infinite actions, on a blank observation too; check the weights in "
            f"{WEIGHTS}; a student's training diverged: train it again with a lower --optimizer.lr."
        )


def blank_observation(policy: FlowPolicy, preprocessor: Any) -> dict[str, Any]:
    """One observation as an environment would give it: black images, and a state that normalisation makes small.

    Vectors have the size of their statistics: a fine-tuned checkpoint keeps the sizes of the model that it began with
    in `input_features`.
    """
    renames = [getattr(step, "rename_map", {}) for step in preprocessor.steps]
    indices = policy.observation_delta_indices or [0]
    items: dict[str, Any] = {"task": ["go"]}
    for key, feature in (policy.config.input_features or {}).items():
        if feature.type not in (FeatureType.STATE, FeatureType.ENV) and key not in policy.image_keys:
            continue
        value: Tensor = torch.zeros(feature.shape)
        if feature.type is FeatureType.VISUAL:
            # Data bring channels first, in whatever order the config lists them.
            value = value.movedim(-1, 0) if value.shape[-1] <= 4 < value.shape[0] else value
        else:
            held = lower_bound(preprocessor.steps, key, feature.type)
            value = value if held is None else held.cpu()
        # What the preprocessor renames away never reaches the policy under its own name.
        name = next(
            (
                raw
                for raw in (key, *(old for names in renames for old in names))
                if policy.own_name(raw) == key
            ),
            None,
        )
        if name is not None:
            # A single step has no axis: SmolVLA's adaptation to Aloha takes none.
            steps = (len(indices),) if len(indices) > 1 else ()
            items[name] = value.expand(1, *steps, *value.shape).clone()
    return items
