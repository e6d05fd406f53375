"""Rows of results about episodes in an environment: success, motion, delays, timing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from chordflow.results.actions import PolicyName
from chordflow.results.sequential import SequentialDecision
from chordflow.results.statistics import Estimate, Interval, NonInferiority, PairedSuccess, wilson_interval

MotionMeasure = Literal["jerk", "path length", "jump", "length", "seconds"]
"""What is measured of an episode's motion; see `rollouts.episodes.Episode` for units."""

DelayMode = Literal["none", "sync", "async", "rtc"]
"""`sync`: the robot waits for each chunk. `async`: it continues with the old chunk and then takes the new one.
`rtc`: as before, with LeRobot's real-time chunking."""


def _derive_rate(row: SuccessRow | DelayRow) -> None:
    """Sets the rate, and Wilson's interval of as many episodes as begin differently."""
    starts = row.starts or row.episodes
    interval = wilson_interval(row.successes * starts / row.episodes, starts)
    object.__setattr__(row, "interval", interval)
    object.__setattr__(row, "rate", row.successes / row.episodes)


@dataclass(frozen=True)
class SuccessRow:
    """Success of one way to act in one group of episodes.

    Attributes:
        policy: whose actions.
        solver: solver that made them.
        num_steps: its steps.
        group: the episodes counted: `all`, an instruction or a task, or those that begin where observations for
            training were collected, and those that do not.
        successes: episodes solved.
        episodes: episodes run.
        versus_teacher: paired comparison with the teacher as deployed on the same episodes and noise, this
            policy first; None for the teacher as deployed itself.
        noninferiority: what the pairs say at the margin; None for the teacher as deployed.
        coverage: exact coverage of Wilson's interval at this rate and number of episodes, a fraction.
        starts: distinct starts of the episodes, where some begin alike: intervals count these. None where all differ.
        grid_power: power of the solver's grid, as in `GapRow`.
        rate: *Derived.* `successes / episodes`.
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
        _derive_rate(self)

    @property
    def is_stock(self) -> bool:
        """Whether LeRobot's own sampler acts like this: by Euler, with even steps."""
        return self.solver == "euler" and self.grid_power == 1


@dataclass(frozen=True)
class MotionRow:
    """One measure of how one way to act moves, over all its episodes.

    Attributes:
        policy: whose actions.
        solver: solver that made them.
        num_steps: its steps.
        measure: jerk, path length, jump (at chunk boundaries), length (control steps) or seconds (an episode's share
            of wall-clock time).
        mean: mean over episodes with its interval.
        difference: mean paired difference to the teacher as deployed; None for that one.
        episodes: episodes that have the measure.
        grid_power: power of the solver's grid, as in `GapRow`.
    """

    policy: PolicyName
    solver: str
    num_steps: int
    measure: MotionMeasure
    mean: Estimate
    difference: Estimate | None
    episodes: int
    grid_power: float = 1.0


@dataclass(frozen=True)
class DelayRow:
    """Success and motion under an inference delay.

    Attributes:
        policy: whose actions.
        num_steps: Euler steps.
        mode: what the robot does meanwhile.
        delay: control steps between asking for a chunk and having it.
        guidance_weight: `max_guidance_weight` of real-time chunking; None in other modes.
        successes: episodes solved.
        episodes: episodes run.
        versus_undelayed: paired comparison with the same policy and steps without delay.
        jump: mean jump at chunk boundaries with its interval, robot units; None with single chunks.
        jerk: mean jerk with its interval; None for very short episodes.
        starts: distinct starts of the episodes, where some begin alike: intervals count these. None where all differ.
        rate: *Derived.* `successes / episodes`.
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
        _derive_rate(self)


@dataclass(frozen=True)
class SequentialRow:
    """Where the paired evidence stood when the run stopped.

    Attributes:
        policy: whose actions were compared with the teacher as deployed.
        num_steps: its steps.
        decision: the test.
    """

    policy: PolicyName
    num_steps: int
    decision: SequentialDecision


@dataclass(frozen=True)
class TimingRow:
    """Where the time of a policy's rollouts went.

    Attributes:
        policy: whose rollouts.
        num_steps: its steps.
        solver: which solver.
        grid_power: power of its grid, as in `GapRow`.
        network_s: in the policy's network: encoding and velocities.
        simulator_s: in the environment: making, resetting, stepping, rendering.
        processors_s: in the checkpoint's and the environment's processors, LeRobot's.
        other_s: all else: chordflow itself.
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
        env: the environment's `type` and task, as a person would say it.
        noise: `paired`: a function of seed and chunk, the same for every policy. `lerobot`: drawn from the global
            generator, as `lerobot-eval` does; rates may then be compared, episodes are not paired.
        first_seed: seed of the first episode; the others follow.
        batch_size: episodes side by side.
        num_workers: processes that held the environments; 0 for none of their own.
        margin: of the non-inferiority statement, a fraction.
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
        path: file, relative to the results.
        columns: what stands side by side, from left to right.
        seeds: seeds of its episodes, in their order.
        outcomes: for each seed, whether each column succeeded.
    """

    path: str
    columns: list[str]
    seeds: list[int]
    outcomes: list[list[bool]]


@dataclass(frozen=True)
class FlipCheck:
    """Whether a flip of the first chunk is what an onlooker sees: the other side taken.

    Attributes:
        policy: whose chunks are compared with those of the teacher as deployed.
        num_steps: its Euler steps.
        episodes: paired episodes of both from the same start and noise in which both passed the obstacle.
        flips: of these, the ones whose first chunks lie at different modes of the teacher's.
        other_side: of these, the ones in which this policy took the other side than the teacher.
        agree: of these, the ones in which both say the same.
    """

    policy: PolicyName
    num_steps: int
    episodes: int
    flips: int
    other_side: int
    agree: int
