"""The adapter for LeRobot's multi-task diffusion transformer with its flow-matching objective.

The family runs from noise at t = 0 to the action at t = 1, so time and velocity change sign here. Images (CLIP),
prompt (CLIP) and states of the last `n_obs_steps` control steps become one conditioning vector; a transformer
that is modulated by it and by the time denoises the chunk. A chunk begins with the oldest of these steps, so its
first `n_obs_steps - 1` actions lie in the past when it arrives.

Shapes: B batch, T = n_obs_steps, C size of the conditioning vector, H chunk size, D = A action dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from lerobot.policies.multi_task_dit.modeling_multi_task_dit import (
    CLIPTextEncoder,
    CLIPVisionEncoder,
    MultiTaskDiTPolicy,
)
from lerobot.utils.constants import OBS_STATE
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPVisionModel

from chordflow.errors import UserError
from chordflow.policies.base import Batch, ChunkSpec, FlowPolicy, Role, role_by_beginning
from chordflow.policies.context import Context

_TEXT = "observation_encoder.text_encoder."
_ROLES = {
    Role.VISION: ("observation_encoder.vision_encoder.", "observation_encoder.vision_encoders."),
    Role.LANGUAGE: (f"{_TEXT}text_encoder.",),
    Role.PREFIX_PROJECTIONS: (f"{_TEXT}projection.",),
    Role.ACTION_HEAD: ("noise_predictor.",),
}


@dataclass(frozen=True)
class ConditioningContext(Context):
    """What the transformer is modulated by.

    Attributes:
        vector: (B, C), the features of all T steps side by side.
    """

    vector: Tensor


class MultiTaskDiTFlowPolicy(FlowPolicy):
    """A stock `MultiTaskDiTPolicy` as a velocity field."""

    family = "multi_task_dit"
    policy_class = MultiTaskDiTPolicy
    config_assets: ClassVar[tuple[str, ...]] = ("vision_encoder_name", "text_encoder_name")
    steps_field: ClassVar[str] = "num_integration_steps"
    noise_at: ClassVar[int] = 0
    encoded_once: ClassVar[str] = "one vector of images, language and states"

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raises UserError for what is no flow, or is not followed by Euler steps."""
        super().check_config(config)
        if not config.is_flow_matching:
            raise UserError(
                f"objective={config.objective} in config.json is no flow, which alone can be straightened; give a "
                "checkpoint trained with --policy.objective=flow_matching."
            )
        if config.integration_method != "euler":
            raise UserError(
                f"integration_method={config.integration_method} in config.json: teacher and student are "
                "measured by Euler steps; set integration_method to euler."
            )

    @property
    def chunk(self) -> ChunkSpec:
        """Shape of noise and chunk; nothing is padded, and the actions before the present are never run."""
        config = self.config
        first = config.n_obs_steps - 1
        dim = config.action_feature.shape[0]
        return ChunkSpec(
            horizon=config.horizon,
            padded_dim=dim,
            action_dim=dim,
            # The stock policy cuts its chunk in the same way, and computes the next one when it is used up.
            num_executed=min(config.n_action_steps, config.horizon - first),
            first_executed=first,
        )

    def encode(self, batch: Batch) -> ConditioningContext:
        """Encodes images (B, T, 3, height, width), states (B, T, S) and the prompt, which gets no gradients.

        A policy with a single step also takes them without the axis T.

        Raises:
            ValueError: if the states are not those of T steps.
        """
        state, steps = batch[OBS_STATE], self.config.n_obs_steps
        if state.dim() == 2 and steps == 1:
            state = state[:, None]
        if state.dim() != 3 or state.shape[1] != steps:
            raise ValueError(
                f"{OBS_STATE} has shape {tuple(state.shape)}; give the last {steps} steps: (batch, {steps}, state)"
            )
        prepared = self.policy._prepare_batch({**batch, OBS_STATE: state})
        return ConditioningContext(self.policy.observation_encoder.encode(prepared))

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """The transformer's own velocity, turned round."""
        assert isinstance(context, ConditioningContext)
        vector = context.vector.to(x_t.dtype)
        return self.canonical(self.policy.noise_predictor(x_t, self.native_time(t), conditioning_vec=vector))

    @property
    def free_prompt(self) -> bool:
        """Not where padding in front moves the words: CLIP counts their places from the first token."""
        return self.config.tokenizer_padding_side == "right"

    def action_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Raises UserError where `sigma_min` ends paths beside the demonstrations, not at them."""
        if self.config.sigma_min > 0:
            raise UserError(
                f"sigma_min={self.config.sigma_min} in config.json: its paths end near demonstrations, not at them; "
                "use a method that needs none."
            )
        return self.padded_target(batch, padded_actions=not self.config.do_mask_loss_for_padding)

    def train_roles(self, roles: Iterable[Role]) -> dict[str, nn.Parameter]:
        """Raises UserError for the language: LeRobot's class runs its text encoder without gradients."""
        chosen = set(roles)
        if Role.LANGUAGE in chosen:
            raise UserError(
                "student.train holds language, but LeRobot runs this text encoder without gradients; leave it out "
                "(prefix_projections trains what follows it)."
            )
        return super().train_roles(chosen)

    def build_fresh(self) -> nn.Module:
        """A policy of the same config; its CLIP encoders, which the constructor loads, are random too."""
        policy = super().build_fresh()
        for module in policy.modules():
            if isinstance(module, CLIPVisionEncoder):
                module.model = CLIPVisionModel(module.model.config)
            elif isinstance(module, CLIPTextEncoder):
                module.text_encoder = CLIPTextModel(module.text_encoder.config)
        return policy.to(self.device)

    @classmethod
    def check_asset(cls, key: str, place: str) -> None:
        """Raises UserError for a CLIP folder that LeRobot would not take for one."""
        if key in cls.config_assets and "clip" not in place.lower():
            raise UserError(
                f"vlm.path={place}: LeRobot takes {key} for a CLIP model only where 'clip' is a part of its path; give "
                "the folder such a name."
            )

    def role_of(self, name: str) -> Role:
        """CLIP's image encoder(s); its text encoder; the projection of the text; the transformer."""
        return role_by_beginning(name, _ROLES, self.family)
