"""The action gap: how far one way to act lies from another on the same observation and noise.

Shapes: N observations, K noises for each, H chunk size, D padded action dimension, A real dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chordflow.errors import UserError
from chordflow.evaluation.modes import mode_centres, nearest_mode
from chordflow.evaluation.paired import Way
from chordflow.policies import ChunkSpec, FlowPolicy
from chordflow.results.actions import REFERENCES, TEACHER, GapRow, PolicyName, Reference
from chordflow.results.statistics import Estimate, Interval, ratio_of_rms


@dataclass(frozen=True)
class Gap:
    """Distances between two sets of endpoints.

    Attributes:
        distance: relative distance of every pair, (N, K): its norm over real actions and A, divided by the reference's
            root-mean-square spread.
        spread: distance of every reference from their mean, divided by the same, (N, K).
        flips: (N, K), true where a pair lies at different modes.
        max_abs: largest absolute difference in the robot's units; `mean_abs` is their mean.
    """

    distance: NDArray[np.float64]
    spread: NDArray[np.float64]
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

    def interval(self, episodes: NDArray[np.int_], seed: int) -> Interval | None:
        """Interval of `rms` over the episodes (N,), whose frames and noises are not independent; None for one episode.

        The RMS is a ratio of two sums over pairs, distances and spread; a resampled episode brings its part of
        both. The mean that the spread is taken from stays that of all pairs.
        """
        if not self.distance.any():
            # The same endpoints are at no distance in any episode.
            return Interval(0.0, 0.0) if len(np.unique(episodes)) > 1 else None
        clusters = np.repeat(episodes, self.distance.shape[1])
        return ratio_of_rms(self.distance.ravel(), self.spread.ravel(), seed=seed, clusters=clusters).interval


class Modes:
    """The modes of a policy at each of N observations, from the real part of its endpoints (N, K, H, D)."""

    def __init__(self, endpoints: Tensor, chunk: ChunkSpec) -> None:
        self.chunk = chunk
        self.centres = [mode_centres(ends) for ends in flatten(endpoints, chunk)]

    @property
    def counts(self) -> NDArray[np.int_]:
        """Number of modes of each observation, (N,)."""
        return np.array([len(centres) for centres in self.centres])

    def of(self, rows: Tensor) -> Modes:
        """Those of some of the observations, whose places are `rows`."""
        some = copy(self)
        some.centres = [self.centres[row] for row in rows.tolist()]
        return some

    def labels(self, endpoints: Tensor) -> NDArray[np.int_]:
        """Nearest mode of each endpoint, (N, K)."""
        pairs = zip(flatten(endpoints, self.chunk), self.centres, strict=True)
        return np.stack([nearest_mode(ends, centres) for ends, centres in pairs])


def action_gap(actual: Tensor, reference: Tensor, modes: Modes, policy: FlowPolicy) -> Gap:
    """The gap of endpoints to the teacher's from the same noises, both (N, K, H, D), over the real dimensions.

    `modes` are the teacher's; `policy` has the way from endpoints to the robot's units.

    Raises:
        UserError: if the reference's endpoints do not differ, so that a relative gap is not defined.
    """
    a, r = flatten(actual, modes.chunk), flatten(reference, modes.chunk)
    from_mean = np.sum((r - r.mean(axis=(0, 1))) ** 2, axis=-1)
    spread = np.mean(from_mean)
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
        spread=np.sqrt(from_mean / spread),
        flips=modes.labels(actual) != modes.labels(reference),
        max_abs=float(units.max()),
        mean_abs=float(units.mean()),
    )


@dataclass(frozen=True)
class Targets:
    """A teacher's endpoints that others are compared with, all on the same observations and noises.

    Attributes:
        teacher: whose.
        deployed: its endpoints as deployed, (N, K, H, D).
        way: how it is deployed.
        converged: endpoints of its converged ODE, (N, K, H, D); the noises may be fewer.
        converged_steps: Euler steps of that.
        modes: found among its endpoints as deployed.
        episodes: of each observation, (N,).
        seed: of the bootstrap.
        noises: of each observation on which gaps are measured, where that is fewer than were solved.
    """

    teacher: FlowPolicy
    deployed: Tensor
    way: Way
    converged: Tensor
    converged_steps: int
    modes: Modes
    episodes: Tensor
    seed: int
    noises: int | None = None

    @cached_property
    def floor(self) -> Gap:
        """Of the teacher as deployed to its converged ODE."""
        return self.gap(self.deployed, "converged")

    def at(self, rows: Tensor, noises: int) -> Targets:
        """Those of some of the observations, whose places are `rows`, on the first noises."""
        return replace(
            self,
            deployed=self.deployed[rows, :noises],
            converged=self.converged[rows, :noises],
            modes=self.modes.of(rows),
            episodes=self.episodes[rows],
            noises=None,
        )

    def gap(self, ends: Tensor, reference: Reference) -> Gap:
        """The distances of endpoints (N, K, H, D), on the noises that both have."""
        target = self.deployed if reference == "deployed" else self.converged
        noises = min(ends.shape[1], target.shape[1], self.noises or ends.shape[1])
        return action_gap(ends[:, :noises], target[:, :noises], self.modes, self.teacher)

    def gaps(self, policy: PolicyName, solved: Mapping[Way, Tensor]) -> dict[tuple[Way, Reference], Gap]:
        """Those of a policy's endpoints (N, K, H, D) by several ways; the teacher's own as deployed is `floor`."""
        found = {}
        for (way, ends), reference in product(solved.items(), REFERENCES):
            itself = (policy, way, reference) == (TEACHER, self.way, "converged")
            found[way, reference] = self.floor if itself else self.gap(ends, reference)
        return found

    def row(self, policy: PolicyName, way: Way, reference: Reference, gap: Gap) -> GapRow:
        """A gap as results hold it: with its interval and, to the converged ODE, beside the floor unless it is that."""
        converged = reference == "converged"
        beside = converged and gap is not self.floor and self.floor.rms > 0
        return GapRow(
            policy=policy,
            solver=way.solver,
            num_steps=way.num_steps,
            grid_power=way.grid_power,
            nfe=way.nfe,
            reference=reference,
            reference_num_steps=self.converged_steps if converged else self.way.num_steps,
            rms=gap.rms,
            median=gap.median,
            flip_rate=gap.flip_rate,
            max_abs=gap.max_abs,
            mean_abs=gap.mean_abs,
            observations=gap.distance.shape[0],
            pairs=gap.distance.size,
            interval=gap.interval(self.episodes.numpy(), self.seed),
            ratio_to_floor=self.ratio(gap, self.floor) if beside else None,
            nearer_than_deployed=float((gap.distance < self.floor.distance).mean()) if beside else None,
        )

    def ratio(self, gap: Gap, other: Gap | None) -> Estimate | None:
        """One gap's RMS over another's of the same pairs, with its interval over episodes; None over none or zero."""
        if other is None or other.rms == 0:
            return None
        clusters = np.repeat(self.episodes.numpy(), gap.distance.shape[1])
        return ratio_of_rms(gap.distance.ravel(), other.distance.ravel(), seed=self.seed, clusters=clusters)


def flatten(endpoints: Tensor, chunk: ChunkSpec) -> NDArray[np.float64]:
    """Endpoints (N, K, H, D) over the real actions and dimensions, (N, K, H * A), float64."""
    return chunk.real(endpoints).double().flatten(2).numpy()


def _units(endpoints: Tensor, policy: FlowPolicy) -> Tensor:
    with torch.no_grad():
        actions = policy.to_action(endpoints.flatten(0, 1).to(policy.device)).cpu()
    return actions[:, policy.chunk.real_rows]


@torch.no_grad()
def check_same_units(teacher: FlowPolicy, other: FlowPolicy, where: str) -> None:
    """Makes sure that two policies turn the same endpoints into the same actions; `where` names the other.

    Gaps are taken between endpoints: by other statistics of the action they would be between different things.

    Raises:
        UserError: if they do not.
    """
    probe = torch.linspace(-1, 1, 3)[:, None, None].expand(3, *teacher.chunk.shape)
    wanted, own = (policy.to_action(probe.to(policy.device)).cpu().float() for policy in (teacher, other))
    off = (own - wanted).abs()
    if (off > 1e-3 * (wanted[2] - wanted[0]).abs() + 1e-6 * wanted.abs()).any():
        raise UserError(
            f"{where}: its postprocessor has other statistics of action than the teacher's (the same endpoint becomes "
            f"actions up to {off.max():.3g} apart), so a gap between endpoints would mean nothing; compare it in "
            "episodes only (leave --dataset.* of evaluate out), or give a checkpoint that was made from this teacher."
        )
