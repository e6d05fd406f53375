"""The adapter for SmolVLA (Shukor et al. 2025, arXiv 2506.01844).

SmolVLA already follows the canonical convention (t = 1 noise, v = noise - action) and draws standard
normal noise, so nothing is converted. The prefix (images, language, state) is encoded once into keys and
values; the action expert reads them at every step.

Shapes: B batch, H chunk size, D = max_action_dim, A real action dimension.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import (
    ACTION,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
    OBS_STATE,
)
from torch import Tensor
from transformers import AutoModelForImageTextToText

from chordflow.errors import UserError, machine_refuses
from chordflow.policies.base import Batch, FlowPolicy, Role, role_by_beginning
from chordflow.policies.context import Context, PrefixContext, embed_prefix
from chordflow.policies.files import CONFIG
from chordflow.policies.images import ImageResize
from chordflow.quiet import quiet_stdout

ALOHA_JOINTS = 14
"""Those of two arms, grippers included, by whose places `adapt_to_pi_aloha` goes."""

_VLM = "vlm_with_expert.vlm."
# The language model lies inside what is otherwise vision.
_ROLES = {
    Role.LANGUAGE: (f"{_VLM}model.text_model.", f"{_VLM}lm_head."),
    Role.VISION: (f"{_VLM}model.",),
    Role.PREFIX_PROJECTIONS: ("state_proj.",),
    Role.ACTION_HEAD: (
        "vlm_with_expert.lm_expert.", "action_in_proj.", "action_out_proj.", "action_time_mlp_in.",
        "action_time_mlp_out.",
    ),
}  # fmt: skip


class SmolVLAFlowPolicy(FlowPolicy):
    """A stock `SmolVLAPolicy` as a velocity field."""

    family = "smolvla"
    policy_class = SmolVLAPolicy
    config_assets: ClassVar[tuple[str, ...]] = ("vlm_model_name",)
    steps_field: ClassVar[str] = "num_steps"
    # Blank, masked images take the place of `empty_cameras` of those that are absent; the rest is left out.
    needs_every_camera: ClassVar[bool] = False
    supports_real_time_chunking: ClassVar[bool] = True
    encoded_once: ClassVar[str] = "keys and values of images, language and state"

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raises UserError where a context could not be used twice."""
        super().check_config(config)
        if not config.use_cache:
            raise UserError(
                "use_cache=false in config.json: SmolVLA's own sampler needs its prefix cache; set use_cache=true."
            )

    def __init__(self, policy: Any, preprocessor: Any, postprocessor: Any) -> None:
        super().__init__(policy, preprocessor, postprocessor)
        if self.config.adapt_to_pi_aloha and preprocessor is not None and self.state_shape is not None:
            size = math.prod(self.state_shape)
            if size < ALOHA_JOINTS:
                raise UserError(
                    f"adapt_to_pi_aloha=true in {CONFIG}: {OBS_STATE} has size {size}, and the option is for Aloha's "
                    f"{ALOHA_JOINTS} joints; set it to false, or give a checkpoint of an Aloha."
                )

    def to_action(self, endpoint: Tensor) -> Tensor:
        """Endpoints (B, H, D) to actions in the robot's units (B, H, A)."""
        if self.config.adapt_to_pi_aloha:
            endpoint = self.policy._pi_aloha_encode_actions(endpoint[..., : self.chunk.action_dim].clone())
        return super().to_action(endpoint)

    def encode(self, batch: Batch) -> PrefixContext:
        """Encodes images, language and state into keys and values."""
        policy, model = self.policy, self.policy.model
        # The adaptation to Aloha writes into the state; the caller's batch stays whole.
        batch = policy._prepare_batch({**batch, OBS_STATE: batch[OBS_STATE].clone()})
        images, image_masks = policy.prepare_images(batch)
        shown = slice(len(images) - self.num_blank(batch))
        embed = partial(
            model.embed_prefix, images[shown], image_masks[shown], state=policy.prepare_state(batch)
        )
        prompt = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK].bool()
        # The state is one token.
        parts = embed_prefix(embed, self._words, *prompt, behind=1) if self.free_prompt else embed(*prompt)
        embeddings, mask, attention = parts
        _, cache = model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(mask, attention),
            position_ids=torch.cumsum(mask, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embeddings, None],
            use_cache=True,
        )
        return PrefixContext(PrefixContext.stack(cache), mask)

    def _words(self, tokens: Tensor) -> Tensor:
        """Embeddings of tokens (B, T), scaled as in LeRobot's `embed_prefix`."""
        found = self.policy.model.vlm_with_expert.embed_language_tokens(tokens)
        return found * math.sqrt(found.shape[-1])

    @property
    def free_prompt(self) -> bool:
        """Not where LeRobot pads the whole prefix to one length."""
        return self.config.prefix_length <= 0

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """SmolVLA's own `denoise_step` on a cache made for this call."""
        assert isinstance(context, PrefixContext)
        return self.policy.model.denoise_step(
            prefix_pad_masks=context.mask,
            past_key_values=context.cache(),
            x_t=x_t,
            timestep=t,
        )

    def num_blank(self, shown: Collection[str]) -> int:
        """At most `empty_cameras`; none where special tokens stand about a blank image, which are not masked."""
        absent = sum(key not in shown for key in self.config.image_features)
        return 0 if self.config.add_image_special_tokens else min(absent, self.config.empty_cameras)

    def action_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Zero-padded demonstrations, valid in the real dimensions inside the episode."""
        if self.config.adapt_to_pi_aloha:
            batch = {**batch, ACTION: self.policy._pi_aloha_encode_actions_inv(batch[ACTION].clone())}
        return super().action_target(batch)

    @property
    def image_resize(self) -> ImageResize | None:
        """LeRobot's `resize_with_pad`."""
        size = self.config.resize_imgs_with_padding
        # Kept as (width, height).
        return None if size is None else ImageResize(size[1], size[0], "bottom_right")

    @property
    def graph_obstacle(self) -> str:
        """The adaptation to Aloha changes states and actions outside the network."""
        aloha = "adapt_to_pi_aloha=true changes the joints by LeRobot's own code"
        return aloha if self.config.adapt_to_pi_aloha else super().graph_obstacle

    @property
    def fresh_fields(self) -> Mapping[str, Any]:
        """The vision-language model is random too."""
        return {"load_vlm_weights": False}

    def pretrained_vlm(self) -> dict[str, Tensor]:
        """SigLIP, connector and language model of `vlm_model_name`, as SmolVLA's constructor loads them."""
        name = self.config.vlm_model_name
        # The constructor also draws what is not the model's from the global generator.
        with quiet_stdout(), torch.random.fork_rng(devices=[]):
            try:
                built = self.policy_class(replace(self.config, load_vlm_weights=True))
            except OSError as error:
                if machine_refuses(error):
                    raise
                raise UserError(
                    f"vlm_model_name={name} in {CONFIG} is a model without weights; leave pretrained_vlm out, or give "
                    "a checkpoint that names one with weights."
                ) from error
            _, found = AutoModelForImageTextToText.from_pretrained(
                name, dtype="bfloat16", low_cpu_mem_usage=True, output_loading_info=True
            )
        # What the files have no weights for transformers draws at random.
        if absent := sorted(found["missing_keys"]):
            raise UserError(
                f"vlm_model_name={name} in {CONFIG} has no weights for {len(absent)} of its tensors, such as "
                f"{absent[0]}; leave pretrained_vlm out, or give a checkpoint that names a whole model."
            )
        roles = (Role.VISION, Role.LANGUAGE)
        return {
            key: tensor.detach() for key, tensor in built.named_parameters() if self.role_of(key) in roles
        }

    def role_of(self, name: str) -> Role:
        """SigLIP and the connector; the language model; `state_proj`; the expert and its projections."""
        return role_by_beginning(name.removeprefix("model."), _ROLES, self.family)
