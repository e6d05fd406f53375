"""What can be measured of policies without an environment: curvature, action gap, spread, latency, trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from chordflow.couplings import Observations
from chordflow.errors import UserError
from chordflow.evaluation.gap import Gap, Modes, action_gap
from chordflow.evaluation.latency import measure_latency
from chordflow.evaluation.paired import (
    HeldOutSet,
    MeasureConfig,
    Way,
    encode_held_out,
    over_batches,
    solve,
)
from chordflow.evaluation.spread import observation_spreads, widest_observations
from chordflow.evaluation.trajectories import trajectories
from chordflow.flow.curvature import Curvature, measure_curvature
from chordflow.flow.solvers import Velocity, get_solver
from chordflow.policies import FlowPolicy
from chordflow.policies.sampling import Sampler
from chordflow.results.schema import (
    STUDENT,
    TEACHER,
    CurvatureRow,
    GapRow,
    Latency,
    ObservationSpread,
    PolicyName,
    Reference,
    TrajectoryRow,
    WideObservation,
)
from chordflow.results.statistics import Estimate, ratio_of_rms

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Measures:
    """Everything measured without an environment.

    Attributes:
        curvature: a row per policy.
        gaps: a row per policy, solver, steps and reference.
        latency: encode, step and whole chunks.
        trajectories: a few paths of each policy, on one plane.
        trajectory_axes: share of their variance along its two axes.
        spreads: how two-sided the teacher is at each observation.
        widest: the observations at which its endpoints spread most.
        num_observations: held-out observations used.
        multimodal: share of them at which the teacher has several modes.
    """

    curvature: list[CurvatureRow]
    gaps: list[GapRow]
    latency: Latency
    trajectories: list[TrajectoryRow]
    trajectory_axes: list[float]
    spreads: list[ObservationSpread]
    widest: list[WideObservation]
    num_observations: int
    multimodal: float


@torch.no_grad()
def measure(
    policies: Mapping[PolicyName, Sampler],
    observations: Observations,
    config: MeasureConfig,
    *,
    on_progress: Tick = lambda done, total: None,
) -> Measures:
    """Measures a teacher, and students as reloaded from their checkpoints against it.

    The teacher is also measured untrained: at the steps of `config` and of every other policy by Euler, and by
    the other solvers of `config` at the same number of network evaluations. The others are measured by Euler at
    the steps of `config` and their own.

    Args:
        policies: by name, each with its steps as evaluated; `teacher` is one of them, frozen, with its steps as
            deployed. All are of one family and chunk, and run by Euler as LeRobot runs them. Where prefixes agree
            an observation is encoded once for all.
        observations: held out by episode.
        config: how much.
        on_progress: told the network evaluations done, of how many.

    Raises:
        UserError: for observations that cannot be read, or actions that are not finite.
        ValueError: if there is no teacher or a policy has another solver than Euler.
    """
    if TEACHER not in policies or any(sampler.solver != "euler" for sampler in policies.values()):
        raise ValueError("policies need one that is named teacher, and the solver euler for all")
    policies = {TEACHER: policies[TEACHER], **policies}
    networks = {name: sampler.policy for name, sampler in policies.items()}
    teacher, teacher_steps = networks[TEACHER], policies[TEACHER].num_steps
    config = replace(config, converged_num_steps=config.fine_num_steps(teacher_steps))
    latency = _latency(policies, observations, config)
    held_out = encode_held_out(networks, observations, config)
    ways = _ways(policies, config)
    work = _Work(held_out, config, on_progress)
    compared = config.gap_noises or config.noises_per_observation
    as_deployed = Way("euler", teacher_steps)
    work.total = work.cost(sum(way.nfe for of_one in ways.values() for way in of_one), compared)
    if compared < config.noises_per_observation:
        work.total += work.cost(teacher_steps)
    work.total += len(networks) * work.cost(config.converged_num_steps, config.converged_noises)

    curvature, converged = [], {}
    for name, network in networks.items():
        sums, ends = work.converge(name, network)
        curvature.append(_curvature_row(name, sums, held_out, config.seed))
        converged[name] = ends
    gaps: list[GapRow] = []
    untrained: dict[tuple[Way, Reference], Gap] = {}
    for name, network in networks.items():
        solved = work.solve(name, network, ways[name], compared)
        if name == TEACHER:
            # Modes and spread are seen from all noises.
            if compared == config.noises_per_observation:
                deployed = solved[as_deployed]
            else:
                deployed = work.solve(name, network, [as_deployed], config.noises_per_observation)[
                    as_deployed
                ]
                # The same to the bit, so that the teacher's gap to itself is zero.
                solved[as_deployed] = deployed[:, :compared]
            modes = Modes(deployed, teacher.chunk)
            references: dict[Reference, tuple[Tensor, int]] = {
                "deployed": (deployed, teacher_steps),
                "converged": (converged[TEACHER], config.converged_num_steps),
            }
        for (way, ends), (reference, (target, fine)) in product(solved.items(), references.items()):
            noises = min(ends.shape[1], target.shape[1])
            gap = action_gap(ends[:, :noises], target[:, :noises], modes, teacher)
            ratio = None
            if name == TEACHER:
                untrained[way, reference] = gap
            elif untrained[way, reference].rms > 0:
                ratio = _ratio(gap, untrained[way, reference], held_out.episodes, config.seed)
            interval = gap.interval(held_out.episodes.numpy(), config.seed)
            row = _gap_row(name, way, reference, fine, gap)
            gaps.append(replace(row, ratio_to_untrained=ratio, interval=interval))
    paths, axes = trajectories(networks, held_out, deployed, config.converged_num_steps)
    spreads = observation_spreads(deployed, modes, held_out)
    return Measures(
        curvature=curvature,
        gaps=gaps,
        latency=latency,
        trajectories=paths,
        trajectory_axes=axes,
        spreads=spreads,
        widest=widest_observations(spreads, deployed, modes, held_out, observations),
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

    def solve(self, name: PolicyName, policy: FlowPolicy, ways: list[Way], noises: int) -> dict[Way, Tensor]:
        ends = solve(
            policy,
            self.held_out.contexts[name],
            self.held_out.noise[:, :noises],
            ways,
            batch_size=self.config.batch_size,
            on_batch=self.tick,
        )
        for way, found in ends.items():
            _require_finite(found, name, way)
        return ends

    def converge(self, name: PolicyName, policy: FlowPolicy) -> tuple[Curvature, Tensor]:
        """Curvature on the fine grid, and the endpoints (N, converged_noises, H, D) that come with it."""
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
        _require_finite(ends, name, Way("euler", steps))
        return total, ends


def _require_finite(ends: Tensor, name: PolicyName, way: Way) -> None:
    """Makes sure that endpoints can be measured.

    Raises:
        UserError: if one is NaN or infinite.
    """
    if not ends.isfinite().all():
        raise UserError(
            f"{name}: {way.num_steps} {way.solver} steps end in NaN or infinite actions; train again with a lower "
            "--optimizer.lr, or check the teacher's weights."
        )


def _ways(policies: Mapping[PolicyName, Sampler], config: MeasureConfig) -> dict[PolicyName, list[Way]]:
    """How each policy is solved; whatever the others do, the teacher does as well."""
    steps = sorted({*config.num_steps, *(sampler.num_steps for sampler in policies.values())})
    teacher = [Way("euler", n) for n in steps]
    for solver in dict.fromkeys(config.solvers):
        # What the same budget of evaluations gives without training.
        fewer = [get_solver(solver).num_steps_for(n) for n in steps if solver != "euler"]
        teacher += [Way(solver, n) for n in fewer if n is not None]
    return {
        name: [Way("euler", n) for n in sorted({*config.num_steps, sampler.num_steps})]
        if name != TEACHER
        else teacher
        for name, sampler in policies.items()
    }


def _curvature_row(policy: PolicyName, sums: Curvature, held_out: HeldOutSet, seed: int) -> CurvatureRow:
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


def _ratio(gap: Gap, untrained: Gap, episodes: Tensor, seed: int) -> Estimate:
    """The RMS ratio with its interval over episodes: frames of one episode are not independent."""
    return ratio_of_rms(
        gap.distance.ravel(),
        untrained.distance.ravel(),
        seed=seed,
        clusters=np.repeat(episodes.numpy(), gap.distance.shape[1]),
    )


def _gap_row(policy: PolicyName, way: Way, reference: Reference, reference_steps: int, gap: Gap) -> GapRow:
    return GapRow(
        policy=policy,
        solver=way.solver,
        num_steps=way.num_steps,
        nfe=way.nfe,
        reference=reference,
        reference_num_steps=reference_steps,
        rms=gap.rms,
        median=gap.median,
        flip_rate=gap.flip_rate,
        max_abs=gap.max_abs,
        mean_abs=gap.mean_abs,
        observations=gap.distance.shape[0],
        pairs=gap.distance.size,
    )


def _latency(
    policies: Mapping[PolicyName, Sampler], observations: Observations, config: MeasureConfig
) -> Latency:
    """The teacher's network stands for all: they are of one family and size.

    Without a student the student's steps are one, so that speed-up and ceiling are the same figure.
    """
    teacher = policies[TEACHER]
    student_steps = policies[STUDENT].num_steps if STUDENT in policies else 1
    return measure_latency(
        teacher.policy,
        next(observations.batches([0], 1)),
        config.latency_repeats,
        teacher_num_steps=teacher.num_steps,
        student_num_steps=student_steps,
        chunk_num_steps=[1, 2, student_steps, teacher.num_steps],
    )
