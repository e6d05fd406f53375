"""A folder of `chordflow export` as a policy: it gives endpoints, by steps of its own, and no velocities.

Shapes: B batch, H chunk size, D padded action dimension, A real action dimension.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import make_dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import OBS_PREFIX, OBS_STATE
from torch import Tensor, nn

from chordflow.errors import UserError, named
from chordflow.policies.base import Batch, ChunkSpec, FlowPolicy, Role
from chordflow.policies.context import Context

MANIFEST, FORMAT = "manifest.json", "chordflow_policy"


def manifest_of(path: str | Path) -> dict[str, Any] | None:
    """The manifest of an exported folder, unchecked; None for whatever is none."""
    try:
        manifest = json.loads((Path(path) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None


def refuse_exported(path: str | Path, field: str) -> None:
    """Raises UserError for an exported folder where a checkpoint is needed; `field` is the option that named it."""
    manifest = manifest_of(path)
    if manifest is not None:
        raise UserError(
            f"{field}={path} is an exported folder: it gives actions and none of the velocities that are needed here; "
            f"give the checkpoint that it was made of, {manifest['checkpoint']['path']}."
        )


class ExportedPolicy(FlowPolicy):
    """An exported folder, which acts on the CPU by `chordflow_runtime`.

    Attributes:
        manifest: see docs/deploy.md. Its bytes, with the SHA-256 of all other files, are the module's one parameter.
    """

    steps_field = "num_steps"

    def __init__(
        self, path: str | Path, rename_map: Mapping[str, str], num_steps: int | None, field: str
    ) -> None:
        try:
            from chordflow_runtime import RunnerError, load
        except ImportError as error:
            remedy = 'install with: pip install "chordflow[export]"'
            raise UserError(f"{field}={path}: {error.name} is not installed; {remedy}") from error
        own = self.manifest = manifest_of(path) or {}
        self._errors = partial(named, f"{field}={path}", RunnerError)
        with self._errors():
            # One graph has one number of steps, which need not be chosen.
            chosen = None if num_steps == own.get("num_steps") else num_steps
            self._runner = load(path, threads=torch.get_num_threads(), num_steps=chosen)
        self.family, self.solver, self.grid_power = own["family"], own["solver"], own["grid_power"]
        cameras = {key: PolicyFeature(FeatureType.VISUAL, one["shape"]) for key, one in own["images"].items()}
        states = {
            one["key"]: PolicyFeature(FeatureType.STATE, tuple(one["shape"][-1:]))
            for one in own["inputs"]
            if one["kind"] == "state"
        }
        self.config = SimpleNamespace(
            num_steps=num_steps or own["num_steps"],
            observation_delta_indices=own["observation_deltas"],
            action_delta_indices=None,
            reward_delta_indices=None,
            input_features=cameras | states,
            image_features=cameras,
            robot_state_feature=states.get(OBS_STATE),
        )
        self.rename_map = dict(rename_map)
        step = SimpleNamespace(rename_map=self.rename_map or own["rename"])
        self.preprocessor = self.postprocessor = SimpleNamespace(steps=[step], state_dict=dict)
        content = torch.frombuffer(bytearray((Path(path) / MANIFEST).read_bytes()), dtype=torch.uint8)
        self.module = nn.ParameterDict({"manifest": nn.Parameter(content, requires_grad=False)})
        self._inputs = [one["name"] for one in own["inputs"]]
        self._row: tuple[Tensor, ...] = ()
        self._encoded: Mapping[str, Any] = {}
        """The observation that was encoded last, as it is and encoded."""
        fields = [(f"input_{index}", Tensor) for index in range(len(self._inputs))]
        free = [any(isinstance(size, str) for size in one["shape"]) for one in own["inputs"]]
        growing = {name: 1 for (name, _), any_length in zip(fields, free, strict=True) if any_length}
        self._context: Any = make_dataclass(
            "GraphInputs", fields, bases=(Context,), frozen=True, namespace={"growing": growing}
        )

    @property
    def chunk(self) -> ChunkSpec:
        """As the manifest has it."""
        own = dict(self.manifest["chunk"])
        return ChunkSpec(real_horizon=own.pop("usable") + own["first_executed"], **own)

    def preprocess(self, items: Mapping[str, Any]) -> Batch:
        """The graph's inputs (B, ...) by name, of observations as a dataset or an environment gives them."""
        raw = {new: old for old, new in self.manifest["rename"].items()}
        one_step, seen = len(self.config.observation_delta_indices) == 1, {}
        for key in [key for key in items if key.startswith(OBS_PREFIX)]:
            own, value = self.own_name(key), items[key]
            # Data may bring an axis of a single step, which a robot has not.
            value = value[:, -1] if one_step and value.dim() in (3, 5) else value
            seen[raw.get(own, own)] = value.cpu().numpy()
        with self._errors(), warnings.catch_warnings():
            # Prompts that are cut, as the checkpoint cuts them.
            warnings.simplefilter("ignore")
            found = [
                self._runner.prepare({"task": task, **{key: value[row] for key, value in seen.items()}})
                for row, task in enumerate(items["task"])
            ]
        rows = [self._context(*(torch.as_tensor(one[name]) for name in self._inputs)) for one in found]
        return dict(zip(self._inputs, self._context.concatenate(rows).tensors(), strict=True))

    def encode(self, batch: Batch) -> Context:
        """The inputs as they are, to be encoded with the noises."""
        return self._context(*(batch[name] for name in self._inputs))

    def endpoints(self, context: Context, noise: Tensor) -> Tensor:
        """The endpoints (B, H, D) of noise (B, H, D) by the graph's own steps, zero in the padded dimensions."""
        ends = torch.zeros_like(noise)
        rows = list(zip(*(tensor.split(1) for tensor in context.tensors()), strict=True))
        start = 0
        for stop in range(1, len(rows) + 1):
            if stop < len(rows) and all(map(torch.equal, rows[stop], rows[start])):
                continue
            with self._errors():
                if not self._row or not all(map(torch.equal, rows[start], self._row)):
                    inputs = {
                        name: value.numpy() for name, value in zip(self._inputs, rows[start], strict=True)
                    }
                    self._row, self._encoded = rows[start], self._runner.encode(inputs)
                real = self._runner.endpoints(self._encoded, noise[start:stop].numpy())
            ends[start:stop, :, : self.chunk.action_dim] = torch.from_numpy(real)
            start = stop
        return ends

    def to_action(self, endpoint: Tensor) -> Tensor:
        """Endpoints (B, H, D) to actions in the robot's units (B, H, A)."""
        return torch.from_numpy(self._runner.to_action(endpoint[..., : self.chunk.action_dim].numpy()))

    def velocity(self, x_t: Tensor, t: Tensor, context: Context) -> NoReturn:
        """There is none."""
        raise TypeError("an exported folder has no velocities")

    def role_of(self, name: str) -> Role:
        """The manifest stands for the whole network."""
        return Role.ACTION_HEAD
