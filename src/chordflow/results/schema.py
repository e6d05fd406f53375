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
from typing import Any, Literal

from chordflow.errors import UserError
from chordflow.results.codec import DecodeError, decode, encode
from chordflow.results.files import write_whole
from chordflow.results.statistics import Estimate, Interval, PairedSuccess, wilson_interval

SCHEMA_VERSION = 1
"""Version of the file's layout; raised whenever a field is added, dropped or changes its meaning."""

PolicyRole = Literal["teacher", "student"]
"""``teacher`` is the untrained checkpoint at whatever step count the row says."""

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
    """

    policy: PolicyRole
    num_steps: int
    trajectories: int
    s: float
    curvature: float
    s_all_dims: float
    curvature_all_dims: float
    times: list[float]
    s_by_time: list[float]
    s_by_dim: list[float]


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
        ratio_to_untrained: RMS divided by that of the untrained teacher with the same solver, steps and
            pairs, with an interval over held-out episodes; None for the teacher.
    """

    policy: PolicyRole
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
        speedup: *Derived.* Time of the teacher's chunk divided by that of the student's.
        ceiling: *Derived.* The same for a one-step student: the most that step distillation can give here.
    """

    encode_s: float
    step_s: float
    batch_size: int
    repeats: int
    teacher_num_steps: int
    student_num_steps: int
    speedup: float = field(init=False)
    ceiling: float = field(init=False)

    def __post_init__(self) -> None:
        if not (self.encode_s >= 0 and self.step_s > 0):
            raise ValueError(f"encode_s is {self.encode_s} and step_s is {self.step_s}; times are positive.")
        teacher = self.chunk_s(self.teacher_num_steps)
        object.__setattr__(self, "speedup", teacher / self.chunk_s(self.student_num_steps))
        object.__setattr__(self, "ceiling", teacher / self.chunk_s(1))

    def chunk_s(self, num_steps: int) -> float:
        """Seconds for one chunk at this many Euler steps."""
        return self.encode_s + num_steps * self.step_s


@dataclass(frozen=True)
class SuccessRow:
    """Success of one way to act in one group of episodes.

    Attributes:
        policy: Whose actions.
        solver: Solver that made them.
        num_steps: Its steps.
        group: The episodes counted: ``all`` or an instruction.
        successes: Episodes solved.
        episodes: Episodes run.
        versus_teacher: Paired comparison with the teacher as deployed on the same episodes and noise, this
            policy first; None for the teacher as deployed itself.
        rate: *Derived.* ``successes / episodes``.
        interval: *Derived.* Wilson's 95 % interval of the rate.
    """

    policy: PolicyRole
    solver: str
    num_steps: int
    group: str
    successes: int
    episodes: int
    versus_teacher: PairedSuccess | None = None
    rate: float = field(init=False)
    interval: Interval = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", wilson_interval(self.successes, self.episodes))
        object.__setattr__(self, "rate", self.successes / self.episodes)


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

    policy: PolicyRole
    observation: int
    x: list[float]
    y: list[float]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or len(self.x) < 2:
            raise ValueError(
                f"x has {len(self.x)} states and y {len(self.y)}; both need the same two or more."
            )


@dataclass(frozen=True)
class CouplingSummary:
    """What the student was trained on.

    Attributes:
        observations: Observations that couplings were made for, refreshed ones included.
        noises_per_observation: Noises for each.
        solver: Solver of the teacher's endpoints.
        num_steps: Its steps.
        buffer_bytes: Memory that the buffer holds.
    """

    observations: int
    noises_per_observation: int
    solver: str
    num_steps: int
    buffer_bytes: int


@dataclass(frozen=True)
class HeldOut:
    """The observations that gaps and curvature were measured on.

    Attributes:
        episodes: Their episode indices in the dataset.
        observations: Number of observations drawn from them.
        noises: Noises for each observation.
        maybe_seen_by_teacher: True where the teacher's own training may have included these episodes.
    """

    episodes: list[int]
    observations: int
    noises: int
    maybe_seen_by_teacher: bool


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

    policy: PolicyRole
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
    latency: Latency | None = None
    success: list[SuccessRow] = field(default_factory=list)
    flip_checks: list[FlipCheck] = field(default_factory=list)
    trajectories: list[TrajectoryRow] = field(default_factory=list)
    trajectory_axes: list[float] = field(default_factory=list)
    couplings: CouplingSummary | None = None
    loss: LossCurve | None = None
    training_s: float | None = None
    verdict: str = ""
    schema_version: int = SCHEMA_VERSION

    def gap(
        self, policy: PolicyRole, num_steps: int, reference: Reference, solver: str = "euler"
    ) -> GapRow | None:
        """The gap row of this policy, step count, reference and solver, or None."""
        wanted = (policy, num_steps, reference, solver)
        rows = (r for r in self.gaps if (r.policy, r.num_steps, r.reference, r.solver) == wanted)
        return next(rows, None)

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

    def curvature_of(self, policy: PolicyRole) -> CurvatureRow | None:
        """The curvature row of this policy, or None."""
        return next((r for r in self.curvature if r.policy == policy), None)

    def success_of(
        self, policy: PolicyRole, num_steps: int, group: str = "all", solver: str = "euler"
    ) -> SuccessRow | None:
        """The success row of this policy, step count, group and solver, or None."""
        wanted = (policy, num_steps, group, solver)
        rows = (r for r in self.success if (r.policy, r.num_steps, r.group, r.solver) == wanted)
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
