"""Observations of episodes that a policy runs: what it is shown where it acts.

Kept are all observations at which a chunk was asked for, and a random share of those between two chunks, at which
one might have been asked for as well. Episodes run to their ends before any is chosen, so early and late parts of
them come as often as they are.

Shapes: B batch, T observed control steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chordflow.policies import FlowPolicy
from chordflow.rollouts.acting import Actor, Request
from chordflow.rollouts.delay import Execution
from chordflow.rollouts.episodes import SeedRange
from chordflow.rollouts.hosts import ChunkOrder, Host, Spaces, StartOrder, TaskKey
from chordflow.rollouts.runner import evaluation_mode
from chordflow.rollouts.running import Running
from chordflow.rollouts.timing import Timing

BATCH = 64
"""Observations that are handed over together."""


@dataclass(frozen=True)
class Observed:
    """Observations of episodes, as the policy's preprocessor takes them.

    Attributes:
        observation: values of B rows, or (B, T, ...) for a policy with a history, with the list `task`.
        seeds: of their episodes, B.
        steps: actions that the episode had executed before, B.
    """

    observation: dict[str, Any]
    seeds: list[int]
    steps: list[int]


@dataclass(frozen=True)
class Walked:
    """What came of a collecting.

    Attributes:
        episodes: that were run, over all tasks.
        next_seed: the first that was not used.
        ranges: which episodes of which tasks they were.
    """

    episodes: int
    next_seed: int
    ranges: list[SeedRange]


def collect(
    host: Host,
    policy: FlowPolicy,
    env_cfg: Any,
    count: int,
    *,
    num_steps: int,
    first_seed: int,
    batch_size: int,
    between_share: float,
    take: Callable[[Observed], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Walked:
    """Runs episodes, as many as `count` observations need, spread evenly over the tasks.

    A pure function of the policy's weights and the arguments: noise is that of `rollouts.noise`.

    Args:
        host: of the environments.
        policy: who acts, with Euler steps and without delay, executing as much of a chunk as it is saved with.
        env_cfg: a LeRobot `EnvConfig`.
        count: observations.
        num_steps: Euler steps for each chunk.
        first_seed: of the first episode; the others follow.
        batch_size: episodes that run side by side.
        between_share: chance of an observation between two chunks to be kept, in [0, 1].
        take: handed the observations, batch by batch.
        progress: told how many of them there are.

    Raises:
        UserError: if the environment cannot be made, fails or does not fit the policy, or an action is not finite.
    """
    actor = Actor(policy, env_cfg, num_steps, "euler", policy.chunk.num_executed, Execution(), Timing())
    tasks = host.make(batch_size)
    episodes, seed, done = 0, first_seed, 0
    ranges: list[SeedRange] = []
    with evaluation_mode(policy):
        for number, task in enumerate(tasks):
            quota = count * (number + 1) // len(tasks) - count * number // len(tasks)
            if not quota:
                continue
            spaces = host.select(task)
            before = done
            walk = _Walk(host, actor, task, spaces, batch_size, between_share, seed, first=number == 0)
            for found in walk.until(quota):
                progress(before + min(found, quota), count)
            done += quota
            chosen = np.random.default_rng([first_seed, number]).permutation(len(walk.kept))[:quota]
            kept = [walk.kept[row] for row in sorted(chosen.tolist())]
            for start in range(0, len(kept), BATCH):
                take(_observed(actor, kept[start : start + BATCH], spaces))
            ranges.append(SeedRange(env_cfg.type, *task, seed, walk.seed))
            episodes, seed = episodes + walk.seed - seed, walk.seed
    return Walked(episodes, seed, ranges)


class _Walk:
    """The episodes of one task."""

    def __init__(
        self,
        host: Host,
        actor: Actor,
        task: TaskKey,
        spaces: Spaces,
        batch_size: int,
        between_share: float,
        seed: int,
        *,
        first: bool,
    ) -> None:
        self.first = first
        self.host, self.actor, self.task, self.spaces = host, actor, task, spaces
        self.batch_size, self.between_share, self.seed = batch_size, between_share, seed
        self.kept: list[Request] = []

    def until(self, quota: int) -> Iterator[int]:
        """Begins episodes while less than `quota` is kept, and runs all to their ends; yields how much is kept."""
        free = list(range(self.batch_size))
        running: list[Running] = []
        # The last observations of each running episode, as many as the policy looks back.
        seen: dict[int, list[Any]] = {}
        while True:
            begun = self._start(free if len(self.kept) < quota else [])
            free = free[len(begun) :]
            for one in begun:
                seen[one.slot] = [one.request().observations[-1]]
            running += begun
            if not running:
                return
            requests = [one.request() for one in running]
            self.kept += requests
            actions, endpoints = self.actor.act(requests, self.spaces.observation, self.spaces.action)
            orders = [
                ChunkOrder(one.slot, one.plan(self.actor.execution, self.actor.executed, rows, endpoint))
                for one, rows, endpoint in zip(running, actions, endpoints, strict=True)
            ]
            outcomes = self.host.step(orders)
            for one, request, order, outcome in zip(running, requests, orders, outcomes, strict=True):
                known = seen[one.slot] + outcome.observations
                self._keep_between(request, known, len(outcome.observations))
                seen[one.slot] = known[-self.actor.history.span :]
                one.take(order.actions, outcome)
            free += [one.slot for one in running if one.ended]
            running = [one for one in running if not one.ended]
            yield len(self.kept)

    def _start(self, slots: Sequence[int]) -> list[Running]:
        span = self.actor.history.span
        orders = [
            StartOrder(slot, self.seed + i, recorded=False, kept=span, all_kept=True)
            for i, slot in enumerate(slots)
        ]
        self.seed += len(orders)
        answers = self.host.start(orders) if orders else []
        return [
            Running(self.task, order, answer, self.actor.history, first=self.first)
            for order, answer in zip(orders, answers, strict=True)
        ]

    def _keep_between(self, request: Request, known: list[Any], count: int) -> None:
        """Of the `count` last observations all but the last may be kept.

        That one begins the next chunk and is kept there, or the episode is over and nobody is asked any more.
        """
        drawn = np.random.default_rng([request.seed, request.chunk_index]).random(count)
        before = len(known) - count
        for i in range(count - 1):
            if drawn[i] < self.between_share:
                observations = self.actor.history.choose(known[: before + i + 1])
                step = request.step + i + 1
                self.kept.append(
                    Request(request.seed, request.chunk_index, step, observations, request.task, None)
                )


def _observed(actor: Actor, requests: list[Request], spaces: Spaces) -> Observed:
    observation = actor.observe(requests, spaces.observation)
    return Observed(
        observation, [request.seed for request in requests], [request.step for request in requests]
    )
