"""Solving on held-out observations with a count of the work, and what was found as rows of results.

Shapes: N observations, K noises for each, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chordflow.errors import UserError
from chordflow.evaluation.paired import HeldOutSet, MeasureConfig, Way, over_batches, solve
from chordflow.flow.curvature import Curvature, measure_curvature
from chordflow.flow.solvers import Velocity
from chordflow.policies import FlowPolicy
from chordflow.results.actions import CurvatureRow, PolicyName
from chordflow.results.statistics import ratio_of_rms

Tick = Callable[[int, int], None]


class Work:
    """Solves on the held-out set and counts what is done.

    Args:
        held_out: observations, encoded for every policy that is solved, and noises.
        config: how much.
        on_progress: told the network evaluations done, of `total`.

    Attributes:
        total: network evaluations of all that is to be done, for the caller to set.
        done: of them.
    """

    def __init__(self, held_out: HeldOutSet, config: MeasureConfig, on_progress: Tick) -> None:
        self.held_out, self.config, self.on_progress = held_out, config, on_progress
        self.total, self.done = 0, 0

    def cost(self, nfe: int, noises: int | None = None, rows: Tensor | None = None) -> int:
        """Network evaluations of one pass over all batches, of some observations where `rows` names them."""
        count = self.held_out.num_observations if rows is None else len(rows)
        size = max(1, self.config.batch_size // (noises or self.config.noises_per_observation))
        return nfe * -(-count // size)

    def tick(self, nfe: int) -> None:
        """Counts evaluations that were done."""
        self.done += nfe
        self.on_progress(self.done, self.total)

    def solve(self, name: PolicyName, policy: FlowPolicy, ways: list[Way], noises: int) -> dict[Way, Tensor]:
        """Endpoints (N, noises, H, D) by several ways.

        Raises:
            UserError: if one is not finite.
        """
        ends = solve(
            policy,
            self.held_out.contexts[name],
            self.held_out.noise[:, :noises],
            ways,
            batch_size=self.config.batch_size,
            on_batch=self.tick,
        )
        for way, found in ends.items():
            require_finite(found, name, way)
        return ends

    def converge(self, name: PolicyName, policy: FlowPolicy) -> tuple[Curvature, Tensor]:
        """Curvature on the fine grid, and the endpoints (N, converged_noises, H, D) that come with it.

        Raises:
            UserError: if one is not finite.
        """
        noise = self.held_out.noise[:, : self.config.converged_noises]
        steps, ends = self.config.converged_num_steps, torch.empty(noise.shape, dtype=torch.float32)
        total: Curvature | None = None

        def follow(velocity: Velocity, flat: Tensor) -> tuple[Curvature, Tensor]:
            chunk = policy.chunk
            return measure_curvature(
                velocity, flat, steps, real_dims=chunk.action_dim, real_rows=chunk.real_rows
            )

        context, size = self.held_out.contexts[name], self.config.batch_size
        for part, (sums, end) in over_batches(policy, context, noise, size, follow):
            ends[part] = end.unflatten(0, (-1, noise.shape[1])).float().cpu()
            total = sums if total is None else total.merge(sums)
            self.tick(steps)
        assert total is not None
        require_finite(ends, name, Way("euler", steps))
        return total, ends


def require_finite(ends: Tensor, name: PolicyName, way: Way) -> None:
    """Makes sure that endpoints can be measured.

    Raises:
        UserError: if one is NaN or infinite.
    """
    if not ends.isfinite().all():
        raise UserError(
            f"{name}: {way.num_steps} {way.solver} steps end in NaN or infinite actions; train again with a lower "
            "--optimizer.lr, or check the teacher's weights."
        )


def curvature_row(policy: PolicyName, sums: Curvature, held_out: HeldOutSet, seed: int) -> CurvatureRow:
    """A policy's curvature with its interval over episodes.

    Args:
        policy: whose.
        sums: along the trajectories of all observations and their noises, in that order.
        held_out: the observations.
        seed: of the bootstrap.
    """
    interval = None
    if sums.chord_of_each.sum() > 0 and sums.deviation_of_each.sum() > 0:
        clusters = held_out.episodes.repeat_interleave(sums.count // held_out.num_observations)
        roots = (sums.deviation_of_each.sqrt().numpy(), sums.chord_of_each.sqrt().numpy())
        interval = ratio_of_rms(*roots, seed=seed, clusters=clusters.numpy()).interval
    return CurvatureRow(
        policy=policy,
        num_steps=sums.num_steps,
        trajectories=sums.count,
        s=sums.s,
        curvature=sums.curvature,
        s_all_dims=sums.s_all_dims,
        curvature_all_dims=sums.curvature_all_dims,
        times=sums.times.tolist(),
        s_by_time=sums.s_by_time.tolist(),
        s_by_dim=sums.s_by_dim.tolist(),
        s_by_time_and_dim=sums.s_by_time_and_dim[:, : sums.real_dims].tolist(),
        interval=interval,
    )
