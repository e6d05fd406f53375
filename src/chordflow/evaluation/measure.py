"""What can be measured of policies without an environment: curvature, action gap, spread, latency, trajectories.

`measure` holds teacher and students together; a `Yardstick` is a teacher solved once, with which any number of students
are compared one at a time. Both give the same figures for the same settings.

Shapes: N observations, K noises for each, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from chordflow.couplings import Observations
from chordflow.evaluation.free import Search
from chordflow.evaluation.gap import Modes, Targets, check_same_units
from chordflow.evaluation.latency import measure_latency
from chordflow.evaluation.paired import HeldOutSet, MeasureConfig, Progress, Way, Work, encode_held_out
from chordflow.evaluation.spread import diversity, observation_spreads, trajectories, widest_observations
from chordflow.flow.solvers import get_solver
from chordflow.policies import FlowPolicy
from chordflow.policies.exported import ExportedPolicy
from chordflow.policies.sampling import Sampler
from chordflow.results.actions import STUDENT, TEACHER, CurvatureRow, GapRow, Measures, PolicyName
from chordflow.results.study import Figures


@torch.no_grad()
def measure(
    policies: Mapping[PolicyName, Sampler],
    observations: Observations,
    config: MeasureConfig,
    *,
    on_progress: Progress = lambda *done: None,
) -> Measures:
    """Measures a teacher, and students as reloaded from their checkpoints against it.

    The teacher is also measured untrained: at the steps of `config` and of every other policy by Euler, by the other
    solvers of `config` at the same number of network evaluations, and by the best way to spend that number (see
    `evaluation.free`). The others are measured by Euler at the steps of `config` and their own.

    Args:
        policies: by name, each with its steps as evaluated; `teacher` is one of them, frozen, with its steps as
            deployed. All are of one family and chunk, and run by Euler as LeRobot runs them, but for exported folders,
            which have one way to act and neither curvature nor trajectories. Where prefixes agree an observation is
            encoded once for all.
        observations: held out by episode.
        config: how much.
        on_progress: see `Progress`.

    Raises:
        UserError: for observations that cannot be read, or actions that are not finite, or in other units than the
            teacher's.
        ValueError: if there is no teacher or a checkpoint has another solver than Euler.
    """
    if TEACHER not in policies or any(s.solver != s.policy.solver for s in policies.values()):
        raise ValueError("policies need one that is named teacher, and the solver euler for all checkpoints")
    policies = {TEACHER: policies[TEACHER], **policies}
    everyone = {name: sampler.policy for name, sampler in policies.items()}
    networks = {name: own for name, own in everyone.items() if not isinstance(own, ExportedPolicy)}
    teacher, teacher_steps = networks[TEACHER], policies[TEACHER].num_steps
    for name, own in everyone.items():
        check_same_units(teacher, own, name)
    config = replace(config, converged_num_steps=config.fine_num_steps(teacher_steps))
    # The teacher's network stands for all. Without a student one step's is timed: the speed-up is then the ceiling.
    student_steps = policies[STUDENT].num_steps if STUDENT in policies else 1
    latency = measure_latency(
        teacher,
        next(observations.batches([0], 1)),
        config.latency_repeats,
        teacher_num_steps=teacher_steps,
        student_num_steps=student_steps,
        chunk_num_steps=[1, 2, student_steps, teacher_steps],
        exported={name: sampler for name, sampler in policies.items() if name not in networks},
    )
    held_out = encode_held_out(everyone, observations, config)
    ways = _ways(policies, config)
    work = Work(held_out, config, on_progress)
    compared, every = config.compared_noises, config.noises_per_observation
    as_deployed = Way("euler", teacher_steps)
    work.total = work.cost(sum(way.nfe for of_one in ways.values() for way in of_one), compared)
    if compared < every:
        work.total += work.cost(teacher_steps)
    work.total += len(networks) * work.cost(config.converged_num_steps, config.converged_noises)
    search = Search(work, teacher, {way.nfe for way in ways[TEACHER]}, known=ways[TEACHER])
    work.total += search.cost

    converged = {name: work.converge(name, network) for name, network in networks.items()}
    gaps: list[GapRow] = []
    for name, network in everyone.items():
        solved = work.solve(name, network, ways[name], compared)
        if name == TEACHER:
            # Modes and spread are seen from all noises.
            deployed = solved[as_deployed]
            if compared < every:
                deployed = work.solve(name, network, [as_deployed], every)[as_deployed]
                # The same to the bit, so that the teacher's gap to itself is zero.
                solved[as_deployed] = deployed[:, :compared]
            targets = _targets(work, teacher, deployed, teacher_steps, converged[TEACHER][1], compared)
            search.run(solved, targets)
        else:
            search.add_policy(name, solved)
        found = targets.gaps(name, solved)
        if name == TEACHER:
            untrained = found
        for (way, reference), gap in found.items():
            euler = untrained[Way("euler", way.nfe), reference]
            ratio = targets.ratio(gap, euler) if name != TEACHER else None
            gaps.append(replace(targets.row(name, way, reference, gap), ratio_to_untrained=ratio))
    paths, axes = trajectories(networks, held_out, deployed, config.converged_num_steps)
    modes = targets.modes
    spreads = observation_spreads(deployed, modes, held_out)
    return Measures(
        curvature=[row for row, _ in converged.values()],
        gaps=gaps,
        free=search.found,
        latency=latency,
        trajectories=paths,
        trajectory_axes=axes,
        spreads=spreads,
        widest=widest_observations(spreads, deployed, modes, held_out, observations),
    )


def _targets(
    work: Work, teacher: FlowPolicy, deployed: Tensor, num_steps: int, converged: Tensor, noises: int | None
) -> Targets:
    """What the endpoints of a teacher deployed at so many steps, and those of its converged ODE, are to others."""
    return Targets(
        teacher,
        deployed=deployed,
        way=Way("euler", num_steps),
        converged=converged,
        converged_steps=work.config.converged_num_steps,
        modes=Modes(deployed, teacher.chunk),
        episodes=work.held_out.episodes,
        seed=work.config.seed,
        noises=noises,
    )


def _ways(policies: Mapping[PolicyName, Sampler], config: MeasureConfig) -> dict[PolicyName, list[Way]]:
    """How each policy is solved; the teacher takes as many evaluations as any other, by Euler."""
    own = {name: Way(s.solver, s.num_steps, s.grid_power) for name, s in policies.items()}
    steps = sorted({*config.num_steps, *(way.nfe for way in own.values())})
    teacher = [Way("euler", n) for n in steps]
    for solver in dict.fromkeys(config.solvers):
        # What the same budget of evaluations gives without training.
        fewer = [get_solver(solver).num_steps_for(n) for n in steps if solver != "euler"]
        teacher += [Way(solver, n) for n in fewer if n is not None]
    return {
        name: [own[name]]
        if isinstance(sampler.policy, ExportedPolicy)
        else [Way("euler", n) for n in sorted({*config.num_steps, sampler.num_steps})]
        for name, sampler in policies.items()
    } | {TEACHER: teacher}


class Yardstick:
    """The teacher's endpoints on held-out observations, as deployed and as its ODE converges.

    Args:
        teacher: frozen.
        observations: held out by episode.
        config: how much; of its steps and solvers Euler at `num_steps` is used.
        teacher_steps: Euler steps of the teacher as deployed.
        on_progress: see `Progress`.

    Attributes:
        teacher: its own figures at `config.num_steps` and as deployed; the latter to the converged ODE is the floor.

    Raises:
        UserError: for observations that cannot be read, or actions that are not finite.
    """

    @torch.no_grad()
    def __init__(
        self,
        teacher: FlowPolicy,
        observations: Observations,
        config: MeasureConfig,
        teacher_steps: int,
        on_progress: Progress = lambda *done: None,
    ) -> None:
        self._config = replace(config, converged_num_steps=config.fine_num_steps(teacher_steps))
        self._policy, self._observations = teacher, observations
        self._held_out = encode_held_out({TEACHER: teacher}, observations, self._config)
        self._prefix = teacher.prefix_hash()
        deployed, every = Way("euler", teacher_steps), self._config.noises_per_observation
        ways = list(dict.fromkeys([*self._ways, deployed]))
        work = self._work(self._held_out, ways, every, on_progress)
        curvature, converged = work.converge(TEACHER, teacher)
        solved = work.solve(TEACHER, teacher, ways, every)
        noises = self._config.gap_noises
        self._targets = _targets(work, teacher, solved[deployed], teacher_steps, converged, noises)
        self.teacher = self._figures(TEACHER, curvature, solved)

    @property
    def num_observations(self) -> int:
        """N."""
        return len(self._held_out.noise)

    @torch.no_grad()
    def of(
        self, name: PolicyName, student: FlowPolicy, on_progress: Progress = lambda *done: None
    ) -> Figures:
        """Measures a student of the teacher's family and chunk, as reloaded from its checkpoint.

        Raises:
            UserError: if its actions are not finite, or in other units than the teacher's.
        """
        check_same_units(self._policy, student, name)
        held_out = self._held_out
        context = held_out.contexts[TEACHER]
        if student.prefix_hash() != self._prefix:
            context = encode_held_out({name: student}, self._observations, self._config).contexts[name]
        own = replace(held_out, contexts={name: context})
        noises = self._config.compared_noises
        work = self._work(own, self._ways, noises, on_progress)
        curvature, _ = work.converge(name, student)
        return self._figures(name, curvature, work.solve(name, student, self._ways, noises))

    @property
    def _ways(self) -> list[Way]:
        return [Way("euler", n) for n in sorted(set(self._config.num_steps))]

    def _work(self, held_out: HeldOutSet, ways: Sequence[Way], noises: int, on_progress: Progress) -> Work:
        work = Work(held_out, self._config, on_progress)
        work.total = work.cost(sum(way.nfe for way in ways), noises)
        work.total += work.cost(self._config.converged_num_steps, self._config.converged_noises)
        return work

    def _figures(self, name: PolicyName, curvature: CurvatureRow, solved: dict[Way, Tensor]) -> Figures:
        targets, found = self._targets, self._targets.gaps(name, solved).items()
        gaps = [targets.row(name, way, reference, gap) for (way, reference), gap in found]
        # Modes are seen from all noises alone.
        spreads = [
            diversity(ends, targets.deployed, targets.modes, way.num_steps)
            for way, ends in sorted(solved.items(), key=lambda one: one[0].num_steps)
            if ends.shape == targets.deployed.shape
        ]
        return Figures(curvature.s, curvature.curvature, curvature.interval, gaps, spreads)
