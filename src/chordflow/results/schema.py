"""What a run measured: the contents of `results.json`.

Relative measures are fractions (0.13 is printed as 13 %), times are seconds. Fields marked *derived* are
written for the reader's convenience and computed anew on loading.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from statistics import mean
from typing import Any, ClassVar, Literal

from chordflow.results.actions import (
    STUDENT,
    TEACHER,
    CurvatureRow,
    FreeWays,
    GapRow,
    HeldOut,
    Latency,
    ObservationSpread,
    PolicyName,
    Reference,
    TrajectoryRow,
    WideObservation,
)
from chordflow.results.episodes import (
    Clip,
    DelayRow,
    FlipCheck,
    MotionRow,
    Rollouts,
    SequentialRow,
    SuccessRow,
    TimingRow,
)
from chordflow.results.files import RecordFile

SCHEMA_VERSION = 7
"""Version of the file's layout; raised whenever a field is added, dropped or changes its meaning.

Files of older versions are read: what they do not hold takes its default.

1. Curvature, gaps, latency, success, flips, trajectories and training of a student beside its teacher.
2. Any number of named policies; intervals of gaps and curvature, curvature by time and dimension, spreads, latency
   percentiles, memory, findings, motion, delays, sequential decisions, timing of rollouts, clips.
3. The step counts that a policy was trained for.
4. The method that it was trained by and the step count that it is saved with.
5. Power of a way's grid, the best ways to act without training, and the student beside them; the ceiling of encoding
   and one step, and whether times are reliable; tasks that are wholly held out; distinct starts of episodes.
6. Exported folders: what they were made of, their solver and grid, their time.
"""

RESULTS = "results.json"
"""Name of the file."""

LEAST_NOISE_SHARE = 0.02
"""Share of the endpoints' variance from which on a gap is given relative to what noise explains."""


@dataclass(frozen=True)
class ExportedInfo:
    """The folder of `chordflow export` that a policy acts from.

    Attributes:
        checkpoint: that it was made of, as it was named then.
        solver: of the graph's steps.
        grid_power: of their grid.
        precision: of the graph.
        backend: that runs it, onnx or openvino.
    """

    checkpoint: str
    solver: str
    grid_power: float
    precision: str
    backend: str


@dataclass(frozen=True)
class PolicyInfo:
    """A policy of the run.

    Attributes:
        name: as rows call it.
        path: checkpoint folder, exported folder or Hub id.
        family: LeRobot's policy type.
        num_steps: steps that it is evaluated at as deployed.
        parameters: number of parameters.
        weights_sha256: of its weights file; of an exported folder that of the checkpoint that it was made of.
        step_counts: Euler steps that it was trained for, by its own record; None where that is any number, or not
            recorded.
        method: `--method.type` that it was trained by, by its own record; None where it is not recorded.
        saved_num_steps: steps that its checkpoint is saved with; None in older files.
        exported: where it comes from an exported folder; None for a checkpoint.
        graph_obstacle: why `chordflow export` does not take such a policy, empty where it does; None in older files.
        processors_sha256: of what its processors do; None in older files.
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
    exported: ExportedInfo | None = None
    graph_obstacle: str | None = None
    processors_sha256: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Finding:
    """One thing that the measures say, by a rule that is written down in `results.findings`.

    Attributes:
        rule: name of the rule.
        text: what it found, a sentence.
    """

    rule: str
    text: str


@dataclass(frozen=True)
class LossCurve:
    """Training loss as logged.

    Attributes:
        steps: optimiser steps, rising.
        losses: loss at each, the mean since the entry before.
    """

    steps: list[int]
    losses: list[float]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.losses):
            raise ValueError(f"there are {len(self.steps)} steps and {len(self.losses)} losses.")


@dataclass(frozen=True)
class RolloutObservations:
    """Observations that were collected in an environment while training.

    Attributes:
        env: type of the environment.
        share: of the observations that couplings were made for; the others are the dataset's.
        collections: how often some were collected, the first time by the teacher and then by the student.
        observations: collected ones, over all collections.
        episodes: that were run for them.
        seconds: that this took, as part of training.
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
        observations: observations that couplings were made for, refreshed ones included.
        noises_per_observation: noises for each.
        solver: solver of the teacher's endpoints.
        num_steps: its steps.
        buffer_bytes: memory that the buffer holds.
        rollouts: what of the observations was collected in an environment; None where all are the dataset's.
        grid_power: power of its grid: 1 is uniform, above 1 steps grow smaller towards the action; None where it
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
class Results(RecordFile):
    """Everything that one run measured, with what it takes to measure it again.

    Attributes:
        command: the command line, one item per argument.
        settings: all settings of the run, defaults included.
        versions: versions by name; see `installed_versions`.
        device: name of the processor or accelerator, as a person would say it.
        seeds: seed of each random part by name.
        teacher: path or Hub id of the teacher.
        student: path of the student as measured; None where there is none.
        teacher_num_steps: the teacher's step count as deployed.
        held_out: what was held out; None where nothing was measured on observations.
        curvature: one row per policy.
        gaps: one row per policy, solver, steps and reference.
        free: the best ways to act without training; None where they were not looked for.
        latency: None where it was not measured.
        success: one row per policy, steps and group.
        flip_checks: flips compared with sides, one row per policy and steps; empty where the environment does
            not tell sides.
        trajectories: some trajectories of each policy, for the picture.
        trajectory_axes: share of the trajectories' variance along x and along y, fractions; empty where it
            was not computed.
        couplings: None where nothing was trained.
        loss: None where nothing was trained.
        training_s: seconds of training, couplings included; None where nothing was trained.
        verdict: the finding in one sentence.
        kind: which command measured.
        policies: the policies of the run.
        findings: what the measures say, rule by rule, the most important first.
        spreads: how two-sided the teacher is at each held-out observation.
        widest: the observations at which its endpoints spread most.
        rollouts: how episodes were run; None without.
        motion: rows of how policies move.
        delays: rows under an inference delay.
        sequential: where a sequential run stopped, one row per policy; empty for a run of fixed length.
        timing: where the time of rollouts went.
        clips: moving pictures beside the results.
        schema_version: layout of the file.
    """

    VERB: ClassVar[str] = "chordflow"
    GIVE: ClassVar[str] = "a results.json that chordflow wrote"
    VERSION: ClassVar[int] = SCHEMA_VERSION

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
        self, policy: PolicyName, num_steps: int, reference: Reference, solver: str | None = None
    ) -> GapRow | None:
        """The gap row of this policy, step count, reference and solver (by default its `way`), or None."""
        wanted = (policy, num_steps, reference, solver or self.way(policy)[0])
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

        None where noise explains less than `LEAST_NOISE_SHARE` of the variance: then it means nothing.
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
        return min((r.num_steps for r in rows if r.policy == STUDENT), default=None)

    @property
    def student_nfe(self) -> int | None:
        """Network evaluations of the student as saved: its steps, but for exported folders of other solvers."""
        n = self.student_num_steps
        return next((row.nfe for row in self.gaps if (row.policy, row.num_steps) == (STUDENT, n)), n)

    @property
    def floor(self) -> GapRow | None:
        """Gap of the teacher as deployed to its own converged ODE, below which a gap means little."""
        return self.gap(TEACHER, self.teacher_num_steps, "converged")

    def way(self, policy: PolicyName) -> tuple[str, float]:
        """Solver and power of the grid by which a policy acts: LeRobot's, but for exported folders."""
        info = self.info(policy)
        own = info.exported if info is not None else None
        return ("euler", 1.0) if own is None else (own.solver, own.grid_power)

    def info(self, policy: PolicyName) -> PolicyInfo | None:
        """What the run says of this policy, or None."""
        return next((info for info in self.policies if info.name == policy), None)

    def curvature_of(self, policy: PolicyName) -> CurvatureRow | None:
        """The curvature row of this policy, or None."""
        return next((r for r in self.curvature if r.policy == policy), None)

    def success_of(
        self, policy: PolicyName, num_steps: int, solver: str | None = None, grid_power: float | None = None
    ) -> SuccessRow | None:
        """The row over all episodes of this policy, step count, solver and grid (by default its `way`), or None."""
        own, power = self.way(policy)
        wanted = (policy, num_steps, "all", solver or own, power if grid_power is None else grid_power)
        rows = (r for r in self.success if (r.policy, r.num_steps, r.group, r.solver, r.grid_power) == wanted)
        return next(rows, None)


def installed_versions() -> dict[str, str]:
    """Versions of Python, torch, lerobot and chordflow, where installed, read without importing them."""
    versions = {"python": python_version()}
    for name in ("torch", "lerobot", "chordflow"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
