"""What one episode came to, how episodes are paired, which begin alike, and where their time went.

Shapes: T executed actions, A action dimension.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from chordflow.errors import UserError
from chordflow.results.episodes import DelayMode

EpisodeKey = tuple[str, int, int]
"""Suite, number of the task within it, and seed."""


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        seed: seed that the environment was reset with and the chunks' noise was drawn from.
        task: instruction that the policy was given.
        success: whether the environment reported `is_success` at any step.
        length: executed actions.
        sum_reward: sum of the rewards.
        side: the environment's last `info["side"]`, for environments that tell one.
        chunks: chunks that the policy made.
        num_steps, solver, grid_power: how each of them was made; see `Runner.run`.
        jerk: see `jerk`, in the robot's units per control step cubed, squared. It compares policies at one control
            rate.
        jump: see `jump`, in the robot's units.
        seconds: its share of wall-clock time: that of a round is divided evenly among the episodes that took part.
        actions: the executed actions, float32 (T, A).
        frames: where recorded: uint8 (T + 1, height, width, 3), the first before any action.
        task_group: suite of the task, by LeRobot's name; empty for a single task without a name.
        task_id: number of the task within its suite.
        mode, delay: see `rollouts.delay.Execution`.
        path_length: *Derived.* Sum over time of the Euclidean norm of `a[t+1] - a[t]`, in the robot's units.
    """

    seed: int
    task: str
    success: bool
    length: int
    sum_reward: float
    side: str | None
    chunks: int
    num_steps: int
    solver: str
    jerk: float | None
    jump: float | None
    seconds: float = field(compare=False)
    actions: NDArray[np.float32] = field(compare=False, repr=False)
    frames: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    task_group: str = ""
    task_id: int = 0
    mode: DelayMode = "none"
    delay: int = 0
    grid_power: float = 1.0
    path_length: float = field(init=False)

    def __post_init__(self) -> None:
        steps = np.diff(self.actions.astype(np.float64), axis=0)
        object.__setattr__(self, "path_length", float(np.linalg.norm(steps, axis=1).sum()))

    @property
    def key(self) -> EpisodeKey:
        """What pairs an episode with that of another run."""
        return self.task_group, self.task_id, self.seed

    def row(self) -> dict[str, Any]:
        """The plain values by name, as a row for JSON or parquet: all but `actions` and `frames`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("actions", "frames")}


def jerk(actions: NDArray[np.floating]) -> float | None:
    """Mean square, over time and dimensions, of `a[t+3] - 3 a[t+2] + 3 a[t+1] - a[t]` of `actions` (T, A).

    None where T is below 4.
    """
    if len(actions) < 4:
        return None
    return float(np.mean(np.diff(actions.astype(np.float64), n=3, axis=0) ** 2))


def jump(actions: NDArray[np.floating], starts: Sequence[int]) -> float | None:
    """Mean absolute step, over dimensions too, of `actions` (T, A) onto the first action of each later chunk.

    None for a single chunk. `starts` holds the index of the first action of each chunk, from 0 upwards.
    """
    later = np.asarray(starts[1:], dtype=np.int64)
    if later.size == 0:
        return None
    wide = actions.astype(np.float64)
    return float(np.mean(np.abs(wide[later] - wide[later - 1])))


def paired(first: Sequence[Episode], second: Sequence[Episode]) -> list[tuple[Episode, Episode]]:
    """The episodes of two runs side by side, by suite, task and rising seed.

    Raises:
        UserError: if their seeds, tasks or instructions differ, or a seed comes twice.
    """
    counts = [Counter((*episode.key, episode.task) for episode in run) for run in (first, second)]
    for key in sorted(counts[0] | counts[1]):
        times = [count[key] for count in counts]
        if times != [1, 1]:
            group, number, seed, task = key
            raise UserError(
                f"seed {seed} of {group}/{number} with the instruction {task!r} is {times[0]} times in the first run, "
                f"{times[1]} times in the second; run both with the same seeds, each once, in the same environment."
            )
    by_key = [sorted(run, key=lambda episode: episode.key) for run in (first, second)]
    return list(zip(*by_key, strict=True))


@dataclass(frozen=True)
class SeedRange:
    """Episodes that were run one after the other in a task: suite `group`, `number` in it, of the environment `env`.

    The environment is its type, with the task's id where that is no suite. Seeds begin with `first` and end before
    `stop`.
    """

    env: str
    group: str
    number: int
    first: int
    stop: int


@dataclass(frozen=True)
class Starts:
    """The starts of episodes: how many a task has, and on which observations were `collected`, as `of` names them.

    The number is None, or not there, where each seed has a start of its own.
    """

    numbers: Mapping[tuple[str, int], int | None] = field(default_factory=dict)
    collected: frozenset[EpisodeKey] = frozenset()

    @classmethod
    def known(cls, numbers: Mapping[tuple[str, int], int | None], ranges: Sequence[SeedRange]) -> Starts:
        """Those of an environment in which observations were collected in `ranges` of seeds."""
        plain = cls(numbers)
        collected = set()
        for run in ranges:
            number = numbers.get((run.group, run.number))
            stop = min(run.stop, run.first + number) if number else run.stop
            collected |= {plain._start(run.group, run.number, seed) for seed in range(run.first, stop)}
        return cls(numbers, frozenset(collected))

    def of(self, episode: Episode) -> EpisodeKey:
        """Suite, number of the task, and the start's number in it."""
        return self._start(*episode.key)

    def trained_on(self, episode: Episode) -> bool:
        """Whether observations were collected from this start."""
        return self.of(episode) in self.collected

    def clusters(self, episodes: Sequence[Episode]) -> list[int] | None:
        """The start of each episode, numbered; None where no two begin alike."""
        starts = [self.of(episode) for episode in episodes]
        numbers = {start: index for index, start in enumerate(dict.fromkeys(starts))}
        return [numbers[start] for start in starts] if len(numbers) < len(starts) else None

    def distinct(self, episodes: Sequence[Episode]) -> int | None:
        """How many starts episodes have; None where no two begin alike."""
        clusters = self.clusters(episodes)
        return max(clusters) + 1 if clusters else None

    def _start(self, group: str, task: int, seed: int) -> EpisodeKey:
        number = self.numbers.get((group, task))
        return group, task, seed % number if number else seed


@dataclass
class Timing:
    """Seconds of wall-clock time of one or several runs, without what a caller's `progress` took.

    Attributes:
        network_s: encoding observations and following the velocity.
        simulator_s: making, resetting, stepping and rendering environments, or waiting for other processes that do.
        processors_s: LeRobot's: the environment's and the checkpoint's.
        total_s: all of it.
    """

    network_s: float = 0.0
    simulator_s: float = 0.0
    processors_s: float = 0.0
    total_s: float = 0.0

    @property
    def other_s(self) -> float:
        """All else: chordflow itself."""
        return max(self.total_s - self.network_s - self.simulator_s - self.processors_s, 0.0)

    @contextmanager
    def measure(
        self, part: Literal["network", "simulator", "processors"], device: torch.device | None = None
    ) -> Iterator[None]:
        """Adds the time of the block to a part; a GPU that computes in it is waited for before and after."""
        asynchronous = device is not None and device.type == "cuda"
        if asynchronous:
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        try:
            yield
        finally:
            if asynchronous:
                torch.cuda.synchronize(device)
            name = f"{part}_s"
            setattr(self, name, getattr(self, name) + time.perf_counter() - begin)

    def add(self, other: Timing) -> None:
        """Adds another run's time to this one's."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))
