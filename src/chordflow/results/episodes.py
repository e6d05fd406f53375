"""Rows of results about episodes in an environment: success, motion, delays, timing."""

from dataclasses import dataclass, field
from typing import Literal

from chordflow.results.actions import PolicyName
from chordflow.results.sequential import SequentialDecision
from chordflow.results.statistics import Estimate, Interval, NonInferiority, PairedSuccess, wilson_interval

MotionMeasure = Literal["jerk", "path length", "jump", "length", "seconds"]
"""What is measured of an episode's motion; see `rollouts.episodes.Episode` for units."""

DelayMode = Literal["none", "sync", "async", "rtc"]
"""`sync`: the robot waits for each chunk. `async`: it goes on with the old chunk and then takes the new one.
`rtc`: as before, with LeRobot's real-time chunking."""


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
        group: The episodes counted: `all`, an instruction or a task, or those that begin where observations for
            training were collected, and those that do not.
        successes: Episodes solved.
        episodes: Episodes run.
        versus_teacher: Paired comparison with the teacher as deployed on the same episodes and noise, this
            policy first; None for the teacher as deployed itself.
        noninferiority: What the pairs say at the margin; None for the teacher as deployed.
        coverage: Exact coverage of Wilson's interval at this rate and number of episodes, a fraction.
        starts: Distinct starts of the episodes, where some begin alike: intervals count these. None where all differ.
        grid_power: Power of the solver's grid, as in `GapRow`.
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
        object.__setattr__(self, "interval", _interval_of_rate(self.successes, self.episodes, self.starts))
        object.__setattr__(self, "rate", self.successes / self.episodes)

    @property
    def is_stock(self) -> bool:
        """Whether LeRobot's own sampler acts like this: by Euler, with even steps."""
        return self.solver == "euler" and self.grid_power == 1


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
        grid_power: Power of the solver's grid, as in `GapRow`.
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
        policy: Whose actions.
        num_steps: Euler steps.
        mode: What the robot does meanwhile.
        delay: Control steps between asking for a chunk and having it.
        guidance_weight: `max_guidance_weight` of real-time chunking; None in other modes.
        successes: Episodes solved.
        episodes: Episodes run.
        versus_undelayed: Paired comparison with the same policy and steps without delay.
        jump: Mean jump at chunk boundaries with its interval, robot units; None with single chunks.
        jerk: Mean jerk with its interval; None for very short episodes.
        starts: Distinct starts of the episodes, where some begin alike: intervals count these. None where all differ.
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
        grid_power: Power of its grid, as in `GapRow`.
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
        noise: `paired`: a function of seed and chunk, the same for every policy. `lerobot`: drawn from the global
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
