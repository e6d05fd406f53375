"""The adapters for pi0 (Black et al. 2024, arXiv 2410.24164) and pi0.5 (Physical Intelligence 2025, arXiv 2504.16054).

Both already follow the canonical convention (t = 1 noise, v = noise - action) and draw standard normal noise, so
nothing is converted. Images and language are encoded once into keys and values. pi0's state is a token of the action
expert, which reads it afresh at every step; pi0.5's preprocessor writes it into the prompt, and time reaches the expert
through adaptive norms.

Shapes: B batch, H chunk size, D = max_action_dim, S = max_state_dim, T prompt tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from lerobot.policies.pi0.modeling_pi0 import PI0Policy
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor
from transformers import DynamicCache

from chordflow.policies.base import Batch, FlowPolicy, Role, role_by_beginning
from chordflow.policies.context import Context, PrefixContext, embed_prefix
from chordflow.policies.images import ImageResize

_MODEL = "model."
_VLM = "paligemma_with_expert.paligemma."
_EXPERT = "paligemma_with_expert.gemma_expert."


@dataclass(frozen=True)
class PI0Context(PrefixContext):
    """An encoded prefix, and the state that the expert reads as well.

    Attributes:
        state: (B, S), normalised and padded with zeros.
    """

    state: Tensor


class PI0FlowPolicy(FlowPolicy):
    """A stock `PI0Policy` as a velocity field.

    Attributes:
        head_projections: the expert's input and output layers.
        legacy_names: beginnings of older files' keys, and what LeRobot's loader makes of them.
    """

    family = "pi0"
    policy_class: type[Any] = PI0Policy
    steps_field: ClassVar[str] = "num_inference_steps"
    # Blank, masked images take the place of those that are absent.
    needs_every_camera: ClassVar[bool] = False
    supports_real_time_chunking: ClassVar[bool] = True
    encoded_once: ClassVar[str] = "keys and values of images and language"
    head_projections: ClassVar[tuple[str, ...]] = (
        "action_in_proj.", "action_out_proj.", "action_time_mlp_in.", "action_time_mlp_out.", "state_proj.",
    )  # fmt: skip
    legacy_names: ClassVar[Mapping[str, str]] = {
        "time_mlp_in.": "action_time_mlp_in.",
        "time_mlp_out.": "action_time_mlp_out.",
    }
    # openpi's files hold the language model's embedding and output layer once, under the latter's name.
    filled_from: ClassVar[Mapping[str, str]] = {
        f"{_MODEL}{_VLM}model.language_model.embed_tokens.weight": f"{_MODEL}{_VLM}lm_head.weight"
    }

    def __init__(self, policy: Any, preprocessor: Any, postprocessor: Any) -> None:
        super().__init__(policy, preprocessor, postprocessor)
        # LeRobot's own sampler does both before it predicts; its loader leaves the policy in training mode.
        policy.eval()
        language = policy.model.paligemma_with_expert.paligemma.model.language_model
        language.config._attn_implementation = "eager"

    def encode(self, batch: Batch) -> PrefixContext:
        """Encodes images and language into keys and values, and pads the state."""
        prefix = self.encode_prefix(batch)
        return PI0Context(prefix.keys_values, prefix.mask, self.policy.prepare_state(batch))

    def encode_prefix(self, batch: Batch) -> PrefixContext:
        """The keys and values of images and prompt (B, T)."""
        model = self.policy.model
        images, image_masks = self.policy._preprocess_images(batch)
        shown = slice(len(images) - self.num_blank(batch))
        embeddings, mask, attention = embed_prefix(
            partial(model.embed_prefix, images[shown], image_masks[shown]),
            model.paligemma_with_expert.embed_language_tokens,
            batch[OBS_LANGUAGE_TOKENS],
            batch[OBS_LANGUAGE_ATTENTION_MASK],
        )
        # A cache of our own: in training mode with gradient checkpointing the language model would return none.
        cache = DynamicCache()
        model.paligemma_with_expert.forward(
            attention_mask=prepare_attention_masks_4d(make_att_2d_masks(mask, attention)),
            position_ids=torch.cumsum(mask, dim=1) - 1,
            past_key_values=cache,
            inputs_embeds=[embeddings, None],
            use_cache=True,
        )
        return PrefixContext(PrefixContext.stack(cache), mask)

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """The family's own `denoise_step` on a cache made for this call."""
        assert isinstance(context, PrefixContext)
        state = {"state": context.state} if isinstance(context, PI0Context) else {}
        return self.policy.model.denoise_step(
            prefix_pad_masks=context.mask, past_key_values=context.cache(), x_t=x_t, timestep=t, **state
        )

    @property
    def image_resize(self) -> ImageResize:
        """LeRobot's `resize_with_pad_torch`."""
        height, width = self.config.image_resolution
        return ImageResize(height, width, "centre", clamp=True)

    def num_blank(self, shown: Collection[str]) -> int:
        """One for each camera that is not shown."""
        return sum(key not in shown for key in self.config.image_features)

    def action_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Zero-padded demonstrations; the loss counts the actions that are repeated behind an episode's end too."""
        return self.padded_target(batch, padded_actions=True)

    def parameter_name(self, key: str) -> str:
        """LeRobot's loader renames the keys of older files and adds `model.` to those of openpi's."""
        for old, new in self.legacy_names.items():
            if key.startswith(old):
                key = new + key.removeprefix(old)
        return key if key.startswith(_MODEL) else _MODEL + key

    def role_of(self, name: str) -> Role:
        """SigLIP and its projector; the language model; the expert and its projections.

        The expert's output layer over the vocabulary is the language's: no action depends on it.
        """
        roles = {
            Role.VISION: (f"{_VLM}model.vision_tower.", f"{_VLM}model.multi_modal_projector."),
            Role.LANGUAGE: (f"{_VLM}model.language_model.", f"{_VLM}lm_head.", f"{_EXPERT}lm_head."),
            Role.ACTION_HEAD: (f"{_EXPERT}model.", *self.head_projections),
        }
        return role_by_beginning(name.removeprefix(_MODEL), roles, self.family)


class PI05FlowPolicy(PI0FlowPolicy):
    """A stock `PI05Policy` as a velocity field."""

    family = "pi05"
    policy_class: type[Any] = PI05Policy
    encoded_once: ClassVar[str] = "keys and values of images, language and state"
    head_projections: ClassVar[tuple[str, ...]] = (
        "action_in_proj.", "action_out_proj.", "time_mlp_in.", "time_mlp_out.",
    )  # fmt: skip
    legacy_names: ClassVar[Mapping[str, str]] = {
        "action_time_mlp_in.": "time_mlp_in.",
        "action_time_mlp_out.": "time_mlp_out.",
    }

    def encode(self, batch: Batch) -> PrefixContext:
        """Encodes images and the prompt, the state in it, into keys and values."""
        return self.encode_prefix(batch)
