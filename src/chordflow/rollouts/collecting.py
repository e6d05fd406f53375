"""Observations of episodes that a policy runs: its inputs where it acts.

Kept are all observations at which a chunk was asked for, and a random share of those between two chunks, at which
one might have been asked for as well. Episodes run to their ends before any is chosen, so early and late parts of
them come as often as they are. Shapes: B batch, T observed control steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sized
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from chordflow.rollouts.acting import Actor, Request
from chordflow.rollouts.environments import Outcome
from chordflow.rollouts.episodes import SeedRange
from chordflow.rollouts.runner import Running, evaluation_mode, rounds
from chordflow.rollouts.workers import Host

BATCH = 64
"""Observations that `take` gets at a time."""


class Observed(NamedTuple):
    """Observations (B, ...), or (B, T, ...) for a policy with a history, with the list `task`.

    They come from the episodes of `seeds`, after `steps` executed actions.
    """

    observation: dict[str, Any]
    seeds: list[int]
    steps: list[int]


def collect(
    host: Host,
    actor: Actor,
    count: int,
    *,
    first_seed: int,
    batch_size: int,
    between_share: float,
    take: Callable[[Observed], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[SeedRange]:
    """Runs episodes, as many as `count` observations need, spread evenly over the tasks.

    A pure function of the policy's weights and the arguments: noise is that of `rollouts.acting`.

    Args:
        host: of the environments.
        actor: who acts, without delay.
        count: observations.
        first_seed: of the first episode; the others follow.
        batch_size: episodes that run side by side.
        between_share: chance of an observation between two chunks to be kept, in [0, 1].
        take: called with the observations, batch by batch.
        progress: called with how many of them there are.

    Returns:
        Which episodes of which tasks were run; seeds follow one another.

    Raises:
        UserError: if the environment cannot be made, fails or does not fit the policy, or an action is not finite.
    """
    tasks = host.make(batch_size)
    seed = first_seed
    ranges: list[SeedRange] = []
    with evaluation_mode(actor.policy):
        for number, task in enumerate(tasks):
            done, target = (count * n // len(tasks) for n in (number, number + 1))
            if done == target:
                continue
            quota, first, kept = target - done, seed, list[Request]()
            seeds = _seeds(first, kept, quota)
            for took_part in rounds(host, actor, task, seeds, batch_size, first=number == 0, all_kept=True):
                seed = max(seed, *(one.request.seed + 1 for one, _ in took_part))
                kept += [one.request for one, _ in took_part]
                for one, outcome in took_part:
                    kept += _between(one, outcome, actor, between_share)
                progress(done + min(len(kept), quota), count)
            chosen = np.random.default_rng([first_seed, number]).permutation(len(kept))[:quota]
            chosen.sort()
            space = host.select(task).observation
            for start in range(0, len(chosen), BATCH):
                requests = [kept[row] for row in chosen[start : start + BATCH]]
                observation = actor.observe(requests, space)
                take(Observed(observation, [one.seed for one in requests], [one.step for one in requests]))
            env = actor.env_cfg
            # LeRobot gives the tasks of a suite names of their own, and all of Gym's the type's.
            named = f"{env.type}, {env.task}" if task[0] == env.type else env.type
            ranges.append(SeedRange(named, *task, first, seed))
    return ranges


def _seeds(first: int, kept: Sized, quota: int) -> Iterator[int]:
    """Episodes begin while less than `quota` is kept."""
    return itertools.takewhile(lambda _: len(kept) < quota, itertools.count(first))


def _between(one: Running, outcome: Outcome, actor: Actor, share: float) -> Iterator[Request]:
    """Of the observations after a chunk's actions a random `share`, as if a chunk had been asked for there.

    Not the last: it begins the next chunk and is kept there, or the episode is over.
    """
    count = len(outcome.observations)
    before = len(one.seen) - count
    drawn = np.random.default_rng([one.request.seed, one.request.chunk_index]).random(count)
    for i in np.flatnonzero(drawn[:-1] < share).tolist():
        seen = actor.history.choose(one.seen[: before + i + 1])
        yield replace(one.request, step=one.request.step + i + 1, observations=seen, previous=None)
