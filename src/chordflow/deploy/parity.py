"""Whether an exported folder acts as its checkpoint does: the same observations, the same noises, both ways.

Shapes: N observations, K noises of each, H chunk size, D padded action dimension, A real action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from chordflow.console import bar
from chordflow.errors import UserError
from chordflow.evaluation.gap import Modes
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy
from chordflow.policies.exported import ExportedPolicy
from chordflow.policies.sampling import Sampler

NOISES = 4
MODE_OBSERVATIONS, MODE_NOISES = 8, 16
"""On so many observations so many noises, so that flips from one mode to another are seen."""

MAX_RELATIVE, RMS_RELATIVE = 1e-4, 1e-5
"""What an export in float32 may differ by."""

type Item = Mapping[str, Any]


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


def endpoints(
    sampler: Sampler, items: Sequence[Item], noise: Sequence[Tensor], what: str = "checkpoint"
) -> list[Tensor]:
    """What a policy makes of observations by its own processors: endpoints (K, H, D) of each; `what` is for the bar."""
    policy, found = sampler.policy, []
    with bar(what) as progress, torch.no_grad():
        for done, (item, own) in enumerate(zip(items, noise, strict=True), 1):
            context = policy.encode(policy.preprocess(default_collate([dict(item)])))
            found.append(sampler(context.repeat(len(own)), own).float())
            progress.update(done, len(items))
    return found


def receipt(
    policy: FlowPolicy,
    folder: ExportedPolicy,
    items: Sequence[Item],
    noise: Sequence[Tensor],
    reference: Sequence[Tensor],
) -> dict[str, Any]:
    """Compares a folder with the checkpoint's endpoints (K, H, D), which were computed in float32.

    Raises:
        UserError: if they differ by more than rounding.
    """
    actual = endpoints(Sampler(folder, folder.default_num_steps), items, noise, "exported folder")
    real = [[ends[..., : policy.chunk.action_dim] for ends in of_one] for of_one in (actual, reference)]
    difference = Difference.of(*real)
    in_units = Difference.of(
        *([own.to_action(ends[0][:1])] for own, ends in ((folder, actual), (policy, reference)))
    )
    for name, most in (("max_relative", MAX_RELATIVE), ("rms_relative", RMS_RELATIVE)):
        for found, of in ((difference, "endpoints"), (in_units, "actions in the robot's units")):
            value = getattr(found, name)
            if not value <= most:
                raise UserError(
                    f"the exported {of} differ from the checkpoint's ({name}={value:.1e}, at most "
                    f"{most:.0e}), so nothing was written; run the checkpoint in LeRobot."
                )
    return {
        "observations": len(items),
        "noises": NOISES,
        **asdict(difference),
        "flips": _flips(policy, actual, reference),
        "flips_of": MODE_OBSERVATIONS * MODE_NOISES,
        "reference": "the checkpoint in float32, which takes the same steps as LeRobot's own class",
    }


def _flips(policy: FlowPolicy, actual: Sequence[Tensor], reference: Sequence[Tensor]) -> int:
    """How many of the pairs on the first observations lie at different modes."""
    first = slice(MODE_OBSERVATIONS)
    modes = Modes(torch.stack(list(reference[first])), policy.chunk)
    labels = [modes.labels(torch.stack(list(ends[first]))) for ends in (actual, reference)]
    return int((labels[0] != labels[1]).sum())
