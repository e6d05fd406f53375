"""What a run measured: the contents of ``results.json``.

Relative measures are fractions (0.13 is printed as 13 %), times are seconds. Fields marked *derived* are
written for the reader's convenience and computed anew on loading.
"""

import json
import math
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from statistics import mean
from typing import Any, Literal

from chordflow.errors import UserError
from chordflow.results.codec import DecodeError, decode, encode
from chordflow.results.files import write_whole
from chordflow.results.sequential import SequentialDecision
from chordflow.results.statistics import (
    Estimate,
    Interval,
    NonInferiority,
    PairedSuccess,
    Percentiles,
    wilson_interval,
)

SCHEMA_VERSION = 5
"""Version of the file's layout; raised whenever a field is added, dropped or changes its meaning.

Files of older versions are read: what they do not hold takes its default.

1. Curvature, gaps, latency, success, flips, trajectories and training of a student beside its teacher.
2. Any number of named policies; intervals of gaps and curvature, curvature by time and dimension, spreads, latency
   percentiles, memory, findings, motion, delays, sequential decisions, timing of rollouts, clips.
3. The step counts that a policy was trained for.
4. The method that it was trained by and the step count that it is saved with.
5. Power of a way's grid, the best ways to act without training, and the student beside them; the ceiling of encoding
   and one step, and whether times are reliable; tasks that are wholly held out; distinct starts of episodes.
"""

PolicyName = str
"""``teacher`` is the untrained checkpoint at whatever step count the row says, ``student`` the one in question; any
other is a name that the user gave."""

TEACHER, STUDENT = "teacher", "student"

LEAST_NOISE_SHARE = 0.02
"""Share of the endpoints' variance from which on a gap is given relative to what noise explains."""

Reference = Literal["deployed", "converged"]
"""``deployed``: the teacher at its default steps. ``converged``: the teacher's ODE on a fine grid."""


@dataclass(frozen=True)
class CurvatureRow:
    """Curvature of one policy along its own trajectories.

    Attributes:
        policy: Whose.
        num_steps: Euler steps of the measuring grid, not the policy's own.
        trajectories: Number of trajectories.
        s: ``integral of E ||(x_1 - x_0) - v||^2 dt`` over the real dimensions, mean over the chunk's rows.
        curvature: ``sqrt(s / E ||x_1 - x_0||^2)`` over the real dimensions, a fraction.
        s_all_dims: S over all padded dimensions.
        curvature_all_dims: Curvature over all padded dimensions, a fraction.
        times: Grid times, from 1 downwards; ``num_steps`` of them.
        s_by_time: Integrand of S over the real dimensions at those times.
        s_by_dim: S of each padded dimension.
        s_by_time_and_dim: The integrand of S at those times by real dimension, a row per time; empty where it was
            not kept.
        interval: Interval of ``curvature`` over held-out episodes; None where they are too few.
    """

    policy: PolicyName
    num_steps: int
    trajectories: int
    s: float
    curvature: float
    s_all_dims: float
    curvature_all_dims: float
    times: list[float]
    s_by_time: list[float]
    s_by_dim: list[float]
    s_by_time_and_dim: list[list[float]] = field(default_factory=list)
    interval: Interval | None = None


@dataclass(frozen=True)
class GapRow:
    """Action gap of one way to act, to one reference, on held-out observations with the same noise.

    Attributes:
        policy: Whose actions.
        solver: Solver that made them.
        num_steps: Its steps.
        nfe: Its network evaluations.
        reference: What they are compared with.
        reference_num_steps: Solver steps of the reference.
        rms: ``sqrt(mean ||a - ref||^2 / mean ||ref - mean ref||^2)`` over real dimensions, a fraction.
        median: Median over pairs of the same relative distance, a fraction.
        flip_rate: Share of pairs whose action is nearer to another mode of the reference than to the one of
            this noise; None where modes were not looked for.
        max_abs: Largest absolute difference, in the robot's units.
        mean_abs: Mean absolute difference, in the robot's units.
        observations: Number of held-out observations.
        pairs: Number of pairs of observation and noise.
        ratio_to_untrained: RMS divided by that of the untrained teacher at as many evaluations by even Euler steps on
            the same pairs, with an interval over held-out episodes; None for the teacher, but among its best ways.
        interval: Interval of ``rms`` over held-out episodes; None where they are too few.
        ratio_to_floor: RMS divided by that of the teacher as deployed on the same pairs, both to the teacher's
            converged ODE, with an interval over held-out episodes: below 1 these actions are more exact than the
            deployed teacher's. None for other references and for the deployed teacher.
        nearer_than_deployed: Share of pairs that are nearer to the converged ODE's than the deployed teacher's are,
            likewise.
        grid_power: Power of the solver's grid: 1 for even steps, above 1 they grow smaller towards the action.
        ratio_to_free: Of another policy than the teacher, among the best ways to act without training: RMS divided by
            that of the best way at as many evaluations on the same pairs, with an interval over episodes.
    """

    policy: PolicyName
    solver: str
    num_steps: int
    nfe: int
    reference: Reference
    reference_num_steps: int
    rms: float
    median: float
    flip_rate: float | None
    max_abs: float
    mean_abs: float
    observations: int
    pairs: int
    ratio_to_untrained: Estimate | None = None
    interval: Interval | None = None
    ratio_to_floor: Estimate | None = None
    nearer_than_deployed: float | None = None
    grid_power: float = 1.0
    ratio_to_free: Estimate | None = None

    @property
    def is_stock(self) -> bool:
        """Whether LeRobot's own sampler acts like this: by Euler, with even steps."""
        return self.solver == "euler" and self.grid_power == 1


@dataclass(frozen=True)
class FreeWays:
    """The best ways to act without training, one for each number of network evaluations from two on.

    Every solver and grid that takes just so many evaluations is tried on some of the held-out episodes. The one whose
    RMS gap to the teacher's converged ODE is smallest there is measured on the others.

    Attributes:
        chosen_on: Episodes that the ways were chosen on.
        measured_on: Episodes that the rows are of; the same one where there is no other.
        ways: The best ways, a row for each number of evaluations and reference.
        others: On the same pairs, to the converged ODE: the teacher as deployed, and every other policy at its own
            numbers of Euler steps.
    """

    chosen_on: list[int]
    measured_on: list[int]
    ways: list[GapRow]
    others: list[GapRow]

    def best(self, nfe: int, reference: Reference = "converged") -> GapRow | None:
        """The best way at this number of evaluations, or None where none was looked for."""
        return next((r for r in self.ways if (r.nfe, r.reference) == (nfe, reference)), None)

    def beside(self, policy: PolicyName, num_steps: int) -> GapRow | None:
        """The gap of another policy, or of the teacher as deployed, on the same pairs, or None."""
        return next((r for r in self.others if (r.policy, r.num_steps) == (policy, num_steps)), None)


@dataclass(frozen=True)
class ObservationSpread:
    """How many ways to act a policy sees at one observation.

    Attributes:
        observation: Index among the held-out observations.
        episode: Its episode in the dataset.
        frame: Its frame within the episode.
        task: Its instruction.
        spread: Root-mean-square distance of the endpoints of this observation from their mean, divided by the same
            over all observations: 0 where noise decides nothing, 1 where it decides as much as the observation does.
        modes: Number of modes among the endpoints.
        shares: Share of the endpoints in each mode, the largest first.
    """

    observation: int
    episode: int
    frame: int
    task: str
    spread: float
    modes: int
    shares: list[float]


@dataclass(frozen=True)
class WideObservation:
    """An observation at which endpoints spread most, for a picture.

    Attributes:
        observation: Index among the held-out observations, as in ``ObservationSpread``.
        x: Endpoints along the first main component of this observation's endpoints.
        y: The same along the second.
        labels: Mode of each endpoint, from 0.
        axes: Share of the endpoints' variance along x and y, fractions.
        pictures: What the cameras show, PNG files in base64 by camera; empty where the policy has none.
    """

    observation: int
    x: list[float]
    y: list[float]
    labels: list[int]
    axes: list[float]
    pictures: dict[str, str] = field(default_factory=dict)


ABOVE, APART = 0.1, 0.2
"""Timings are unreliable where a speed-up is above the ceiling by more than the first share, or whole chunks and their
parts are apart by more than the second."""


@dataclass(frozen=True)
class ChunkTime:
    """Measured time of a whole chunk, from the preprocessed observation to the endpoint.

    Attributes:
        num_steps: Euler steps.
        seconds: Percentiles of the time.
    """

    num_steps: int
    seconds: Percentiles


@dataclass(frozen=True)
class Memory:
    """Memory that the policy takes while it acts.

    Attributes:
        weights_bytes: Parameters and buffers.
        peak_bytes: Most memory in use while chunks were made.
        kind: What ``peak_bytes`` counts: allocations on the accelerator, or the whole process.
    """

    weights_bytes: int
    peak_bytes: int
    kind: Literal["accelerator", "process"]


@dataclass(frozen=True)
class Latency:
    """Time for one chunk, split into what every step count pays once and what each step pays.

    Attributes:
        encode_s: Median seconds to encode the observation.
        step_s: Median seconds for one velocity evaluation.
        batch_size: Observations at a time.
        repeats: Timed repetitions behind each median.
        teacher_num_steps: Steps of the teacher as deployed.
        student_num_steps: Steps of the student.
        speedup: *Derived.* Time of the teacher's chunk divided by that of the student's: of whole chunks as measured
            where ``chunks`` has both, else summed up from ``encode_s`` and ``step_s``.
        ceiling: *Derived.* ``(encode_s + n * step_s) / (encode_s + step_s)`` for the n steps of the teacher: the most
            that step distillation can give here.
        reliable: *Derived.* False where the speed-up exceeds the ceiling by more than a tenth, or a whole chunk and the
            sum of its parts disagree by more than a fifth: the machine was busy, and no figure of time is printed.
        encode: Percentiles behind ``encode_s``; None where only the median was kept.
        step: Percentiles behind ``step_s``.
        chunks: Whole chunks at several step counts, measured rather than summed up.
        processors_s: Median seconds of the checkpoint's processors for one observation and its actions; they are
            not part of ``encode_s``. None where they were not timed.
        memory: None where it was not measured.
    """

    encode_s: float
    step_s: float
    batch_size: int
    repeats: int
    teacher_num_steps: int
    student_num_steps: int
    encode: Percentiles | None = None
    step: Percentiles | None = None
    chunks: list[ChunkTime] = field(default_factory=list)
    processors_s: float | None = None
    memory: Memory | None = None
    speedup: float = field(init=False)
    ceiling: float = field(init=False)
    reliable: bool = field(init=False)

    def __post_init__(self) -> None:
        if not (self.encode_s >= 0 and self.step_s > 0):
            raise ValueError(f"encode_s is {self.encode_s} and step_s is {self.step_s}; times are positive.")
        teacher = self.teacher_num_steps
        object.__setattr__(self, "speedup", 1 / self.relative(self.student_num_steps))
        object.__setattr__(self, "ceiling", self.chunk_s(teacher) / self.chunk_s(1))
        whole = [(chunk.seconds.p50, self.chunk_s(chunk.num_steps)) for chunk in self.chunks]
        apart = any(abs(timed - summed) > APART * summed for timed, summed in whole)
        object.__setattr__(self, "reliable", self.speedup <= (1 + ABOVE) * self.ceiling and not apart)

    def chunk_s(self, num_steps: int) -> float:
        """Seconds for one chunk at this many Euler steps, summed up from encoding and steps."""
        return self.encode_s + num_steps * self.step_s

    def relative(self, num_steps: int) -> float:
        """Time of a chunk over that of the teacher's: of whole chunks where both were timed, else of sums."""
        whole = {chunk.num_steps: chunk.seconds.p50 for chunk in self.chunks}
        teacher = self.teacher_num_steps
        if whole.get(teacher) and whole.get(num_steps):
            return whole[num_steps] / whole[teacher]
        return self.chunk_s(num_steps) / self.chunk_s(teacher)

    def encode_share(self, num_steps: int) -> float:
        """Share of encoding in a chunk at this many steps, from the same figures as the ceiling."""
        return self.encode_s / self.chunk_s(num_steps)


def _interval_of_rate(successes: int, episodes: int, starts: int | None) -> Interval:
    """Wilson's, of as many episodes as begin differently."""
    if starts is None:
        return wilson_interval(successes, episodes)
    return wilson_interval(successes * starts / episodes, starts)


@dataclass(frozen=True)
class SuccessRow:
    """Success of one way to act in one group of episodes.

    Attributes:
        policy: Whose actions.
        solver: Solver that made them.
        num_steps: Its steps.
        group: The episodes counted: ``all``, an instruction or a task, or those that begin where observations for
            training were collected, and those that do not.
        successes: Episodes solved.
        episodes: Episodes run.
        versus_teacher: Paired comparison with the teacher as deployed on the same episodes and noise, this
            policy first; None for the teacher as deployed itself.
        noninferiority: What the pairs say at the margin; None for the teacher as deployed.
        coverage: Exact coverage of Wilson's interval at this rate and number of episodes, a fraction.
        starts: Distinct starts of the episodes, where some begin alike: intervals count these. None where all differ.
        grid_power: Power of the solver's grid, as in ``GapRow``.
        rate: *Derived.* ``successes / episodes``.
        interval: *Derived.* Wilson's 95 % interval of the rate.
    """

    policy: PolicyName
    solver: str
    num_steps: int
    group: str
    successes: int
    episodes: int
    versus_teacher: PairedSuccess | None = None
    noninferiority: NonInferiority | None = None
    coverage: float | None = None
    starts: int | None = None
    grid_power: float = 1.0
    rate: float = field(init=False)
    interval: Interval = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", _interval_of_rate(self.successes, self.episodes, self.starts))
        object.__setattr__(self, "rate", self.successes / self.episodes)

    @property
    def is_stock(self) -> bool:
        """Whether LeRobot's own sampler acts like this: by Euler, with even steps."""
        return self.solver == "euler" and self.grid_power == 1


MotionMeasure = Literal["jerk", "path length", "jump", "length", "seconds"]
"""What is measured of an episode's motion; see ``rollouts.episodes.Episode`` for units."""


@dataclass(frozen=True)
class MotionRow:
    """One measure of how one way to act moves, over all its episodes.

    Attributes:
        policy: Whose actions.
        solver: Solver that made them.
        num_steps: Its steps.
        measure: jerk, path length, jump (at chunk boundaries), length (control steps) or seconds (an episode's share
            of wall-clock time).
        mean: Mean over episodes with its interval.
        difference: Mean paired difference to the teacher as deployed; None for that one.
        episodes: Episodes that have the measure.
        grid_power: Power of the solver's grid, as in ``GapRow``.
    """

    policy: PolicyName
    solver: str
    num_steps: int
    measure: MotionMeasure
    mean: Estimate
    difference: Estimate | None
    episodes: int
    grid_power: float = 1.0


DelayMode = Literal["none", "sync", "async", "rtc"]
"""``sync``: the robot waits for each chunk. ``async``: it goes on with the old chunk and then takes the new one.
``rtc``: as before, with LeRobot's real-time chunking."""


@dataclass(frozen=True)
class DelayRow:
    """Success and motion under an inference delay.

    Attributes:
        policy: Whose actions.
        num_steps: Euler steps.
        mode: What the robot does meanwhile.
        delay: Control steps between asking for a chunk and having it.
        guidance_weight: ``max_guidance_weight`` of real-time chunking; None in other modes.
        successes: Episodes solved.
        episodes: Episodes run.
        versus_undelayed: Paired comparison with the same policy and steps without delay.
        jump: Mean jump at chunk boundaries with its interval, robot units; None with single chunks.
        jerk: Mean jerk with its interval; None for very short episodes.
        starts: Distinct starts of the episodes, where some begin alike: intervals count these. None where all differ.
        rate: *Derived.* ``successes / episodes``.
        interval: *Derived.* Wilson's 95 % interval of the rate.
    """

    policy: PolicyName
    num_steps: int
    mode: DelayMode
    delay: int
    guidance_weight: float | None
    successes: int
    episodes: int
    versus_undelayed: PairedSuccess | None = None
    jump: Estimate | None = None
    jerk: Estimate | None = None
    starts: int | None = None
    rate: float = field(init=False)
    interval: Interval = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", _interval_of_rate(self.successes, self.episodes, self.starts))
        object.__setattr__(self, "rate", self.successes / self.episodes)


@dataclass(frozen=True)
class SequentialRow:
    """Where the paired evidence stood when the run stopped.

    Attributes:
        policy: Whose actions were held against the teacher as deployed.
        num_steps: Its steps.
        decision: The test.
    """

    policy: PolicyName
    num_steps: int
    decision: SequentialDecision


@dataclass(frozen=True)
class TimingRow:
    """Where the time of a policy's rollouts went.

    Attributes:
        policy: Whose rollouts.
        num_steps: Its steps.
        solver: Which solver.
        grid_power: Power of its grid, as in ``GapRow``.
        network_s: In the policy's network: encoding and velocities.
        simulator_s: In the environment: making, resetting, stepping, rendering.
        processors_s: In the checkpoint's and the environment's processors, LeRobot's.
        other_s: All else: chordflow itself.
        total_s: *Derived.* Their sum.
        overhead: *Derived.* Share of all but network and simulator.
    """

    policy: PolicyName
    num_steps: int
    network_s: float
    simulator_s: float
    processors_s: float
    other_s: float
    solver: str = "euler"
    grid_power: float = 1.0
    total_s: float = field(init=False)
    overhead: float = field(init=False)

    def __post_init__(self) -> None:
        total = self.network_s + self.simulator_s + self.processors_s + self.other_s
        object.__setattr__(self, "total_s", total)
        share = (self.processors_s + self.other_s) / total if total > 0 else 0.0
        object.__setattr__(self, "overhead", share)


@dataclass(frozen=True)
class Rollouts:
    """How episodes were run.

    Attributes:
        env: The environment's `type` and task, as a person would say it.
        noise: ``paired``: a function of seed and chunk, the same for every policy. ``lerobot``: drawn from the global
            generator, as `lerobot-eval` does; rates may then be compared, episodes are not paired.
        first_seed: Seed of the first episode; the others follow.
        batch_size: Episodes side by side.
        num_workers: Processes that held the environments; 0 for none of their own.
        margin: Of the non-inferiority statement, a fraction.
    """

    env: str
    noise: Literal["paired", "lerobot"]
    first_seed: int
    batch_size: int
    num_workers: int
    margin: float


@dataclass(frozen=True)
class Clip:
    """A moving picture of the same starts, policies side by side.

    Attributes:
        path: File, relative to the results.
        columns: What stands side by side, from left to right.
        seeds: Seeds of its episodes, in their order.
        outcomes: For each seed, whether each column succeeded.
    """

    path: str
    columns: list[str]
    seeds: list[int]
    outcomes: list[list[bool]]


@dataclass(frozen=True)
class PolicyInfo:
    """A policy of the run.

    Attributes:
        name: As rows call it.
        path: Checkpoint folder or Hub id.
        family: LeRobot's policy type.
        num_steps: Steps that it is evaluated at as deployed.
        parameters: Number of parameters.
        weights_sha256: Of its weights file.
        step_counts: Euler steps that it was trained for, by its own record; None where that is any number, or
            nothing is said.
        method: ``--method.type`` that it was trained by, by its own record; None where nothing is said.
        saved_num_steps: Steps that its checkpoint is saved with; None in older files.
    """

    name: PolicyName
    path: str
    family: str
    num_steps: int
    parameters: int
    weights_sha256: str
    step_counts: list[int] | None = None
    method: str | None = None
    saved_num_steps: int | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that the measures say, by a rule that is written down in ``results.findings``.

    Attributes:
        rule: Name of the rule.
        text: What it found, a sentence.
    """

    rule: str
    text: str


@dataclass(frozen=True)
class LossCurve:
    """Training loss as logged.

    Attributes:
        steps: Optimiser steps, rising.
        losses: Loss at each, the mean since the entry before.
    """

    steps: list[int]
    losses: list[float]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.losses):
            raise ValueError(f"there are {len(self.steps)} steps and {len(self.losses)} losses.")


@dataclass(frozen=True)
class TrajectoryRow:
    """One trajectory from noise to action, flattened for a picture.

    A state is a whole chunk over the real dimensions; x and y are its two main components, which all rows
    of a file share, so that trajectories of different policies can be laid over each other.

    Attributes:
        policy: Whose velocity.
        observation: Index among the held-out observations; rows of several policies that have it in common,
            in the same order, start at the same noise.
        x: First component of the states on a fine grid, the noise first and the endpoint last.
        y: Second component of the same states.
    """

    policy: PolicyName
    observation: int
    x: list[float]
    y: list[float]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or len(self.x) < 2:
            raise ValueError(
                f"x has {len(self.x)} states and y {len(self.y)}; both need the same two or more."
            )


@dataclass(frozen=True)
class RolloutObservations:
    """Observations that were collected in an environment while training.

    Attributes:
        env: Type of the environment.
        share: Of the observations that couplings were made for; the others are the dataset's.
        collections: How often some were collected, the first time by the teacher and then by the student.
        observations: Collected ones, over all collections.
        episodes: That were run for them.
        seconds: That this took, as part of training.
    """

    env: str
    share: float
    collections: int
    observations: int
    episodes: int
    seconds: float


@dataclass(frozen=True)
class CouplingSummary:
    """What the student was trained on.

    Attributes:
        observations: Observations that couplings were made for, refreshed ones included.
        noises_per_observation: Noises for each.
        solver: Solver of the teacher's endpoints.
        num_steps: Its steps.
        buffer_bytes: Memory that the buffer holds.
        rollouts: What of the observations was collected in an environment; None where all are the dataset's.
        grid_power: Power of its grid: 1 is uniform, above 1 steps grow smaller towards the action; None where it
            was not recorded.
    """

    observations: int
    noises_per_observation: int
    solver: str
    num_steps: int
    buffer_bytes: int
    rollouts: RolloutObservations | None = None
    grid_power: float | None = None


@dataclass(frozen=True)
class HeldOut:
    """The observations that gaps and curvature were measured on.

    Attributes:
        episodes: Their episode indices in the dataset.
        observations: Number of observations drawn from them.
        noises: Noises for each observation.
        maybe_seen_by_teacher: True where the teacher's own training may have included these episodes.
        whole_tasks: How many of the episodes are of a task that has no other, so that a student trains on none of it.
    """

    episodes: list[int]
    observations: int
    noises: int
    maybe_seen_by_teacher: bool
    whole_tasks: int = 0


@dataclass(frozen=True)
class FlipCheck:
    """Whether a flip of the first chunk is what an onlooker sees: the other side taken.

    Attributes:
        policy: Whose chunks are compared with those of the teacher as deployed.
        num_steps: Its Euler steps.
        episodes: Paired episodes of both from the same start and noise in which both passed the obstacle.
        flips: Of these, the ones whose first chunks lie at different modes of the teacher's.
        other_side: Of these, the ones in which this policy took the other side than the teacher.
        agree: Of these, the ones in which both say the same.
    """

    policy: PolicyName
    num_steps: int
    episodes: int
    flips: int
    other_side: int
    agree: int


@dataclass(frozen=True)
class Results:
    """Everything that one run measured, with what it takes to measure it again.

    Attributes:
        command: The command line, one item per argument.
        settings: All settings of the run, defaults included.
        versions: Versions by name; see ``installed_versions``.
        device: Name of the processor or accelerator, as a person would say it.
        seeds: Seed of each random part by name.
        teacher: Path or Hub id of the teacher.
        student: Path of the student as measured; None where there is none.
        teacher_num_steps: The teacher's step count as deployed.
        held_out: What was held out; None where nothing was measured on observations.
        curvature: One row per policy.
        gaps: One row per policy, solver, steps and reference.
        free: The best ways to act without training; None where they were not looked for.
        latency: None where it was not measured.
        success: One row per policy, steps and group.
        flip_checks: Flips compared with sides, one row per policy and steps; empty where the environment does
            not tell sides.
        trajectories: Some trajectories of each policy, for the picture.
        trajectory_axes: Share of the trajectories' variance along x and along y, fractions; empty where it
            was not computed.
        couplings: None where nothing was trained.
        loss: None where nothing was trained.
        training_s: Seconds of training, couplings included; None where nothing was trained.
        verdict: The finding in one sentence.
        kind: Which command measured.
        policies: The policies of the run.
        findings: What the measures say, rule by rule, the most important first.
        spreads: How two-sided the teacher is at each held-out observation.
        widest: The observations at which its endpoints spread most.
        rollouts: How episodes were run; None without.
        motion: Rows of how policies move.
        delays: Rows under an inference delay.
        sequential: Where a sequential run stopped, one row per policy; empty for a run of fixed length.
        timing: Where the time of rollouts went.
        clips: Moving pictures beside the results.
        schema_version: Layout of the file.
    """

    command: list[str]
    settings: dict[str, Any]
    versions: dict[str, str]
    device: str
    seeds: dict[str, int]
    teacher: str
    student: str | None
    teacher_num_steps: int
    held_out: HeldOut | None = None
    curvature: list[CurvatureRow] = field(default_factory=list)
    gaps: list[GapRow] = field(default_factory=list)
    free: FreeWays | None = None
    latency: Latency | None = None
    success: list[SuccessRow] = field(default_factory=list)
    flip_checks: list[FlipCheck] = field(default_factory=list)
    trajectories: list[TrajectoryRow] = field(default_factory=list)
    trajectory_axes: list[float] = field(default_factory=list)
    couplings: CouplingSummary | None = None
    loss: LossCurve | None = None
    training_s: float | None = None
    verdict: str = ""
    kind: Literal["reflow", "diagnose", "evaluate"] = "reflow"
    policies: list[PolicyInfo] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    spreads: list[ObservationSpread] = field(default_factory=list)
    widest: list[WideObservation] = field(default_factory=list)
    rollouts: Rollouts | None = None
    motion: list[MotionRow] = field(default_factory=list)
    delays: list[DelayRow] = field(default_factory=list)
    sequential: list[SequentialRow] = field(default_factory=list)
    timing: list[TimingRow] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    def gap(
        self, policy: PolicyName, num_steps: int, reference: Reference, solver: str = "euler"
    ) -> GapRow | None:
        """The gap row of this policy, step count, reference and solver, or None."""
        wanted = (policy, num_steps, reference, solver)
        rows = (r for r in self.gaps if (r.policy, r.num_steps, r.reference, r.solver) == wanted)
        return next(rows, None)

    @property
    def noise_share(self) -> float | None:
        """Share of the variance of the teacher's endpoints that noise explains, or None.

        It is the mean, over observations, of the variance over noises, divided by the variance over all pairs.
        """
        return mean(row.spread**2 for row in self.spreads) if self.spreads else None

    def of_noise(self, rms: float) -> float | None:
        """A gap's RMS over the root of the variance that noise explains, in place of that of the whole variance.

        Args:
            rms: As ``GapRow`` has it.

        Returns:
            A fraction, or None where noise explains less than ``LEAST_NOISE_SHARE`` of the variance: then it means
            nothing.
        """
        share = self.noise_share
        return None if share is None or share < LEAST_NOISE_SHARE else rms / math.sqrt(share)

    @property
    def timed(self) -> Latency | None:
        """The latency where its figures may be printed; None where they are unreliable or nothing was timed."""
        return self.latency if self.latency is not None and self.latency.reliable else None

    @property
    def timings_unreliable(self) -> bool:
        """Whether times were measured and none of them may be printed."""
        return self.latency is not None and not self.latency.reliable

    @property
    def student_num_steps(self) -> int | None:
        """Steps of the student as saved, by its latency; by its smallest measured number where that is absent."""
        if self.student is None:
            return None
        if self.latency is not None:
            return self.latency.student_num_steps
        rows: list[GapRow | SuccessRow] = [*self.gaps, *self.success]
        return min((r.num_steps for r in rows if r.policy == "student"), default=None)

    @property
    def floor(self) -> GapRow | None:
        """Gap of the teacher as deployed to its own converged ODE, below which a gap means little."""
        return self.gap("teacher", self.teacher_num_steps, "converged")

    def curvature_of(self, policy: PolicyName) -> CurvatureRow | None:
        """The curvature row of this policy, or None."""
        return next((r for r in self.curvature if r.policy == policy), None)

    def success_of(
        self,
        policy: PolicyName,
        num_steps: int,
        group: str = "all",
        solver: str = "euler",
        grid_power: float = 1.0,
    ) -> SuccessRow | None:
        """The success row of this policy, step count, group, solver and grid, or None."""
        wanted = (policy, num_steps, group, solver, grid_power)
        rows = (r for r in self.success if (r.policy, r.num_steps, r.group, r.solver, r.grid_power) == wanted)
        return next(rows, None)

    def to_json(self) -> str:
        """The file's text.

        Raises:
            UserError: If a number is not finite or a value would not be read back; it names the field.
        """
        try:
            data = encode(self)
            decode(type(self), data)
            # Escapes keep file names that are not valid Unicode, which a command line may hold.
            return json.dumps(data, indent=2, allow_nan=False) + "\n"
        except ValueError as error:
            raise UserError(f"The results cannot be written: {error}") from error

    @classmethod
    def from_json(cls, text: str, source: str = "results.json") -> "Results":
        """Read the file's text.

        Args:
            text: What ``to_json`` wrote.
            source: Name of the file, for messages.

        Raises:
            UserError: If the text is not JSON, of a newer version, or not a results file.
        """
        try:
            data = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{source} is not a readable results file ({error}); run the command again."
            ) from None
        found = data.get("schema_version") if isinstance(data, dict) else None
        if type(found) is not int or found < 1:
            raise UserError(f"{source} has no schema_version; choose a results.json that chordflow wrote.")
        if found > SCHEMA_VERSION:
            raise UserError(
                f"{source} has schema_version {found} and this chordflow reads up to {SCHEMA_VERSION}; "
                "upgrade chordflow to read it."
            )
        try:
            return decode(cls, data)
        except DecodeError as error:
            raise UserError(
                f"{source} (schema_version {found}) is damaged: {error}; run the command that wrote it again."
            ) from None

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all: under a temporary name beside it, then renamed.

        Args:
            path: Where; its folder must exist. A file that is there is replaced.

        Raises:
            UserError: If the file cannot be written, or a number is not finite.
        """
        write_whole(path, self.to_json().encode("utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> "Results":
        """Read a file that ``save`` wrote.

        Raises:
            UserError: If the file is missing, unreadable, damaged or of a newer version.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); give the path of a results.json."
            ) from error
        except UnicodeDecodeError:
            raise UserError(f"{path} is not text; give the path of a results.json.") from None
        return cls.from_json(text, source=str(path))


def installed_versions() -> dict[str, str]:
    """Versions of Python, torch, lerobot and chordflow, read without importing them.

    Returns:
        Versions by name; a distribution that is not installed is left out.
    """
    versions = {"python": python_version()}
    for name in ("torch", "lerobot", "chordflow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {text}, which is out of range")
    return value
