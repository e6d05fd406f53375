"""What can be measured of policies without an environment: curvature, action gap, spread, latency, trajectories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

import torch

from chordflow.couplings import Observations
from chordflow.evaluation.free import Search
from chordflow.evaluation.gap import Gap, Modes, Targets
from chordflow.evaluation.latency import measure_latency
from chordflow.evaluation.paired import (
    MeasureConfig,
    Way,
    encode_held_out,
)
from chordflow.evaluation.spread import observation_spreads, widest_observations
from chordflow.evaluation.trajectories import trajectories
from chordflow.evaluation.work import Tick, Work, curvature_row
from chordflow.flow.solvers import get_solver
from chordflow.policies.sampling import Sampler
from chordflow.results.actions import (
    REFERENCES,
    STUDENT,
    TEACHER,
    CurvatureRow,
    FreeWays,
    GapRow,
    Latency,
    ObservationSpread,
    PolicyName,
    Reference,
    TrajectoryRow,
    WideObservation,
)


@dataclass(frozen=True)
class Measures:
    """Everything measured without an environment.

    Attributes:
        curvature: a row per policy.
        gaps: a row per policy, solver, steps and reference.
        free: the best ways to act without training; None where none takes more than one evaluation.
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
    free: FreeWays | None
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

    The teacher is also measured untrained: at the steps of `config` and of every other policy by Euler, by the other
    solvers of `config` at the same number of network evaluations, and by the best way to spend that number (see
    `evaluation.free`). The others are measured by Euler at the steps of `config` and their own.

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
    work = Work(held_out, config, on_progress)
    compared = config.gap_noises or config.noises_per_observation
    as_deployed = Way("euler", teacher_steps)
    work.total = work.cost(sum(way.nfe for of_one in ways.values() for way in of_one), compared)
    if compared < config.noises_per_observation:
        work.total += work.cost(teacher_steps)
    work.total += len(networks) * work.cost(config.converged_num_steps, config.converged_noises)
    search = Search(work, teacher, {way.nfe for way in ways[TEACHER]}, known=ways[TEACHER])
    work.total += search.cost

    curvature, converged = [], {}
    for name, network in networks.items():
        sums, ends = work.converge(name, network)
        curvature.append(curvature_row(name, sums, held_out, config.seed))
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
            targets = Targets(
                teacher,
                deployed=deployed,
                deployed_steps=teacher_steps,
                converged=converged[TEACHER],
                converged_steps=config.converged_num_steps,
                modes=modes,
                episodes=held_out.episodes,
                seed=config.seed,
                noises=compared,
            )
            search.run(solved, as_deployed, converged[TEACHER], modes)
        else:
            search.put_beside(name, solved)
        for (way, ends), reference in product(solved.items(), REFERENCES):
            if (name, way, reference) == (TEACHER, as_deployed, "converged"):
                gap = targets.floor
            else:
                gap = targets.gap(ends, reference)
            ratio = None
            if name == TEACHER:
                untrained[way, reference] = gap
            else:
                ratio = targets.ratio(gap, untrained[way, reference])
            gaps.append(replace(targets.row(name, way, reference, gap), ratio_to_untrained=ratio))
    paths, axes = trajectories(networks, held_out, deployed, config.converged_num_steps)
    spreads = observation_spreads(deployed, modes, held_out)
    return Measures(
        curvature=curvature,
        gaps=gaps,
        free=search.found,
        latency=latency,
        trajectories=paths,
        trajectory_axes=axes,
        spreads=spreads,
        widest=widest_observations(spreads, deployed, modes, held_out, observations),
        num_observations=held_out.num_observations,
        multimodal=float((modes.counts > 1).mean()),
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
