"""The first measures of a student against its teacher: curvature, action gap, latency, trajectories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chordflow.couplings import Observations
from chordflow.errors import UserError
from chordflow.evaluation.gap import Gap, Modes, action_gap
from chordflow.evaluation.latency import measure_latency
from chordflow.evaluation.paired import (
    HeldOutSet,
    MeasureConfig,
    batches,
    encode_held_out,
    solve,
    velocity_of,
)
from chordflow.flow.curvature import Curvature, measure_curvature
from chordflow.flow.solvers import get_solver
from chordflow.policies import FlowPolicy
from chordflow.results.schema import (
    CurvatureRow,
    GapRow,
    Latency,
    PolicyName,
    Reference,
    TrajectoryRow,
)
from chordflow.results.statistics import Estimate, ratio_of_rms

NUM_PICTURED = 24
"""Trajectories of one observation that are kept for a picture."""

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Measures:
    """Everything measured without an environment.

    Attributes:
        curvature: a row per policy.
        gaps: a row per policy, solver, steps and reference.
        latency: encode and step.
        trajectories: a few paths of each policy, on one plane.
        trajectory_axes: share of their variance along its two axes.
        num_observations: held-out observations used.
        multimodal: share of them at which the teacher has several modes.
    """

    curvature: list[CurvatureRow]
    gaps: list[GapRow]
    latency: Latency
    trajectories: list[TrajectoryRow]
    trajectory_axes: list[float]
    num_observations: int
    multimodal: float


@torch.no_grad()
def measure(
    teacher: FlowPolicy,
    student: FlowPolicy,
    observations: Observations,
    config: MeasureConfig,
    *,
    teacher_num_steps: int,
    student_num_steps: int,
    on_progress: Tick = lambda done, total: None,
) -> Measures:
    """Measures a student, as reloaded from its checkpoint, against its teacher.

    The teacher stands beside it untrained: at the same steps by Euler, and by midpoint at the same number of
    network evaluations.

    Args:
        teacher: the frozen teacher.
        student: the reloaded student.
        observations: held out by episode.
        config: how much.
        teacher_num_steps: the teacher's steps as deployed.
        student_num_steps: the student's steps as deployed.
        on_progress: told the network evaluations done, of how many.
    """
    policies: dict[PolicyName, FlowPolicy] = {"teacher": teacher, "student": student}
    held_out = encode_held_out(policies, observations, config)
    work = _Work(held_out, config, on_progress)
    plan = _plan(config.num_steps, teacher_num_steps)
    work.total = work.cost(sum(get_solver(s).nfe_per_step * n for _, s, n in plan))
    work.total += 2 * work.cost(config.converged_num_steps, config.converged_noises)

    action_dim = teacher.chunk.action_dim
    curvature_rows, converged = [], {}
    for name, policy in policies.items():
        sums, ends = work.converge(name, policy)
        curvature_rows.append(_curvature_row(name, sums))
        converged[name] = ends
    deployed = work.solve("teacher", teacher, "euler", teacher_num_steps)
    modes = Modes(deployed, action_dim)

    references: dict[Reference, tuple[Tensor, int]] = {
        "deployed": (deployed, teacher_num_steps),
        "converged": (converged["teacher"], config.converged_num_steps),
    }
    gaps: list[GapRow] = []
    untrained: dict[tuple[str, int, str], Gap] = {}
    for name, solver, num_steps in plan:
        is_deployed = (name, solver, num_steps) == ("teacher", "euler", teacher_num_steps)
        ends = deployed if is_deployed else work.solve(name, policies[name], solver, num_steps)
        for reference, (target, reference_steps) in references.items():
            gap = action_gap(ends[:, : target.shape[1]], target, modes, teacher)
            key = (solver, num_steps, reference)
            ratio = None
            if name == "teacher":
                untrained[key] = gap
            elif key in untrained and untrained[key].rms > 0:
                ratio = _ratio(gap, untrained[key], held_out.episodes, config.seed)
            gaps.append(_gap_row(name, solver, num_steps, reference, reference_steps, gap, ratio))
    trajectories, axes = _trajectories(policies, held_out, deployed, config, action_dim)
    return Measures(
        curvature=curvature_rows,
        gaps=gaps,
        latency=_latency(teacher, observations, config, teacher_num_steps, student_num_steps),
        trajectories=trajectories,
        trajectory_axes=axes,
        num_observations=held_out.num_observations,
        multimodal=float((modes.counts > 1).mean()),
    )


class _Work:
    """Solves on the held-out set and counts what is done."""

    def __init__(self, held_out: HeldOutSet, config: MeasureConfig, on_progress: Tick) -> None:
        self.held_out, self.config, self.on_progress = held_out, config, on_progress
        self.total, self.done = 0, 0

    def cost(self, nfe: int, noises: int | None = None) -> int:
        """Network evaluations of one pass over all batches."""
        count = self.held_out.num_observations
        size = max(1, self.config.batch_size // (noises or self.config.noises_per_observation))
        return nfe * -(-count // size)

    def tick(self, nfe: int) -> None:
        self.done += nfe
        self.on_progress(self.done, self.total)

    def solve(self, name: PolicyName, policy: FlowPolicy, solver: str, num_steps: int) -> Tensor:
        ends = solve(
            policy,
            self.held_out.contexts[name],
            self.held_out.noise,
            num_steps,
            solver=solver,
            batch_size=self.config.batch_size,
            on_batch=self.tick,
        )
        return _finite(ends, name, solver, num_steps)

    def converge(self, name: PolicyName, policy: FlowPolicy) -> tuple[Curvature, Tensor]:
        """Curvature on the fine grid, and the endpoints (N, converged_noises, H, D) that come with it."""
        noise = self.held_out.noise[:, : self.config.converged_noises]
        ends = torch.empty(noise.shape, dtype=torch.float32)
        total: Curvature | None = None
        for part, context, flat in batches(self.held_out.contexts[name], noise, self.config.batch_size):
            sums, end = measure_curvature(
                velocity_of(policy, context),
                flat,
                self.config.converged_num_steps,
                real_dims=policy.chunk.action_dim,
            )
            ends[part] = end.unflatten(0, (-1, noise.shape[1])).float().cpu()
            total = sums if total is None else total.merge(sums)
            self.tick(self.config.converged_num_steps)
        assert total is not None
        return total, _finite(ends, name, "euler", self.config.converged_num_steps)


def _finite(ends: Tensor, name: PolicyName, solver: str, num_steps: int) -> Tensor:
    """The endpoints, if they can be measured.

    Raises:
        UserError: if one is NaN or infinite.
    """
    if not ends.isfinite().all():
        raise UserError(
            f"{name}: {num_steps} {solver} steps end in NaN or infinite actions; train again with a lower "
            "--optimizer.lr, or check the teacher's weights."
        )
    return ends


def _plan(num_steps: list[int], teacher_num_steps: int) -> list[tuple[PolicyName, str, int]]:
    """Which policy is solved how: the teacher first, so that the student's ratios have their denominator."""
    steps = sorted({*num_steps, teacher_num_steps})
    plan: list[tuple[PolicyName, str, int]] = [("teacher", "euler", n) for n in steps]
    # Midpoint spends two evaluations a step: what the same budget gives without training.
    plan += [("teacher", "midpoint", n // 2) for n in steps if n % 2 == 0]
    return plan + [("student", "euler", n) for n in sorted(set(num_steps))]


def _curvature_row(policy: PolicyName, sums: Curvature) -> CurvatureRow:
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
    )


def _ratio(gap: Gap, untrained: Gap, episodes: Tensor, seed: int) -> Estimate:
    """The RMS ratio with its interval over episodes: frames of one episode are not independent."""
    return ratio_of_rms(
        gap.distance.ravel(),
        untrained.distance.ravel(),
        seed=seed,
        clusters=np.repeat(episodes.numpy(), gap.distance.shape[1]),
    )


def _gap_row(
    policy: PolicyName,
    solver: str,
    num_steps: int,
    reference: Reference,
    reference_steps: int,
    gap: Gap,
    ratio: Estimate | None,
) -> GapRow:
    return GapRow(
        policy=policy,
        solver=solver,
        num_steps=num_steps,
        nfe=get_solver(solver).nfe(num_steps),
        reference=reference,
        reference_num_steps=reference_steps,
        rms=gap.rms,
        median=gap.median,
        flip_rate=gap.flip_rate,
        max_abs=gap.max_abs,
        mean_abs=gap.mean_abs,
        observations=gap.distance.shape[0],
        pairs=gap.distance.size,
        ratio_to_untrained=ratio,
    )


def _latency(
    teacher: FlowPolicy,
    observations: Observations,
    config: MeasureConfig,
    teacher_steps: int,
    student_steps: int,
) -> Latency:
    items = next(observations.batches([0], 1))
    return measure_latency(
        teacher,
        items,
        config.latency_repeats,
        teacher_num_steps=teacher_steps,
        student_num_steps=student_steps,
    )


def _trajectories(
    policies: dict[PolicyName, FlowPolicy],
    held_out: HeldOutSet,
    deployed: Tensor,
    config: MeasureConfig,
    action_dim: int,
) -> tuple[list[TrajectoryRow], list[float]]:
    """Paths of both policies from the same noises at the observation where endpoints spread most.

    The plane is that of the two main components of the teacher's states over the real dimensions; there an
    arc is seen as an arc.

    Returns:
        The rows, and the share of the teacher's variance along each axis.
    """
    flat = deployed[..., :action_dim].flatten(2)
    observation = int(flat.var(dim=1).sum(dim=-1).argmax())
    noise = held_out.noise[observation, : min(NUM_PICTURED, held_out.noise.shape[1])]
    paths: dict[PolicyName, NDArray[np.float64]] = {}
    for name, policy in policies.items():
        context = held_out.contexts[name].index(torch.tensor([observation])).repeat(len(noise))
        states = get_solver("euler").path(velocity_of(policy, context), noise, config.converged_num_steps)
        paths[name] = states[..., :action_dim].flatten(2).double().cpu().numpy()
    cloud = paths["teacher"].reshape(-1, paths["teacher"].shape[-1])
    centre = cloud.mean(axis=0)
    _, scales, components = np.linalg.svd(cloud - centre, full_matrices=False)
    if len(components) < 2:
        # A single real number per chunk has no second component: it is drawn against zero.
        components, scales = np.pad(components, ((0, 1), (0, 0))), np.pad(scales, (0, 1))
    every = max(1, config.converged_num_steps // 50)
    rows = []
    for name, path in paths.items():
        kept = (np.concatenate([path[:-1:every], path[-1:]]) - centre) @ components[:2].T
        rows += [
            TrajectoryRow(
                policy=name, observation=observation, x=kept[:, k, 0].tolist(), y=kept[:, k, 1].tolist()
            )
            for k in range(kept.shape[1])
        ]
    return rows, (scales[:2] ** 2 / (scales**2).sum()).tolist()
