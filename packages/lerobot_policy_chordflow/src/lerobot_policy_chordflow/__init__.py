"""An exported policy in LeRobot's commands: `--policy.type=chordflow --policy.folder=FOLDER`.

LeRobot looks for policy and processors in modules that it names after that of the config; here all are this one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    PolicyProcessorPipeline,
    policy_action_to_transition,
    transition_to_policy_action,
)
from lerobot.utils.constants import ACTION
from torch import Tensor, nn

from chordflow_runtime import load
from chordflow_runtime.manifest import RunnerError, read_manifest

NOT_TRAINED = "an exported policy is not trained; train the checkpoint and export it again."
KINDS = {"image": FeatureType.VISUAL, "state": FeatureType.STATE}


@PreTrainedConfig.register_subclass("chordflow")
@dataclass
class ChordflowConfig(PreTrainedConfig):
    """Options of an exported policy.

    Attributes:
        folder: what `chordflow export` has made.
        threads: that compute one chunk; by default all cores.
        noise_seed: of the noise; by default every run draws its own.
    """

    device: str | None = "cpu"
    folder: str = ""
    threads: int | None = None
    noise_seed: int | None = None

    def __post_init__(self) -> None:
        """Read what the policy sees from the folder, by the robot's names."""
        super().__post_init__()
        if not self.folder:
            raise RunnerError("policy.folder is empty; give what chordflow export has made.")
        manifest = read_manifest(Path(self.folder))
        own = {name: robot for robot, name in manifest["rename"].items()}
        self.input_features = {}
        for item in manifest["inputs"]:
            if kind := KINDS.get(item["kind"]):
                key = item["key"]
                shape = manifest["images"][key]["shape"] if kind is FeatureType.VISUAL else item["shape"][-1:]
                self.input_features[own.get(key, key)] = PolicyFeature(kind, tuple(shape))
        size = (int(manifest["chunk"]["action_dim"]),)
        self.output_features = {ACTION: PolicyFeature(FeatureType.ACTION, size)}

    @property
    def observation_delta_indices(self) -> None:
        """Of training alone."""

    action_delta_indices = reward_delta_indices = observation_delta_indices

    def get_optimizer_preset(self) -> NoReturn:
        """Raises RunnerError: a graph is not trained."""
        raise RunnerError(NOT_TRAINED)

    get_scheduler_preset = get_optimizer_preset

    def validate_features(self) -> None:
        """Nothing to do: the runner looks at each observation."""


class ChordflowPolicy(PreTrainedPolicy):
    """The folder's runner under LeRobot's names; one observation at a time."""

    config_class = ChordflowConfig
    name = "chordflow"

    def __init__(self, config: ChordflowConfig, **_: Any) -> None:
        """Load the folder; raises RunnerError if that cannot be run here."""
        super().__init__(config)
        self._runner = load(config.folder, threads=config.threads, seed=config.noise_seed)
        # LeRobot asks the first parameter where the policy is.
        self._place = nn.Parameter(torch.zeros(()), requires_grad=False)

    @classmethod
    def from_pretrained(cls, *_: Any, config: ChordflowConfig, **__: Any) -> Self:
        """The policy of the config's folder: there are no other weights."""
        return cls(config)

    def reset(self) -> None:
        """Forget actions and observations, at the start of an episode."""
        self._runner.reset()

    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next action (1, A), in the robot's units, for a batch of one observation."""
        return torch.from_numpy(self._runner.select_action(_only(batch)))[None]

    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The chunk (1, H, A), in the robot's units, for a batch of one observation."""
        return torch.from_numpy(self._runner(_only(batch)))[None]

    def forward(self, batch: dict[str, Tensor] | None = None) -> NoReturn:
        """Raises RunnerError: a graph is not trained."""
        raise RunnerError(NOT_TRAINED)

    get_optim_params = forward


def _only(batch: dict[str, Any]) -> dict[str, Any]:
    """The one observation of a batch, as the runner takes it."""
    seen = {key: value for key, value in batch.items() if key == "task" or key.startswith("observation.")}
    if many := {len(value) for value in seen.values()} - {1}:
        raise RunnerError(f"a batch of {max(many)}: an exported policy takes one; give --eval.batch_size=1.")
    return {
        key: value[0].cpu().numpy() if isinstance(value, Tensor) else value[0] for key, value in seen.items()
    }


def make_chordflow_pre_post_processors(
    config: ChordflowConfig, dataset_stats: object = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """What stands before and after the policy: nothing but the batch, since the runner does the rest."""
    after = PolicyProcessorPipeline(
        [], to_transition=policy_action_to_transition, to_output=transition_to_policy_action
    )
    return PolicyProcessorPipeline([AddBatchDimensionProcessorStep()]), after
