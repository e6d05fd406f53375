"""Whether an exported folder acts as its checkpoint does: the same observations, the same noises, both ways.

Shapes: N observations, K noises of each, H chunk size, D padded action dimension, A real action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lerobot.utils.constants import OBS_PREFIX
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
STOCK_OBSERVATIONS = 2
"""On which chordflow's adapter is compared with LeRobot's class."""

MODE_OBSERVATIONS, MODE_NOISES = 8, 16
"""On so many observations so many noises, so that flips from one mode to another are seen."""

EXACT = {"max_relative": 1e-4, "rms_relative": 1e-5}
"""What may differ in float32."""

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
            # As many together as there are, since one graph encodes anew each time; sometimes one, as on a robot.
            parts = (own[:1], own[1:]) if len(own) > NOISES else (own,)
            ends = [sampler(context.repeat(len(part)), part)[..., :real].float() for part in parts]
            found.append(torch.cat(ends))
            progress.update(done, len(items))
    return found


def check_stock(policy: FlowPolicy, items: Sequence[Item], num_steps: int) -> Difference:
    """How far the adapter, which is traced, acts from LeRobot's own class on the first observations.

    Both take Euler steps from the noise that LeRobot draws of torch's global generator, at an episode's start.

    Raises:
        UserError: if they differ by more than rounding.
    """
    stock, chunk, found, wanted = policy.policy, policy.chunk, [], []
    policy.set_num_steps(num_steps)
    if policy.rtc_config is not None:
        policy.rtc_config.enabled = False
    for seed, item in enumerate(items[:STOCK_OBSERVATIONS]):
        now, history = {"task": item["task"]}, {"task": item["task"]}
        for key in [key for key in item if key.startswith(OBS_PREFIX)]:
            one_step = len(policy.observation_delta_indices or [0]) == 1
            now[key] = item[key] if one_step else item[key][-1]
            history[key] = item[key] if one_step else now[key].expand_as(item[key])
        with torch.no_grad():
            noise = policy.sample_noise(1, torch.manual_seed(seed))
            end = Sampler(policy, num_steps)(
                policy.encode(policy.preprocess(default_collate([history]))), noise
            )
            found.append(end[0, chunk.first_executed :, : chunk.action_dim][: chunk.num_executed])
            torch.manual_seed(seed)
            stock.reset()
            batch = policy.preprocessor(default_collate([now]))
            wanted.append(torch.cat([stock.select_action(dict(batch)) for _ in found[-1]]))
    difference = Difference.of(found, wanted)
    _refuse_above(
        EXACT, difference, "chordflow's actions differ from those of LeRobot's own class", "please report it"
    )
    return difference


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
    other = "another --backend or --precision may be nearer"
    if max_gap is not None:
        other = f"--max_gap=... allows more, {other}"
    bounds = EXACT if max_gap is None else {"gap_percent": max_gap}
    _refuse_above(bounds, difference, "the exported endpoints differ from the checkpoint's", other)
    _refuse_above(
        EXACT, in_units, "the exported actions in the robot's units differ from the checkpoint's", other
    )
    return {
        "observations": len(items),
        "noises": NOISES,
        **asdict(difference),
        "flips": _flips(policy, actual, reference),
        "flips_of": MODE_OBSERVATIONS * MODE_NOISES,
        "reference": "the checkpoint in float32, by chordflow's adapter",
    }


def _refuse_above(bounds: Mapping[str, float], found: Difference, what: str, remedy: str) -> None:
    for name, most in bounds.items():
        value = getattr(found, name)
        if not value <= most:
            raise UserError(
                f"{what} ({name}={value:.2g}, at most {most:g}), so nothing was written; {remedy}."
            )


def _flips(policy: FlowPolicy, actual: Sequence[Tensor], reference: Sequence[Tensor]) -> int:
    """How many of the pairs on the first observations lie at different modes."""
    first = slice(MODE_OBSERVATIONS)
    modes = Modes(torch.stack(list(reference[first])), policy.chunk)
    labels = [modes.labels(torch.stack(list(ends[first]))) for ends in (actual, reference)]
    return int((labels[0] != labels[1]).sum())
