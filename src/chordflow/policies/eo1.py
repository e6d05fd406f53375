"""The adapter for EO1 (Qu et al. 2025, arXiv 2508.21112): Qwen2.5-VL that denoises the action tokens of its prompt.

EO1 already follows the canonical convention (t = 1 noise, v = noise - action) and draws standard normal noise,
so nothing is converted. The prompt is causal: system message, images, state, task, then H action tokens, and
an end that no action sees. What stands before the action tokens is encoded once into keys and values; the same
backbone reads them and the noisy actions at every step. A small head embeds these and projects them back.

Shapes: B batch, H chunk size, D = max_action_dim, A real action dimension, N tokens of a prompt, P those before
the action, L layers, G key-value heads, E head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from lerobot.policies.eo1.modeling_eo1 import EO1Policy
from lerobot.utils.constants import OBS_STATE
from torch import Tensor, nn

from chordflow.errors import UserError
from chordflow.policies.base import Batch, FlowPolicy, Role, role_by_beginning
from chordflow.policies.context import Context, PrefixContext

_ROLES = {
    Role.VISION: ("vlm_backbone.model.visual.",),
    Role.LANGUAGE: ("vlm_backbone.model.language_model.", "vlm_backbone.lm_head."),
    Role.PREFIX_PROJECTIONS: ("state_proj.",),
    Role.ACTION_HEAD: ("action_in_proj.", "action_out_proj.", "action_time_mlp_in.", "action_time_mlp_out."),
}


@dataclass(frozen=True)
class EO1Context(PrefixContext):
    """The keys and values of what stands before the action tokens, and where these stand.

    Attributes:
        positions: (B, 3, H), int64, the action tokens' places in time, height and width for the rotary
            embedding. They count real tokens alone, so padding does not shift them.
    """

    pad_left: ClassVar[bool] = True

    positions: Tensor


class EO1FlowPolicy(FlowPolicy):
    """A stock `EO1Policy` as a velocity field."""

    family = "eo1"
    policy_class = EO1Policy
    config_assets: ClassVar[tuple[str, ...]] = ("vlm_base",)
    processor_assets: ClassVar[tuple[str, ...]] = ("processor_name",)
    steps_field: ClassVar[str] = "num_denoise_steps"
    encoded_once: ClassVar[str] = "keys and values of images, state and language"
    # The backbone is the expert. A student that trains it encodes its own contexts again at each step;
    # with `action_head` alone it keeps the teacher's backbone and shares the teacher's, which is cheap.
    default_train_roles: ClassVar[tuple[Role, ...]] = (Role.LANGUAGE, Role.ACTION_HEAD)

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raises UserError where a layer would not keep all of the prefix."""
        super().check_config(config)
        if "sliding_attention" in config.text_config.layer_types:
            raise UserError(
                "use_sliding_window=true in vlm_config of config.json: its layers drop a part of the prefix, which "
                "cannot be encoded once then; give a checkpoint whose backbone has full attention."
            )

    def encode(self, batch: Batch) -> EO1Context:
        """Encodes what stands before the action tokens.

        Raises:
            UserError: if the prompts do not hold one action token for each action of a chunk.
        """
        model = self.policy.model
        backbone = model.vlm_backbone.model
        tokens, mask, kinds = _left_padded(batch)
        start = self._action_start(tokens == batch["action_token_id"])
        positions, _ = backbone.get_rope_index(
            tokens, image_grid_thw=batch["image_grid_thw"], attention_mask=mask, mm_token_type_ids=kinds
        )
        embeddings = model.embed_prefix(
            tokens[:, :start],
            states=self.policy.prepare_state(batch[OBS_STATE]),
            state_token_id=batch["state_token_id"],
            action_token_id=batch["action_token_id"],
        )
        outputs = backbone(
            input_ids=tokens[:, :start],
            attention_mask=mask[:, :start],
            position_ids=positions[..., :start],
            inputs_embeds=embeddings,
            pixel_values=batch["pixel_values"],
            image_grid_thw=batch["image_grid_thw"],
            mm_token_type_ids=kinds[:, :start],
            use_cache=True,
        )
        places = positions[..., start : start + self.chunk.horizon].transpose(0, 1)
        return EO1Context(PrefixContext.stack(outputs.past_key_values), mask[:, :start].bool(), places)

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """The backbone on the noisy actions, and the head's projection of what it makes of them.

        The stock sampler does the same inside `sample_actions`, where it cannot be called.
        """
        assert isinstance(context, EO1Context)
        model = self.policy.model
        embeddings = model.embed_suffix(t, x_t).to(model.get_input_embeddings().weight.dtype)
        outputs = model.vlm_backbone.model(
            attention_mask=nn.functional.pad(context.mask, (0, x_t.shape[1]), value=True),
            past_key_values=context.cache(),
            inputs_embeds=embeddings,
            position_ids=context.positions.transpose(0, 1),
            use_cache=True,
        )
        with model.flow_head_autocast_context():
            v_t = model.action_out_proj(outputs.last_hidden_state.to(model.action_out_proj.dtype))
        return v_t.to(x_t.dtype)

    def action_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Zero-padded demonstrations; EO1's loss counts padding unless its config says otherwise."""
        config = self.config
        return self.padded_target(
            batch,
            padded_dims=config.supervise_padding_action_dims,
            padded_actions=config.supervise_padding_actions,
        )

    @property
    def fresh_fields(self) -> Mapping[str, Any]:
        """The constructor fetches the weights of `vlm_base` unless it knows that a checkpoint's will follow."""
        return {"pretrained_path": Path(self.config.vlm_base)}

    def role_of(self, name: str) -> Role:
        """The visual tower with its merger; the text model; `state_proj`; what embeds and projects actions."""
        return role_by_beginning(name.removeprefix("model."), _ROLES, self.family)

    @property
    def graph_obstacle(self) -> str:
        """With start and places fixed before tracing, `get_window_index` still counts the windows of images."""
        return (
            "Qwen2.5-VL computes the places of its tokens and the windows of its images from what it is shown "
            "(get_rope_index, get_window_index)"
        )

    def _action_start(self, is_action: Tensor) -> int:
        """Where the action tokens (B, N) begin, in all rows alike."""
        horizon, width = self.chunk.horizon, is_action.shape[1]
        start = int(is_action[0].int().argmax())
        columns = torch.arange(width, device=is_action.device)
        expected = (columns >= start) & (columns < start + horizon)
        if not torch.equal(is_action, expected.expand_as(is_action)) or start + horizon > width:
            raise UserError(
                f"the prompts hold {is_action.sum(dim=1).tolist()} action tokens where chunk_size={horizon} in "
                "config.json needs as many in one run; make chunk_size in policy_preprocessor.json the same, and "
                "keep EO1's special tokens out of the task."
            )
        return start


def _left_padded(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and token kinds (B, N each) with all padding in front.

    EO1's preprocessor pads behind where the batch holds demonstrations, which would set the action tokens of
    prompts of unequal length in different columns.
    """
    tokens, mask, kinds = (batch[key] for key in ("input_ids", "attention_mask", "mm_token_type_ids"))
    order = mask.bool().int().argsort(dim=1, stable=True)
    return tokens.gather(1, order), mask.gather(1, order), kinds.gather(1, order)
