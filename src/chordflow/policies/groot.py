"""The adapter for GR00T N1.7 (of the N1 line: Bjorck et al. 2025, arXiv 2503.14734).

GR00T runs the other way (t = 0 noise, v = action - noise) and passes the time to its network in 1000 whole buckets:
`native_time` and `canonical` convert the first, `_buckets` does the second. A Qwen3-VL turns images and language
into features once; a diffusion transformer reads them and the encoded state at every step.

Shapes: B batch, H action horizon of the base model, D its max_action_dim, A real action dimension, P image and
prompt tokens, E their width, F the width of the transformer's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lerobot.policies.groot.configuration_groot import GROOT_N1_5, infer_groot_model_version
from lerobot.policies.groot.groot_n1_7 import GR00TN17
from lerobot.policies.groot.modeling_groot import GrootPolicy
from lerobot.policies.groot.processor_groot import (
    GrootActionUnpackUnnormalizeStep,
    GrootN17ActionDecodeStep,
    GrootN17PackInputsStep,
    GrootN17VLMEncodeStep,
)
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from chordflow.errors import UserError
from chordflow.policies.base import RELATIVE_ACTIONS, Batch, ChunkSpec, FlowPolicy, Role, role_by_beginning
from chordflow.policies.context import Context
from chordflow.policies.processors import check_same_statistics
from chordflow.quiet import quiet_stdout

_ROLES = {
    Role.VISION: ("backbone.model.model.visual.",),
    Role.LANGUAGE: ("backbone.model.model.language_model.", "backbone.model.lm_head."),
    Role.PREFIX_PROJECTIONS: ("action_head.vl", "action_head.state_encoder."),
    Role.ACTION_HEAD: ("action_head.action_", "action_head.model.", "action_head.position_embedding."),
}
_REMEDY = "give a checkpoint as lerobot-train saves it, with the statistics of its own data"
_TIME_ROUNDING = 1e-3
"""In buckets: more than a float32 time is off, less than k / n is short of a bucket's end for n up to 900."""


@dataclass(frozen=True)
class GrootContext(Context):
    """What the diffusion transformer reads of an observation.

    Attributes:
        features: (B, P, E), of images and language, padded in front.
        mask: (B, P), true at what is no padding.
        image_mask: (B, P), true at image tokens.
        state: (B, 1, F), the encoded state.
        embodiment: (B,), int, which of the head's weights are the robot's.
    """

    growing: ClassVar[Mapping[str, int]] = {"features": 1, "mask": 1, "image_mask": 1}
    mask_field: ClassVar[str | None] = "mask"
    pad_left: ClassVar[bool] = True

    features: Tensor
    mask: Tensor
    image_mask: Tensor
    state: Tensor
    embodiment: Tensor


class GrootFlowPolicy(FlowPolicy):
    """A stock `GrootPolicy` as a velocity field. Its real-time chunking is its own, not LeRobot's guidance."""

    family = "groot"
    policy_class = GrootPolicy
    config_assets: ClassVar[tuple[str, ...]] = ("base_model_path",)
    processor_assets: ClassVar[tuple[str, ...]] = ("model_name",)
    steps_field: ClassVar[str] = "num_inference_timesteps"
    noise_at: ClassVar[int] = 0
    # It looks at whichever cameras there are.
    needs_every_camera: ClassVar[bool] = False
    encoded_once: ClassVar[str] = "features of images and language, and of the state"
    normalises_elsewhere: ClassVar[bool] = True

    def __init__(self, policy: Any, preprocessor: Any, postprocessor: Any) -> None:
        super().__init__(policy, preprocessor, postprocessor)
        self._model = policy._groot_model
        _check_base(self._model.config)
        undo = GrootActionUnpackUnnormalizeStep | GrootN17ActionDecodeStep
        if postprocessor is not None and not any(isinstance(step, undo) for step in postprocessor.steps):
            raise UserError(f"policy_postprocessor.json has no step that unnormalises action; {_REMEDY}.")
        dim, flat = self.config.action_feature.shape[0], []
        for step in (*getattr(preprocessor, "steps", ()), *getattr(postprocessor, "steps", ())):
            if isinstance(step, GrootN17ActionDecodeStep) and step.use_relative_action:
                raise UserError(f"use_relative_action=true in policy_postprocessor.json: {RELATIVE_ACTIONS}.")
            _check_statistics(step, dim)
            # Where the base model brings an embodiment's statistics, both sides hold them by groups instead.
            if isinstance(step, GrootN17PackInputsStep | GrootActionUnpackUnnormalizeStep):
                flat.append(step.stats[ACTION])
            if isinstance(step, GrootN17VLMEncodeStep):
                # Saved with the device that trained it, and out of reach of LeRobot's override for loading.
                step.device = str(self.config.device)
        if len(flat) > 1:
            check_same_statistics(flat[0], flat[-1], ("min", "max"), dim)
        # As LeRobot's own sampler does before it predicts: in training there is dropout.
        policy.eval()

    @classmethod
    def check_saved(cls, config: Mapping[str, Any], where: str) -> None:
        """Raises UserError for GR00T N1.5, by LeRobot's own marks of it."""
        base = config.get("base_model_path")
        if config.get("tokenizer_assets_repo") or infer_groot_model_version(base) == GROOT_N1_5:
            raise UserError(
                f"{where} is of a GR00T N1.5 (base_model_path={base}), which this LeRobot no longer runs; give a "
                "checkpoint of GR00T N1.7."
            )

    @property
    def graph_obstacle(self) -> str:
        """See `get_rope_index` in transformers' Qwen3-VL."""
        return "Qwen3-VL computes the places of its tokens from the prompt's content (get_rope_index)"

    @property
    def chunk(self) -> ChunkSpec:
        """What the base model denoises, of which an embodiment trains its part, and executes what is queued."""
        head, config = self._model.action_head, self.config
        return ChunkSpec(
            horizon=head.action_horizon,
            padded_dim=head.action_dim,
            action_dim=config.action_feature.shape[0],
            num_executed=min(self.policy._action_queue_steps, config.chunk_size, head.action_horizon),
            real_horizon=min(len(config.action_delta_indices), head.action_horizon),
        )

    def encode(self, batch: Batch) -> GrootContext:
        """Encodes images and language into features, and the state.

        The stock policy's features attend to padding, so its answer to a short prompt changes with the longer ones in
        its batch. Here padding is masked, as if an observation were alone, which it is on a robot.
        """
        head = self._model.action_head
        with self._autocast():
            inputs, actions = self._model.prepare_input(
                self.policy._filter_groot_inputs(batch, include_action=False)
            )
            encoded = self._model.backbone(inputs)
            mask, embodiment = encoded["backbone_attention_mask"], actions["embodiment_id"]
            features = head.vlln(self._cast(encoded["backbone_features"], head.vlln, head.vl_self_attention))
            for block in getattr(head.vl_self_attention, "transformer_blocks", ()):
                features = block(features, attention_mask=None if bool(mask.all()) else mask)
            state = self._cast(actions["state"], head.state_encoder).flatten(1)
            state = head.state_encoder(state[:, None], embodiment)
        return GrootContext(features, mask, encoded["image_mask"], state, embodiment)

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """The transformer on state and noisy actions, as GR00T's own sampler runs it inside its loop."""
        assert isinstance(context, GrootContext)
        head, time = self._model.action_head, self._buckets(t)
        with self._autocast():
            tokens = head.action_encoder(self._cast(x_t, head.action_encoder), time, context.embodiment)
            if head.config.add_pos_embed:
                tokens = tokens + head.position_embedding.weight[: tokens.shape[1]]
            outputs = head.model(
                hidden_states=torch.cat((context.state.to(tokens.dtype), tokens), dim=1),
                encoder_hidden_states=self._cast(context.features, head.model),
                timestep=time,
                image_mask=context.image_mask,
                backbone_attention_mask=context.mask,
            )
            v_t = head.action_decoder(outputs, context.embodiment)[:, -x_t.shape[1] :]
        return self.canonical(v_t.float())

    def _autocast(self) -> torch.autocast:
        """The precision in which the stock policy computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.use_bf16)

    def _cast(self, tensor: Tensor, *modules: nn.Module) -> Tensor:
        """A tensor in the dtype of the weights that it meets, where autocast does not see to that by itself."""
        weights = next((weight for module in modules for weight in module.parameters()), tensor)
        return tensor if self.config.use_bf16 else tensor.to(weights.dtype)

    def _buckets(self, t: Tensor) -> Tensor:
        """The bucket (B,), int64, of a canonical time (B,): 0 at the noise; the action's own is the last."""
        count = self._model.action_head.num_timestep_buckets
        return (self.native_time(t) * count + _TIME_ROUNDING).floor().long().clamp(max=count - 1)

    def action_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Demonstrations as GR00T's preprocessor pads them, valid where its `action_mask` is 1.

        Where `chunk_size` is below the base model's horizon, GR00T's own loss runs the network on shorter chunks than
        its sampler; here they are padded to the sampler's.
        """
        missing = (0, 0, 0, self.chunk.horizon - batch[ACTION].shape[1])
        return nn.functional.pad(batch[ACTION], missing), nn.functional.pad(batch["action_mask"] > 0, missing)

    @property
    def default_num_steps(self) -> int:
        """`num_inference_timesteps`, or the base model's where the config leaves it to that."""
        own = self.config.num_inference_timesteps
        return int(self._model.config.num_inference_timesteps if own is None else own)

    def set_num_steps(self, num_steps: int) -> None:
        """Sets `num_inference_timesteps`, and what the stock policy made of it when it was built."""
        super().set_num_steps(num_steps)
        self._model.action_head.num_inference_timesteps = num_steps

    def set_num_executed(self, num_executed: int) -> None:
        """Sets `n_action_steps`, and the length of the queue that was made from it."""
        super().set_num_executed(num_executed)
        self.policy._action_queue_steps = self.policy._resolve_action_queue_steps()

    def build_fresh(self) -> nn.Module:
        """The wrapped model under the policy's name for it; its vision-language model is random too."""
        with quiet_stdout():
            model = GR00TN17(deepcopy(self._model.config), load_backbone_weights=False)
        return nn.ModuleDict({"_groot_model": model})

    def role_of(self, name: str) -> Role:
        """Visual tower; language model; what projects features and state; what encodes and denoises actions."""
        return role_by_beginning(name.removeprefix("_groot_model."), _ROLES, self.family)


def _check_statistics(step: Any, action_dim: int) -> None:
    """Raises UserError where one of GR00T's own steps would pass numbers on as they are, or fill in zeros."""
    missing: list[str] = []
    if isinstance(step, GrootN17ActionDecodeStep):
        missing = [name for name in ("raw_stats", "modality_config") if not getattr(step, name)]
    elif not getattr(step, "normalize_min_max", True):
        missing = ["normalize_min_max=true"]
    elif hasattr(step, "normalize_min_max"):
        sizes = {ACTION: action_dim} | ({OBS_STATE: 1} if isinstance(step, GrootN17PackInputsStep) else {})
        for key, size in sizes.items():
            for name in ("min", "max"):
                value = torch.as_tensor((step.stats or {}).get(key, {}).get(name, []))
                if value.numel() < size or not value.isfinite().all():
                    missing.append(f"finite {name} of {key}" + f" of size {size}" * (key == ACTION))
    if missing:
        raise UserError(
            f"{type(step).__name__} in the processors has no {', no '.join(missing)}, so numbers would pass "
            f"unnormalised; {_REMEDY}."
        )


def _check_base(config: Any) -> None:
    """Raises UserError for a base model in which padding cannot be masked."""
    attention = config.vl_self_attention_cfg or {}
    counts_padding = attention.get("num_layers") and attention.get("positional_embeddings", "") is not None
    if config.use_alternate_vl_dit and not counts_padding:
        return
    raise UserError(
        f"use_alternate_vl_dit={config.use_alternate_vl_dit}, vl_self_attention_cfg={attention} in config.json of the "
        "model that base_model_path names: a batch's padding cannot be masked unless the first is true and the second "
        "has positional_embeddings=null; give a checkpoint of such a base model, as GR00T-N1.7-3B is."
    )
