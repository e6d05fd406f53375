"""Rows of results about actions on observations: gaps, curvature, spread of the endpoints, trajectories, time.

Relative measures are fractions. Fields marked *derived* are written for the reader and computed anew on loading.
"""

from dataclasses import dataclass, field
from typing import Literal

from chordflow.results.statistics import Estimate, Interval, Percentiles

PolicyName = str
"""`teacher` is the untrained checkpoint at whatever step count the row says, `student` the one in question; any
other is a name that the user gave."""

TEACHER, STUDENT = "teacher", "student"

Reference = Literal["deployed", "converged"]
"""`deployed`: the teacher at its default steps. `converged`: the teacher's ODE on a fine grid."""

REFERENCES: tuple[Reference, ...] = ("deployed", "converged")

ABOVE, APART = 0.1, 0.2
"""Timings are unreliable where a speed-up is above the ceiling by more than the first share, or whole chunks and their
parts are apart by more than the second."""


@dataclass(frozen=True)
class HeldOut:
    """The observations that gaps and curvature were measured on.

    Attributes:
        episodes: their episode indices in the dataset.
        observations: number of observations drawn from them.
        noises: noises for each observation.
        maybe_seen_by_teacher: True where the teacher's own training may have included these episodes.
        whole_tasks: how many of the episodes are of a task that has no other, so that a student trains on none of it.
    """

    episodes: list[int]
    observations: int
    noises: int
    maybe_seen_by_teacher: bool
    whole_tasks: int = 0


@dataclass(frozen=True)
class CurvatureRow:
    """Curvature of one policy along its own trajectories.

    Attributes:
        policy: whose.
        num_steps: Euler steps of the measuring grid, not the policy's own.
        trajectories: number of trajectories.
        s: `integral of E ||(x_1 - x_0) - v||^2 dt` over the real dimensions, mean over the chunk's rows.
        curvature: `sqrt(s / E ||x_1 - x_0||^2)` over the real dimensions, a fraction.
        s_all_dims: S over all padded dimensions.
        curvature_all_dims: curvature over all padded dimensions, a fraction.
        times: grid times, from 1 downwards; `num_steps` of them.
        s_by_time: integrand of S over the real dimensions at those times.
        s_by_dim: S of each padded dimension.
        s_by_time_and_dim: the integrand of S at those times by real dimension, a row per time; empty where it was
            not kept.
        interval: interval of `curvature` over held-out episodes; None where they are too few.
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
        policy: whose actions.
        solver: solver that made them.
        num_steps: its steps.
        nfe: its network evaluations.
        reference: what they are compared with.
        reference_num_steps: solver steps of the reference.
        rms: `sqrt(mean ||a - ref||^2 / mean ||ref - mean ref||^2)` over real dimensions, a fraction.
        median: median over pairs of the same relative distance, a fraction.
        flip_rate: share of pairs whose action is nearer to another mode of the reference than to the one of
            this noise; None where modes were not looked for.
        max_abs: largest absolute difference, in the robot's units.
        mean_abs: mean absolute difference, in the robot's units.
        observations: number of held-out observations.
        pairs: number of pairs of observation and noise.
        ratio_to_untrained: RMS divided by that of the untrained teacher at as many evaluations by even Euler steps on
            the same pairs, with an interval over held-out episodes; None for the teacher, but among its best ways.
        interval: interval of `rms` over held-out episodes; None where they are too few.
        ratio_to_floor: RMS divided by that of the teacher as deployed on the same pairs, both to the teacher's
            converged ODE, with an interval over held-out episodes: below 1 these actions are more exact than the
            deployed teacher's. None for other references and for the deployed teacher.
        nearer_than_deployed: share of pairs that are nearer to the converged ODE's than the deployed teacher's are,
            likewise.
        grid_power: power of the solver's grid: 1 for even steps, above 1 they grow smaller towards the action.
        ratio_to_free: of another policy than the teacher, among the best ways to act without training: RMS divided by
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
        chosen_on: episodes that the ways were chosen on.
        measured_on: episodes that the rows are of; the same one where there is no other.
        ways: the best ways, a row for each number of evaluations and reference.
        others: on the same pairs, to the converged ODE: the teacher as deployed, and every other policy at its own
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
        observation: index among the held-out observations.
        episode: its episode in the dataset.
        frame: its frame within the episode.
        task: its instruction.
        spread: root-mean-square distance of the endpoints of this observation from their mean, divided by the same
            over all observations: 0 where noise decides nothing, 1 where it decides as much as the observation does.
        modes: number of modes among the endpoints.
        shares: share of the endpoints in each mode, the largest first.
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
        observation: index among the held-out observations, as in `ObservationSpread`.
        x: endpoints along the first main component of this observation's endpoints.
        y: the same along the second.
        labels: mode of each endpoint, from 0.
        axes: share of the endpoints' variance along x and y, fractions.
        pictures: what the cameras show, PNG files in base64 by camera; empty where the policy has none.
    """

    observation: int
    x: list[float]
    y: list[float]
    labels: list[int]
    axes: list[float]
    pictures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrajectoryRow:
    """One trajectory from noise to action, flattened for a picture.

    A state is a whole chunk over the real dimensions; x and y are its two main components, which all rows
    of a file share, so that trajectories of different policies can be laid over each other.

    Attributes:
        policy: whose velocity.
        observation: index among the held-out observations; rows of several policies that have it in common,
            in the same order, start at the same noise.
        x: first component of the states on a fine grid, the noise first and the endpoint last.
        y: second component of the same states.
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
class ChunkTime:
    """Measured time of a whole chunk, from the preprocessed observation to the endpoint.

    Attributes:
        num_steps: Euler steps.
        seconds: percentiles of the time.
    """

    num_steps: int
    seconds: Percentiles


@dataclass(frozen=True)
class Memory:
    """Memory that the policy takes while it acts.

    Attributes:
        weights_bytes: parameters and buffers.
        peak_bytes: most memory in use while chunks were made.
        kind: what `peak_bytes` counts: allocations on the accelerator, or the whole process.
    """

    weights_bytes: int
    peak_bytes: int
    kind: Literal["accelerator", "process"]


@dataclass(frozen=True)
class Latency:
    """Time for one chunk, split into what every step count pays once and what each step pays.

    Attributes:
        encode_s: median seconds to encode the observation.
        step_s: median seconds for one velocity evaluation.
        batch_size: observations at a time.
        repeats: timed repetitions behind each median.
        teacher_num_steps: steps of the teacher as deployed.
        student_num_steps: steps of the student.
        speedup: *Derived.* Time of the teacher's chunk divided by that of the student's: of whole chunks as measured
            where `chunks` has both, else summed up from `encode_s` and `step_s`.
        ceiling: *Derived.* `(encode_s + n * step_s) / (encode_s + step_s)` for the n steps of the teacher: the most
            that step distillation can give here.
        reliable: *Derived.* False where the speed-up exceeds the ceiling by more than a tenth, or a whole chunk and the
            sum of its parts disagree by more than a fifth: the machine was busy, and no figure of time is printed.
        encode: percentiles behind `encode_s`; None where only the median was kept.
        step: percentiles behind `step_s`.
        chunks: whole chunks at several step counts, measured rather than summed up.
        processors_s: median seconds of the checkpoint's processors for one observation and its actions; they are
            not part of `encode_s`. None where they were not timed.
        memory: None where it was not measured.
        exported: whole chunks of exported folders by policy, from the graph's inputs to the endpoint; all other times
            are of the teacher's network in PyTorch.
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
    exported: dict[PolicyName, ChunkTime] = field(default_factory=dict)
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

    def relative(self, num_steps: int, policy: PolicyName = TEACHER) -> float:
        """Time of a chunk over that of the teacher's: of whole chunks where both were timed, else of sums.

        An exported folder has its own time.
        """
        whole = {chunk.num_steps: chunk.seconds.p50 for chunk in self.chunks}
        teacher = self.teacher_num_steps
        if policy in self.exported:
            return self.exported[policy].seconds.p50 / (whole.get(teacher) or self.chunk_s(teacher))
        if whole.get(teacher) and whole.get(num_steps):
            return whole[num_steps] / whole[teacher]
        return self.chunk_s(num_steps) / self.chunk_s(teacher)

    def encode_share(self, num_steps: int) -> float:
        """Share of encoding in a chunk at this many steps, from the same figures as the ceiling."""
        return self.encode_s / self.chunk_s(num_steps)


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
        spreads: how two-sided the teacher is at each held-out observation that was used.
        widest: the observations at which its endpoints spread most.
    """

    curvature: list[CurvatureRow]
    gaps: list[GapRow]
    free: FreeWays | None
    latency: Latency
    trajectories: list[TrajectoryRow]
    trajectory_axes: list[float]
    spreads: list[ObservationSpread]
    widest: list[WideObservation]
