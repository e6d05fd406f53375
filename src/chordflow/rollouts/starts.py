"""Which episodes begin alike, and which begin where a policy's training has collected observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chordflow.rollouts.episodes import Episode, EpisodeKey

type Task = tuple[str, int]


@dataclass(frozen=True)
class SeedRange:
    """Episodes that were run one after the other in a task of an environment.

    Attributes:
        env: `type` of the environment.
        group: suite of the task.
        number: of the task within it.
        first: their first seed.
        stop: the seed after their last one.
    """

    env: str
    group: str
    number: int
    first: int
    stop: int


@dataclass(frozen=True)
class Starts:
    """The starts of episodes.

    Attributes:
        numbers: of the starts of each task; None, or no entry, where each seed has one of its own.
        collected: the starts that observations were collected on, as `of` names them.
    """

    numbers: Mapping[Task, int | None] = field(default_factory=dict)
    collected: frozenset[EpisodeKey] = frozenset()

    @classmethod
    def known(cls, numbers: Mapping[Task, int | None], ranges: Sequence[SeedRange]) -> Starts:
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
