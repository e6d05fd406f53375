"""The action gap: how far one way to act lies from another on the same observation and noise.

Shapes: N observations, K noises for each, H chunk size, D padded action dimension, A real dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chordflow.errors import UserError
from chordflow.evaluation.modes import mode_centres, nearest_mode
from chordflow.policies import FlowPolicy


@dataclass(frozen=True)
class Gap:
    """Distances between two sets of endpoints.

    Attributes:
        distance: relative distance of every pair, (N, K): its norm over H and A, divided by the reference's
            root-mean-square spread.
        flips: (N, K), true where a pair lies at different modes.
        max_abs: largest absolute difference in the robot's units.
        mean_abs: mean absolute difference in the robot's units.
    """

    distance: NDArray[np.float64]
    flips: NDArray[np.bool_]
    max_abs: float
    mean_abs: float

    @property
    def rms(self) -> float:
        """sqrt(mean ||a - ref||^2 / mean ||ref - mean ref||^2)."""
        return float(np.sqrt(np.mean(self.distance**2)))

    @property
    def median(self) -> float:
        """Median over pairs."""
        return float(np.median(self.distance))

    @property
    def flip_rate(self) -> float:
        """Share of pairs that lie at different modes."""
        return float(self.flips.mean())


class Modes:
    """The modes of a policy at each of N observations, from its endpoints (N, K, H, D).

    Args:
        endpoints: of the teacher as deployed.
        action_dim: A.
    """

    def __init__(self, endpoints: Tensor, action_dim: int) -> None:
        self.action_dim = action_dim
        self.centres = [mode_centres(ends) for ends in _flat(endpoints, action_dim)]

    @property
    def counts(self) -> NDArray[np.int_]:
        """Number of modes of each observation, (N,)."""
        return np.array([len(centres) for centres in self.centres])

    def labels(self, endpoints: Tensor) -> NDArray[np.int_]:
        """Nearest mode of each endpoint, (N, K)."""
        flat = _flat(endpoints, self.action_dim)
        return np.stack(
            [nearest_mode(ends, centres) for ends, centres in zip(flat, self.centres, strict=True)]
        )


def action_gap(actual: Tensor, reference: Tensor, modes: Modes, policy: FlowPolicy) -> Gap:
    """The gap of `actual` to `reference`, both (N, K, H, D), over the real dimensions.

    Args:
        actual: endpoints of the policy in question.
        reference: endpoints of the teacher from the same noises.
        modes: the teacher's.
        policy: for the way from endpoints to the robot's units.

    Raises:
        UserError: if the reference's endpoints do not differ, so that a relative gap is not defined.
    """
    a, r = _flat(actual, modes.action_dim), _flat(reference, modes.action_dim)
    spread = np.mean(np.sum((r - r.mean(axis=(0, 1))) ** 2, axis=-1))
    squared = np.sum((a - r) ** 2, axis=-1)
    if spread == 0:
        raise UserError(
            f"measure.num_observations: the teacher's endpoints are all equal over {r.shape[0]} observation(s) and "
            f"{r.shape[1]} noise(s), so a relative gap is not defined; measure on more observations "
            "(--dataset.eval_split) or raise measure.converged_noises."
        )
    units = (_units(actual, policy) - _units(reference, policy)).abs()
    return Gap(
        distance=np.sqrt(squared / spread),
        flips=modes.labels(actual) != modes.labels(reference),
        max_abs=float(units.max()),
        mean_abs=float(units.mean()),
    )


def _flat(endpoints: Tensor, action_dim: int) -> NDArray[np.float64]:
    """(N, K, H * A), float64."""
    return endpoints[..., :action_dim].double().flatten(2).numpy()


def _units(endpoints: Tensor, policy: FlowPolicy) -> Tensor:
    with torch.no_grad():
        return policy.to_action(endpoints.flatten(0, 1).to(policy.device)).cpu()
