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
    """What a policy makes of observations by its own processors: endpoints (K, H, A) of each; `what` is for the bar."""
    policy, found = sampler.policy, []
    real = policy.chunk.action_dim
    with bar(what) as progress, torch.no_grad():
        for done, (item, own) in enumerate(zip(items, noise, strict=True), 1):
            context = policy.encode(policy.preprocess(default_collate([dict(item)])))
            # One as a robot draws it; the others together where the graph can, which encodes anew each time.
            parts = (own[:1], own[1:])
            ends = [sampler(context.repeat(len(part)), part)[..., :real].float() for part in parts]
            found.append(torch.cat(ends))
            progress.update(done, len(items))
    return found


def receipt(
    policy: FlowPolicy,
    folder: ExportedPolicy,
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
    actual = endpoints(Sampler(folder, folder.default_num_steps), items, noise, "exported folder")
    difference = Difference.of(actual, reference)
    # Both of the folder's endpoint, so that a lower precision does not hide what follows it.
    in_units = Difference.of(*([own.to_action(actual[0][:1])] for own in (folder, policy)))
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
