"""What the adapters of LeRobot's families have in common: an adapter states its family's facts and little more.

Shapes: B batch, H chunk size, D padded action dimension, A real action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from lerobot.policies.common.vla_utils import pad_vector
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor, nn

from chordflow.errors import UserError
from chordflow.policies.base import Batch, ChunkSpec, FlowPolicy, Role, StockPolicy
from chordflow.quiet import quiet_stdout

RELATIVE_ACTIONS = (
    "such a checkpoint's actions depend on the state that was seen last, so an endpoint alone is no action; give a "
    "checkpoint with absolute actions"
)


class LeRobotFlowPolicy(FlowPolicy):
    """A stock LeRobot policy as a velocity field.

    Subclasses set the class attributes, and write `encode`, `velocity` and `role_of`; the rest fits a policy
    with `chunk_size`, `max_action_dim` and `n_action_steps` that draws standard normal noise.

    Attributes:
        steps_field: what the family's config calls its number of solver steps.
        noise_at: the family's own time of noise, 1 or 0; where it is 0, `native_time` and `canonical` convert.
        encoded_once: what of an observation a context holds, in a few words, for the table of support.

    Raises:
        UserError: if the config asks for something that cannot be reflowed.
    """

    steps_field: ClassVar[str]
    noise_at: ClassVar[int] = 1
    encoded_once: ClassVar[str]

    def __init__(self, policy: Any, preprocessor: Any, postprocessor: Any) -> None:
        self.check_config(policy.config)
        self.policy = policy
        self.module = policy
        self.config = policy.config
        self.preprocessor = preprocessor
        self.postprocessor = postprocessor

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raises UserError, with the field and its value, for what the adapter cannot do."""
        if getattr(config, "use_relative_actions", False):
            raise UserError(f"use_relative_actions=true in config.json: {RELATIVE_ACTIONS}.")

    @property
    def chunk(self) -> ChunkSpec:
        """Shape of noise and chunk."""
        return ChunkSpec(
            horizon=self.config.chunk_size,
            padded_dim=self.config.max_action_dim,
            action_dim=self.config.action_feature.shape[0],
            num_executed=self.config.n_action_steps,
        )

    @property
    def image_keys(self) -> list[str]:
        """The cameras, without the blank ones that `empty_cameras` adds to the config."""
        blank = {f"{OBS_IMAGES}.empty_camera_{i}" for i in range(getattr(self.config, "empty_cameras", 0))}
        return [key for key in self.config.image_features if key not in blank]

    @property
    def statistics(self) -> Mapping[str, Mapping[str, Any]]:
        """Those of the step that normalises, for all features of the dataset that the policy was trained on."""
        return {
            self.own_name(key): values
            for step in self.preprocessor.steps
            for key, values in (getattr(step, "stats", None) or {}).items()
        }

    @property
    def state_shape(self) -> tuple[int, ...] | None:
        """The shape of the state's statistics, or the config's where there are none.

        `lerobot-train` gives a checkpoint that it fine-tunes the statistics of its dataset, but leaves the base
        checkpoint's `input_features` in the config.
        """
        own = self.statistics.get(OBS_STATE, {})
        known = [np.shape(own[kind]) for kind in ("mean", "min", "q01", "q10") if kind in own]
        return (known[0] or (1,)) if known else super().state_shape

    def own_name(self, key: str) -> str:
        """What the preprocessor's `rename_map` makes of the observation `key`."""
        for step in self.preprocessor.steps:
            key = getattr(step, "rename_map", {}).get(key, key)
        return key

    def stock(self) -> StockPolicy:
        """The policy and its pipelines as they were loaded."""
        return StockPolicy(self.policy, self.preprocessor, self.postprocessor)

    def preprocess(self, items: Mapping[str, Any]) -> Batch:
        """Runs the checkpoint's own preprocessor."""
        return self.preprocessor(dict(items))

    def to_action(self, endpoint: Tensor) -> Tensor:
        """Endpoints (B, H, D) to actions in the robot's units (B, H, A)."""
        actions = endpoint[..., : self.chunk.action_dim]
        flat = self.postprocessor(actions.flatten(0, 1).clone())
        return flat.unflatten(0, actions.shape[:2])

    def native_time(self, t: Tensor) -> Tensor:
        """The family's own time for a canonical one (1 noise, 0 action)."""
        return t if self.noise_at == 1 else 1 - t

    def canonical(self, velocity: Tensor) -> Tensor:
        """The canonical velocity for the family's own: where time runs the other way, so does v."""
        return velocity if self.noise_at == 1 else -velocity

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Standard normal float32 over the whole chunk and all padded dimensions."""
        return torch.randn((n, *self.chunk.shape), generator=generator, device=generator.device)

    def action_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Zero-padded demonstrations, valid in the real dimensions inside the episode."""
        return self.padded_target(batch)

    def padded_target(
        self, batch: Batch, *, padded_dims: bool = False, padded_actions: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Zero-padded demonstrations (B, H, D), and where a loss counts that may count padding of either kind."""
        target = pad_vector(batch[ACTION], self.chunk.padded_dim)
        valid = torch.ones_like(target, dtype=torch.bool)
        if not padded_dims:
            valid[..., self.chunk.action_dim :] = False
        is_pad = batch.get("action_is_pad")
        if is_pad is not None and not padded_actions:
            valid &= ~is_pad.bool()[..., None]
        return target, valid

    @property
    def default_num_steps(self) -> int:
        """`steps_field` of the config; 0 where it is null, which `load_flow_policy` refuses."""
        return int(getattr(self.config, self.steps_field) or 0)

    def set_num_steps(self, num_steps: int) -> None:
        """Sets `steps_field`."""
        if not hasattr(self.config, self.steps_field):
            raise ValueError(f"{type(self.config).__name__} has no field {self.steps_field!r}")
        setattr(self.config, self.steps_field, num_steps)

    def set_num_executed(self, num_executed: int) -> None:
        """Sets `n_action_steps`; raises UserError for a number that a chunk does not have."""
        self.chunk.check_executed(num_executed)
        self.config.n_action_steps = num_executed

    @property
    def fresh_fields(self) -> Mapping[str, Any]:
        """Fields of the config with which the constructor loads no pretrained weights."""
        return {}

    def build_fresh(self) -> nn.Module:
        """A policy of the same config, as the family's own constructor makes it."""
        with quiet_stdout():
            return self.policy_class(replace(self.config, **self.fresh_fields))


def role_by_beginning(name: str, beginnings: Mapping[Role, tuple[str, ...]], family: str) -> Role:
    """The first role among whose `beginnings` is that of a parameter's name; raises ValueError if none is."""
    for role, own in beginnings.items():
        if name.startswith(own):
            return role
    raise ValueError(
        f"parameter {name!r} has no known role in {family}; this LeRobot version is not supported"
    )
