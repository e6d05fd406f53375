"""Whether an exported folder acts as its checkpoint does: the same observations, the same noises, both ways.

Shapes: N observations, K noises of each, H chunk size, D padded action dimension, A real action dimension.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from chordflow.console import bar
from chordflow.errors import UserError
from chordflow.evaluation.gap import Modes
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy
from chordflow.policies.sampling import Sampler

NOISES = 4
MODE_OBSERVATIONS, MODE_NOISES = 8, 16
"""On so many observations so many noises, so that flips from one mode to another are seen."""

MAX_RELATIVE, RMS_RELATIVE = 1e-4, 1e-5
"""What an export in float32 may differ by."""

type Item = Mapping[str, Any]


class Runner(Protocol):
    """What is asked of a loaded folder; `chordflow_runtime` has it."""

    def prepare(self, observation: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The graph's inputs."""

    def endpoint(self, inputs: Mapping[str, NDArray[Any]], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """The normalised chunk (H, A)."""

    def __call__(self, observation: Mapping[str, Any], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """The chunk (H, A) in the robot's units."""


@dataclass(frozen=True)
class Difference:
    """How far endpoints lie from the checkpoint's in float32, over the real dimensions.

    Attributes:
        max_relative: largest difference of a number, of the largest number.
        rms_relative: root-mean-square difference, of the root-mean-square number.
        gap_percent: root-mean-square distance, of the endpoints' spread about their mean.
    """

    max_relative: float
    rms_relative: float
    gap_percent: float

    @classmethod
    def of(cls, actual: Sequence[Tensor], reference: Sequence[Tensor]) -> Difference:
        """The difference of endpoints (K, H, A) of every observation."""
        a, r = torch.cat(list(actual)).double(), torch.cat(list(reference)).double()
        distance = (a - r).square().mean().sqrt()
        spread = (r - r.mean(0)).square().mean().sqrt()
        return cls(
            max_relative=float((a - r).abs().max() / r.abs().max()),
            rms_relative=float(distance / r.square().mean().sqrt()),
            gap_percent=100 * float(distance / spread),
        )


def noises(policy: FlowPolicy, count: int) -> list[Tensor]:
    """Noise (K, H, D) of every observation, more for the first ones."""
    return [
        policy.sample_noise(MODE_NOISES if i < MODE_OBSERVATIONS else NOISES, generator(0, "parity", i))
        for i in range(count)
    ]


def checkpoint_endpoints(sampler: Sampler, items: Sequence[Item], noise: Sequence[Tensor]) -> list[Tensor]:
    """What the checkpoint makes of observations by its own processors: endpoints (K, H, A) of each."""
    policy, found = sampler.policy, []
    real = sampler.policy.chunk.action_dim
    with bar("checkpoint") as progress, torch.no_grad():
        for done, (item, own) in enumerate(zip(items, noise, strict=True), 1):
            context = policy.encode(policy.preprocess(default_collate([dict(item)])))
            found.append(sampler(context.repeat(len(own)), own)[..., :real].float())
            progress.update(done, len(items))
    return found


def folder_endpoints(runner: Runner, items: Sequence[Item], noise: Sequence[Tensor]) -> list[Tensor]:
    """What the folder makes of them: endpoints (K, H, A) of each."""
    found = []
    with bar("exported folder") as progress, warnings.catch_warnings():
        # Prompts that are cut, as the checkpoint cuts them.
        warnings.simplefilter("ignore")
        for done, (item, own) in enumerate(zip(items, noise, strict=True), 1):
            inputs = runner.prepare(as_robot(item))
            ends = [runner.endpoint(inputs, one[None].numpy()) for one in own]
            found.append(torch.from_numpy(np.stack(ends)))
            progress.update(done, len(items))
    return found


def receipt(
    policy: FlowPolicy,
    runner: Runner,
    items: Sequence[Item],
    noise: Sequence[Tensor],
    reference: Sequence[Tensor],
    max_gap: float | None,
) -> dict[str, Any]:
    """Compares a folder with the checkpoint's endpoints (K, H, A), which were computed in float32.

    A folder in a lower precision may have a gap of `max_gap` percent; one in float32, for which that is None, may
    differ by rounding.

    Raises:
        UserError: if they differ by more.
    """
    actual = folder_endpoints(runner, items, noise)
    difference = Difference.of(actual, reference)
    # Of its own endpoint, so that no precision blurs what the folder does to it afterwards.
    units = policy.to_action(actual[0][:1])
    in_units = Difference.of(
        [torch.from_numpy(runner(as_robot(items[0]), noise[0][:1].numpy()))[None]], [units]
    )
    exact = {"max_relative": MAX_RELATIVE, "rms_relative": RMS_RELATIVE}
    _refuse_above(exact if max_gap is None else {"gap_percent": max_gap}, difference, "endpoints")
    _refuse_above(exact, in_units, "actions in the robot's units")
    return {
        "observations": len(items),
        "noises": NOISES,
        **asdict(difference),
        "flips": _flips(policy, actual, reference),
        "flips_of": MODE_OBSERVATIONS * MODE_NOISES,
        "reference": "the checkpoint in float32, which takes the same steps as LeRobot's own class",
    }


def _refuse_above(bounds: Mapping[str, float], found: Difference, of: str) -> None:
    for name, most in bounds.items():
        value = getattr(found, name)
        if not value <= most:
            other = "--max_gap=... allows more, " if name == "gap_percent" else ""
            raise UserError(
                f"the exported {of} differ from the checkpoint's ({name}={value:.2g}, at most {most:g}), so nothing "
                f"was written; {other}another --backend or --precision may be nearer."
            )


def _flips(policy: FlowPolicy, actual: Sequence[Tensor], reference: Sequence[Tensor]) -> int:
    """How many of the pairs on the first observations lie at different modes."""
    first = slice(MODE_OBSERVATIONS)
    modes = Modes(torch.stack(list(reference[first])), policy.chunk)
    labels = [modes.labels(torch.stack(list(ends[first]))) for ends in (actual, reference)]
    return int((labels[0] != labels[1]).sum())


def as_robot(item: Item) -> dict[str, Any]:
    """An observation as a process without PyTorch has it."""
    return {key: value.numpy() if isinstance(value, Tensor) else value for key, value in item.items()}
