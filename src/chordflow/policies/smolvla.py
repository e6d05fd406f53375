"""The adapter for SmolVLA (Shukor et al. 2025, arXiv 2506.01844).

SmolVLA already follows the canonical convention (t = 1 noise, v = noise - action) and draws standard
normal noise, so nothing is converted. The prefix (images, language, state) is encoded once into keys and
values; the action expert reads them at every step.

Shapes: B batch, H chunk size, D = max_action_dim, A real action dimension, L VLM layers, P prefix tokens,
G key-value heads, E head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks, pad_vector
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import (
    ACTION,
    OBS_IMAGES,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
    OBS_STATE,
)
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from chordflow.errors import UserError
from chordflow.policies.base import Batch, ChunkSpec, Context, FlowPolicy, Role, StockPolicy
from chordflow.quiet import quiet_stdout

_ACTION_HEAD = ("action_in_proj.", "action_out_proj.", "action_time_mlp_in.", "action_time_mlp_out.")


class SmolVLAContext(Context):
    """The prefix's keys and values and its mask.

    Attributes:
        keys_values: (B, L, 2, G, P, E), rotary positions already applied to the keys.
        mask: (B, P), true at real tokens.
    """

    def __init__(self, keys_values: Tensor, mask: Tensor) -> None:
        self.keys_values = keys_values
        self.mask = mask

    @property
    def batch_size(self) -> int:
        """Number of observations."""
        return self.mask.shape[0]

    def index(self, indices: Tensor) -> Self:
        """The contexts at `indices`, cut to the longest prefix among them."""
        rows = indices.to(self.mask.device)
        mask = self.mask[rows]
        # Trailing columns that no chosen row uses come from joining with longer prompts.
        used = mask.any(dim=0).nonzero()
        length = int(used.max()) + 1 if len(used) else mask.shape[1]
        return type(self)(self.keys_values[rows][..., :length, :], mask[:, :length])

    @classmethod
    def concatenate(cls, contexts: Sequence[Self]) -> Self:
        """Joins contexts; shorter prefixes are padded at the end with masked zeros."""
        length = max(context.mask.shape[1] for context in contexts)
        keys_values, masks = [], []
        for context in contexts:
            missing = length - context.mask.shape[1]
            keys_values.append(nn.functional.pad(context.keys_values, (0, 0, 0, missing)))
            masks.append(nn.functional.pad(context.mask, (0, missing), value=False))
        return cls(torch.cat(keys_values), torch.cat(masks))

    def tensors(self) -> tuple[Tensor, ...]:
        """Keys and values, and the mask."""
        return self.keys_values, self.mask

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Applies `function` to both tensors."""
        return type(self)(function(self.keys_values), function(self.mask))

    def cache(self) -> DynamicCache:
        """A cache object of its own for one velocity call.

        SmolVLA's `denoise_step` replaces the tensors that a cache holds; with a fresh object per call the
        context stays as it was, and no graph is kept alive through it.
        """
        cache = DynamicCache()
        for keys_values in self.keys_values.unbind(1):
            layer = DynamicLayer()
            keys, values = keys_values.unbind(1)
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache


class SmolVLAFlowPolicy(FlowPolicy):
    """A stock `SmolVLAPolicy` as a velocity field.

    Args:
        policy: the stock policy, in the state in which LeRobot's loader leaves it.
        preprocessor: the checkpoint's observation pipeline.
        postprocessor: the checkpoint's action pipeline.

    Raises:
        UserError: if the config asks for something in which a context cannot be reused.
    """

    family = "smolvla"
    policy_class = SmolVLAPolicy

    def __init__(self, policy: SmolVLAPolicy, preprocessor: Any, postprocessor: Any) -> None:
        if not policy.config.use_cache:
            raise UserError(
                "use_cache=false in config.json: SmolVLA's own sampler needs its prefix cache; set use_cache=true."
            )
        self.policy = policy
        self.module = policy
        self.config = policy.config
        self.preprocessor = preprocessor
        self.postprocessor = postprocessor

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
        blank = {f"{OBS_IMAGES}.empty_camera_{i}" for i in range(self.config.empty_cameras)}
        return [key for key in self.config.image_features if key not in blank]

    @property
    def supports_real_time_chunking(self) -> bool:
        """What the stock policy says of itself."""
        return self.policy.supports_rtc()

    def stock(self) -> StockPolicy:
        """The policy and its pipelines as they were loaded."""
        return StockPolicy(self.policy, self.preprocessor, self.postprocessor)

    @property
    def max_missing_cameras(self) -> int:
        """`empty_cameras`: SmolVLA fills that many with blank, masked images."""
        return self.config.empty_cameras

    def preprocess(self, items: Mapping[str, Any]) -> Batch:
        """Runs the checkpoint's own preprocessor."""
        return self.preprocessor(dict(items))

    def to_action(self, endpoint: Tensor) -> Tensor:
        """Endpoints (B, H, D) to actions in the robot's units (B, H, A)."""
        actions = endpoint[..., : self.chunk.action_dim].clone()
        if self.config.adapt_to_pi_aloha:
            actions = self.policy._pi_aloha_encode_actions(actions)
        flat = self.postprocessor(actions.flatten(0, 1))
        return flat.unflatten(0, actions.shape[:2])

    def encode(self, batch: Batch) -> SmolVLAContext:
        """Encodes images, language and state into keys and values."""
        policy, model = self.policy, self.policy.model
        # The adaptation to Aloha writes into the state; the caller's batch stays whole.
        batch = policy._prepare_batch({**batch, OBS_STATE: batch[OBS_STATE].clone()})
        images, image_masks = policy.prepare_images(batch)
        embeddings, mask, attention = model.embed_prefix(
            images,
            image_masks,
            batch[OBS_LANGUAGE_TOKENS],
            batch[OBS_LANGUAGE_ATTENTION_MASK].bool(),
            state=policy.prepare_state(batch),
        )
        _, cache = model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(mask, attention),
            position_ids=torch.cumsum(mask, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embeddings, None],
            use_cache=True,
        )
        layers = [torch.stack((layer.keys, layer.values), dim=1) for layer in cache.layers]
        return SmolVLAContext(torch.stack(layers, dim=1), mask)

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """SmolVLA's own `denoise_step` on a cache made for this call."""
        assert isinstance(context, SmolVLAContext)
        return self.policy.model.denoise_step(
            prefix_pad_masks=context.mask,
            past_key_values=context.cache(),
            x_t=x_t,
            timestep=t,
        )

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Standard normal float32 over the whole chunk and all padded dimensions."""
        return torch.randn((n, *self.chunk.shape), generator=generator, device=generator.device)

    def action_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Zero-padded demonstrations, valid in the real dimensions inside the episode."""
        actions = batch[ACTION]
        if self.config.adapt_to_pi_aloha:
            actions = self.policy._pi_aloha_encode_actions_inv(actions.clone())
        target = pad_vector(actions, self.config.max_action_dim)
        valid = torch.zeros_like(target, dtype=torch.bool)
        valid[..., : self.chunk.action_dim] = True
        is_pad = batch.get("action_is_pad")
        if is_pad is not None:
            valid &= ~is_pad.bool()[..., None]
        return target, valid

    @property
    def default_num_steps(self) -> int:
        """`num_steps` of the config."""
        return self.config.num_steps

    def set_num_steps(self, num_steps: int) -> None:
        """Sets `num_steps`."""
        self.config.num_steps = num_steps

    def parameters_by_role(self) -> dict[Role, dict[str, nn.Parameter]]:
        """SigLIP and the connector; the language model; `state_proj`; the expert and its projections."""
        roles: dict[Role, dict[str, nn.Parameter]] = {role: {} for role in Role}
        for name, parameter in self.policy.named_parameters():
            roles[_role_of(name.removeprefix("model."))][name] = parameter
        return roles

    def fresh(self, roles: Iterable[Role], seed: int) -> None:
        """Re-initialises by building a policy of the same config from `seed` and taking its parameters."""
        chosen = set(roles)
        # The constructors draw from the global generator; the caller's stream is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = replace(self.config, load_vlm_weights=False)
            with quiet_stdout():
                built = self.policy_class(config).to(self.device)
            other = type(self)(built, self.preprocessor, self.postprocessor)
        source = other.parameters_by_role()
        with torch.no_grad():
            for role, named in self.parameters_by_role().items():
                if role in chosen:
                    for name, parameter in named.items():
                        parameter.copy_(source[role][name])


def _role_of(name: str) -> Role:
    """The role of a parameter, by its name in SmolVLA's model."""
    if name.startswith("vlm_with_expert.lm_expert.") or name.startswith(_ACTION_HEAD):
        return Role.ACTION_HEAD
    if name.startswith("state_proj."):
        return Role.PREFIX_PROJECTIONS
    if name.startswith(("vlm_with_expert.vlm.model.text_model.", "vlm_with_expert.vlm.lm_head.")):
        return Role.LANGUAGE
    if name.startswith("vlm_with_expert.vlm.model."):
        return Role.VISION
    raise ValueError(
        f"parameter {name!r} has no known role in SmolVLA; this LeRobot version is not supported"
    )
