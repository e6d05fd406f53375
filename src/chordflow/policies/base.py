"""The interface of every flow-matching policy, whatever its family.

Shapes: B batch, H chunk size, D padded action dimension, A real action dimension.
Convention: t = 1 is noise, t = 0 is the action, v = d x / d t. An adapter converts its family's
convention here and nowhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from lerobot.policies.common.vla_utils import pad_vector
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor, nn

from chordflow.errors import UserError
from chordflow.policies.context import Context
from chordflow.policies.hashes import tensors_sha256
from chordflow.policies.images import ImageResize
from chordflow.quiet import quiet_stdout

Batch = dict[str, Any]


class Role(StrEnum):
    """The parts of a policy that are frozen, trained or initialised together."""

    VISION = "vision"
    LANGUAGE = "language"
    PREFIX_PROJECTIONS = "prefix_projections"
    ACTION_HEAD = "action_head"


RELATIVE_ACTIONS = (
    "such a checkpoint's actions depend on the state that was seen last, so an endpoint alone is no action; give a "
    "checkpoint with absolute actions"
)

PREFIX_ROLES = (Role.VISION, Role.LANGUAGE, Role.PREFIX_PROJECTIONS)
_BESIDE_PREFIX = (
    "use_peft", "rtc_config", "push_to_hub", "repo_id", "pretrained_path", "device", "n_action_steps",
)  # fmt: skip


@dataclass(frozen=True)
class ChunkSpec:
    """The shape of noise and chunk as the network sees them.

    Attributes:
        horizon: H, the number of actions in a chunk.
        padded_dim: D, the dimensions that the network denoises.
        action_dim: A, the leading dimensions that the robot uses.
        num_executed: actions of a chunk that run before the next chunk is computed.
        first_executed: how many of its leading actions lie in the past when the chunk arrives and are never
            run; above 0 where a policy looks at several past observations and predicts from the first on.
        real_horizon: how many of its leading actions are trained and can be run at all, where that is not
            the whole horizon: a base model's chunk may be longer than what a robot's fine-tuning uses of it.
    """

    horizon: int
    padded_dim: int
    action_dim: int
    num_executed: int
    first_executed: int = 0
    real_horizon: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(H, D)."""
        return self.horizon, self.padded_dim

    @property
    def real_rows(self) -> slice:
        """The actions of a chunk that can be run: from the present on, as far as training reaches."""
        return slice(self.first_executed, self.real_horizon)

    def real(self, chunks: Tensor) -> Tensor:
        """What of chunks (..., H, D) means something to the robot: their `real_rows` and real dimensions."""
        return chunks[..., self.real_rows, : self.action_dim]

    @property
    def num_usable(self) -> int:
        """How many of its actions can be run at all."""
        return (self.real_horizon or self.horizon) - self.first_executed

    @property
    def usable(self) -> str:
        """`num_usable` as messages say it."""
        past = f" from the present on ({self.first_executed} before it)" if self.first_executed else ""
        return f"{self.num_usable} actions{past}"

    def check_executed(self, n_action_steps: int) -> None:
        """Raises UserError for a number of executed actions that a chunk does not have."""
        if not 1 <= n_action_steps <= self.num_usable:
            raise UserError(
                f"n_action_steps is {n_action_steps}; a chunk has {self.usable}: choose 1 to {self.num_usable}."
            )


def role_by_beginning(name: str, beginnings: Mapping[Role, tuple[str, ...]], family: str) -> Role:
    """The first role among whose `beginnings` is that of a parameter's name; raises ValueError if none is."""
    for role, own in beginnings.items():
        if name.startswith(own):
            return role
    raise ValueError(
        f"parameter {name!r} has no known role in {family}; this LeRobot version is not supported"
    )


class FlowPolicy(ABC):
    """A stock LeRobot policy as a velocity field.

    Subclasses set the class attributes, and write `encode`, `velocity` and `role_of`; the rest fits a policy
    with `chunk_size`, `max_action_dim` and `n_action_steps` that draws standard normal noise.

    Attributes:
        family: LeRobot's name of the policy type, such as `smolvla`.
        policy_class: LeRobot's class of it.
        steps_field: what the family's config calls its number of solver steps.
        encoded_once: what of an observation a context holds, in a few words, for the table of support.
        noise_at: the family's own time of noise, 1 or 0; where it is 0, `native_time` and `canonical` convert.
        policy: the `PreTrainedPolicy` as LeRobot runs it, which draws its noise from the global generator.
        preprocessor: from observations to its batch.
        postprocessor: from its actions to the robot's units.
        config: the policy's own config.
        module: the policy itself, an `nn.Module`.
        config_assets: fields of `config.json` that name a model outside the checkpoint.
        processor_assets: fields of the processors' steps that do.
        default_train_roles: the parts that a student trains by default.
        rename_map: what `load_flow_policy` was given of that name.
        replaced_rename_map: what the checkpoint's own preprocessor renames where `rename_map` took its place.
        needs_every_camera: whether LeRobot's code of this family stops where one of the config's cameras is absent.
        supports_real_time_chunking: whether LeRobot guides this family's chunks by the previous ones
            (`--inference.type=rtc`).
        filled_from: parameters that LeRobot's loader fills with another's tensor where a file lacks them, and
            that other one's name.
        normalises_elsewhere: whether the family normalises by other steps than LeRobot's own normaliser, so that
            LeRobot's is not checked.
        solver: by which the policy acts as it is deployed; LeRobot's own but for exported folders.
        grid_power: of its steps.

    Raises:
        UserError: if the config asks for something that cannot be reflowed.
    """

    config_assets: ClassVar[tuple[str, ...]] = ()
    processor_assets: ClassVar[tuple[str, ...]] = ("tokenizer_name",)
    default_train_roles: ClassVar[tuple[Role, ...]] = (Role.ACTION_HEAD,)
    needs_every_camera: ClassVar[bool] = True
    supports_real_time_chunking: ClassVar[bool] = False
    filled_from: ClassVar[Mapping[str, str]] = {}
    normalises_elsewhere: ClassVar[bool] = False
    solver: str = "euler"
    grid_power: float = 1.0

    family: str
    policy_class: type[Any]
    steps_field: ClassVar[str]
    encoded_once: ClassVar[str]
    noise_at: ClassVar[int] = 1
    config: Any
    module: nn.Module
    rename_map: Mapping[str, str] = MappingProxyType({})
    replaced_rename_map: Mapping[str, str] = MappingProxyType({})

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

    @abstractmethod
    def encode(self, batch: Batch) -> Context:
        """Encodes a preprocessed batch. Gradients flow where parameters of the prefix ask for them."""

    @abstractmethod
    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """d x / d t, shape (B, H, D), at `x_t` (B, H, D) and `t` (B,)."""

    @abstractmethod
    def role_of(self, name: str) -> Role:
        """The role of a parameter; raises ValueError for a name that this release of LeRobot does not have."""

    @property
    def chunk(self) -> ChunkSpec:
        """Shape of noise and chunk."""
        return ChunkSpec(
            horizon=self.config.chunk_size,
            padded_dim=self.config.max_action_dim,
            action_dim=self.config.action_feature.shape[0],
            num_executed=self.config.n_action_steps,
        )

    def preprocess(self, items: Mapping[str, Any]) -> Batch:
        """Runs the checkpoint's own preprocessor on a batch of observations (images in [0, 1])."""
        return self.preprocessor(dict(items))

    def to_action(self, endpoint: Tensor) -> Tensor:
        """Endpoints (B, H, D) to actions in the robot's units (B, H, A), by the checkpoint's postprocessor."""
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
        """Noise (n, H, D) by the family's own law, all padded dimensions included, on the generator's device."""
        return torch.randn((n, *self.chunk.shape), generator=generator, device=generator.device)

    def action_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Demonstrations as the family's loss sees them: zero-padded (B, H, D), and a mask (B, H, D) of what counts."""
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
        """The solver steps that the checkpoint is saved with; 0 where the config says null, which is refused."""
        return int(getattr(self.config, self.steps_field) or 0)

    def set_num_steps(self, num_steps: int) -> None:
        """Sets `steps_field`."""
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

    def parameters_by_role(self) -> dict[Role, dict[str, nn.Parameter]]:
        """Every parameter once, by role and by its name in the policy."""
        roles: dict[Role, dict[str, nn.Parameter]] = {role: {} for role in Role}
        for name, parameter in self.module.named_parameters():
            roles[self.role_of(name)][name] = parameter
        return roles

    def fresh(self, roles: Iterable[Role], seed: int) -> None:
        """Initialises the parameters of `roles` again, as the family's own constructor would, from `seed`."""
        # Constructors of torch draw from the global generator; the caller's stream is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = dict(self.build_fresh().named_parameters())
        by_role = self.parameters_by_role()
        with torch.no_grad():
            for role in set(roles):
                for name, parameter in by_role[role].items():
                    parameter.copy_(built[name])

    def pretrained_vlm(self) -> dict[str, Tensor]:
        """The weights of the vision-language model that the checkpoint's config names, by parameter name.

        Raises:
            UserError: for a family whose config names none, or a model without weights.
        """
        raise UserError(
            f"policy type {self.family!r} names no vision-language model to begin with; leave pretrained_vlm out."
        )

    @torch.no_grad()
    def begin_pretrained(self) -> None:
        """Replaces the weights of its VLM with those of `pretrained_vlm`, which raises where there are none."""
        own = dict(self.module.named_parameters())
        for name, tensor in self.pretrained_vlm().items():
            own[name].copy_(tensor)

    def parameter_name(self, key: str) -> str:
        """The parameter that the tensor `key` of `model.safetensors` is loaded into."""
        return key

    @property
    def device(self) -> torch.device:
        """Where the policy's parameters live."""
        return next(self.module.parameters()).device

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """Frames of observation that the policy looks at, relative to now."""
        return self.config.observation_delta_indices

    @property
    def image_keys(self) -> list[str]:
        """The config's cameras but the blank ones of `empty_cameras`; fine-tuning keeps those of the base."""
        blank = {f"{OBS_IMAGES}.empty_camera_{i}" for i in range(getattr(self.config, "empty_cameras", 0))}
        return [key for key in self.config.image_features if key not in blank]

    @property
    def image_resize(self) -> ImageResize | None:
        """What the network does to images before it looks at them; None where it takes a camera's size as it is."""
        return None

    @property
    def graph_obstacle(self) -> str:
        """Why `encode`, `velocity` and noise cannot be exported as a graph; empty where they can."""
        own_law = type(self).sample_noise is not FlowPolicy.sample_noise
        return "its noise is not standard normal, as the runner draws it" if own_law else ""

    @property
    def free_prompt(self) -> bool:
        """Whether `encode` takes a prompt without its padding for the same, of any length, in a graph too."""
        return True

    def num_blank(self, shown: Collection[str]) -> int:
        """How many blank, masked images LeRobot puts behind the cameras that are `shown`; `encode` leaves them out."""
        return 0

    @property
    def statistics(self) -> Mapping[str, Mapping[str, Any]]:
        """The preprocessor's statistics of the observations that the policy was trained with, by the policy's names."""
        return {
            self.own_name(key): values
            for step in self.preprocessor.steps
            for key, values in (getattr(step, "stats", None) or {}).items()
        }

    @property
    def state_shape(self) -> tuple[int, ...] | None:
        """The shape of the state's statistics, or the config's where there are none; None where there is no state.

        `lerobot-train` gives a checkpoint that it fine-tunes the statistics of its dataset, but leaves the base
        checkpoint's `input_features` in the config.
        """
        own = self.statistics.get(OBS_STATE, {})
        known = [np.shape(own[kind]) for kind in ("mean", "min", "q01", "q10") if kind in own]
        if known:
            return known[0] or (1,)
        feature = self.config.robot_state_feature
        return None if feature is None else tuple(feature.shape)

    @property
    def rtc_config(self) -> Any | None:
        """LeRobot's `RTCConfig` that the checkpoint is saved with; None where it has none."""
        return getattr(self.config, "rtc_config", None)

    def own_name(self, key: str) -> str:
        """What the preprocessor's `rename_map` makes of the observation `key` of an environment or dataset."""
        for step in self.preprocessor.steps:
            key = getattr(step, "rename_map", {}).get(key, key)
        return key

    @classmethod  # noqa: B027 (most families take any folder)
    def check_asset(cls, key: str, place: str) -> None:
        """Raises UserError where the field `key` may not name the folder `place`."""

    @classmethod  # noqa: B027 (most families are run as they were saved)
    def check_saved(cls, config: Mapping[str, Any], where: str) -> None:
        """Raises UserError for a `config.json`, found at `where`, of a policy that LeRobot no longer runs."""

    def train_roles(self, roles: Iterable[Role]) -> dict[str, nn.Parameter]:
        """Freezes all but `roles` and makes these float32 masters: the trainable parameters, by name."""
        chosen = set(roles)
        trainable: dict[str, nn.Parameter] = {}
        for role, named in self.parameters_by_role().items():
            for name, parameter in named.items():
                parameter.requires_grad_(role in chosen)
                if role in chosen:
                    # In bf16 an AdamW step at lr 2e-5 is smaller than half a unit in the last place
                    # of most weights and rounds away.
                    parameter.data = parameter.data.float()
                    trainable[name] = parameter
        return trainable

    def prefix_hash(self) -> str:
        """SHA-256 over what a context depends on: two policies may share contexts only if these agree.

        These are weights, the preprocessor, and all of the config but what a student may change of its teacher's.
        """
        beside = (*_BESIDE_PREFIX, getattr(self, "steps_field", ""))
        about: list[object] = [{k: v for k, v in vars(self.config).items() if k not in beside}]
        by_role = self.parameters_by_role()
        tensors: dict[str, Tensor] = {}
        for role in PREFIX_ROLES:
            tensors |= by_role[role]
        for number, step in enumerate(self.preprocessor.steps):
            about += [type(step).__name__, getattr(step, "get_config", dict)()]
            state: dict[str, Tensor] = getattr(step, "state_dict", dict)()
            tensors |= {f"{number}/{name}": tensor for name, tensor in state.items()}
        return tensors_sha256(tensors, repr(about).encode())


class VelocityModule(nn.Module):
    """The student's velocity as the `forward` of one module: DDP and FSDP see nothing else."""

    def __init__(self, policy: FlowPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.module = policy.module

    def forward(
        self, x_t: Tensor, t: Tensor, context: Context | None = None, batch: Batch | None = None
    ) -> Tensor:
        """The velocity (B, H, D) at states (B, H, D) and times (B,).

        Without a `context` the preprocessed `batch` is encoded, so that a trainable prefix receives gradients.
        """
        if context is None:
            if batch is None:
                raise ValueError("a velocity needs a context or a batch")
            context = self.policy.encode(batch)
        return self.policy.velocity(x_t, t, context)
