"""Runs policies through episodes that are each a pure function of policy, task, seed, solver, steps and delay.

(The first task of a run has noises of its seed and chunk alone; see `rollouts.noise`.)

Work goes in rounds. In a round every running episode gets a chunk, in one batch, and executes it by itself;
one that ends makes room for the next seed. So the network never sees an episode that is over, observations
are processed only where a chunk is asked for, and an episode does not depend on who shares its batch (but
for the rounding of batched matrix products) nor on which process its environment lives in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from chordflow.checks import check_once
from chordflow.policies import FlowPolicy
from chordflow.rollouts.acting import Actor
from chordflow.rollouts.delay import Execution
from chordflow.rollouts.episodes import Episode, EpisodeKey
from chordflow.rollouts.hosts import ChunkOrder, Host, StartOrder, TaskKey
from chordflow.rollouts.running import Running
from chordflow.rollouts.store import EpisodeStore
from chordflow.rollouts.timing import Timing
from chordflow.rollouts.workers import open_host

Progress = Callable[[Episode], None]

PLAIN = Execution()
"""No delay."""


class Runner:
    """Environments that stay open over several runs; see `open_runner`.

    Attributes:
        env_cfg: a LeRobot `EnvConfig`.
        batch_size: episodes that run side by side at most.
        timing: where the time of all runs so far went.
    """

    def __init__(self, env_cfg: Any, host: Host, batch_size: int) -> None:
        self.env_cfg = env_cfg
        self.batch_size = batch_size
        self.timing = Timing()
        self._host = host

    def tasks(self) -> dict[TaskKey, int | None]:
        """The tasks that the config names, in LeRobot's order, each with the number of its starts (see `Host.make`).

        Makes the environments if need be.
        """
        return self._host.make(1)

    def check(self, policy: FlowPolicy, seed: int = 0) -> None:
        """Asks for a single chunk at the first observation, to see early whether policy and environment fit.

        Args:
            policy: who would act.
            seed: of the episode whose beginning is looked at.

        Raises:
            UserError: as `run`.
        """
        task, *_ = self._host.make(1)
        spaces = self._host.select(task)
        actor = Actor(policy, self.env_cfg, 1, "euler", policy.chunk.num_executed, PLAIN, Timing())
        order = StartOrder(0, seed, False, actor.history.span)
        one = Running(task, order, self._host.start([order])[0], actor.history, first=True)
        with evaluation_mode(policy):
            actor.act([one.request()], spaces.observation, spaces.action)

    def run(
        self,
        policy: FlowPolicy,
        seeds: Sequence[int],
        *,
        num_steps: int,
        solver: str = "euler",
        grid_power: float = 1.0,
        n_action_steps: int | None = None,
        execution: Execution = PLAIN,
        store: EpisodeStore | None = None,
        record_frames: Collection[int] = (),
        progress: Progress | None = None,
        timing: Timing | None = None,
    ) -> list[Episode]:
        """Runs one episode for each task and seed.

        Args:
            policy: who acts.
            seeds: of the episodes, each once; every task gets all of them.
            num_steps: solver steps for each chunk; the step count that the policy is saved with is not used.
            solver: euler, midpoint, heun or adams_bashforth.
            grid_power: how the steps are graded; 1 for LeRobot's even steps.
            n_action_steps: executed actions of each chunk; the policy's own by default.
            execution: what delay there is and what the robot does meanwhile.
            store: where each episode is saved as it ends; those that it holds are not run again (but where
                pictures are asked for that it lacks).
            record_frames: seeds of the episodes whose pictures are kept.
            progress: called with each episode as it ends, in whichever order they end, those of the store first.
            timing: where this run's time is added, besides the runner's own.

        Returns:
            The episodes, task by task in LeRobot's order, each in the order of `seeds`.

        Raises:
            UserError: for impossible arguments, an environment that cannot be made, fails, or lacks what the
                policy looks at, another action size, or an action that is not finite.
        """
        spent = Timing()
        clock = _Clock()
        check_once("seeds", seeds, at_least=0)
        executed = policy.chunk.num_executed if n_action_steps is None else n_action_steps
        policy.chunk.check_executed(executed)
        actor = Actor(policy, self.env_cfg, num_steps, solver, executed, execution, spent, grid_power)
        report = clock.paused(progress) if progress is not None else _ignore
        episodes: dict[EpisodeKey, Episode] = {}
        try:
            with evaluation_mode(policy):
                with spent.measure("simulator"):
                    tasks = list(self._host.make(min(self.batch_size, len(seeds))))
                for group, number in tasks:
                    for seed in seeds:
                        known = store.get((group, number, seed)) if store is not None else None
                        if known is not None and (seed not in record_frames or known.frames is not None):
                            episodes[known.key] = known
                            report(known)
                for task in tasks:
                    waiting = [seed for seed in seeds if (*task, seed) not in episodes]
                    if waiting:
                        first = task == tasks[0]
                        for ended in self._run_task(actor, task, waiting, record_frames, first):
                            if store is not None:
                                store.save(ended)
                            for episode in ended:
                                episodes[episode.key] = episode
                                report(episode)
        finally:
            spent.total_s = clock.seconds()
            self.timing.add(spent)
            if timing is not None:
                timing.add(spent)
            if store is not None:
                store.add_timing(spent)
        return [episodes[*task, seed] for task in tasks for seed in seeds]

    def _run_task(
        self, actor: Actor, task: TaskKey, seeds: Sequence[int], record_frames: Collection[int], first: bool
    ) -> Iterator[list[Episode]]:
        """Yields the episodes of one task, those together that end in one round."""
        timing, host = actor.timing, self._host
        begin = time.perf_counter()
        with timing.measure("simulator"):
            spaces = host.select(task)
        waiting = iter(seeds)
        free = list(range(min(self.batch_size, len(seeds))))
        running: list[Running] = []
        while True:
            # `free` first: a zip that ends by it takes no seed along.
            orders = [
                StartOrder(slot, seed, seed in record_frames, actor.history.span)
                for slot, seed in zip(free, waiting, strict=False)
            ]
            if orders:
                with timing.measure("simulator"):
                    answers = host.start(orders)
                running += [
                    Running(task, order, start, actor.history, first=first)
                    for order, start in zip(orders, answers, strict=True)
                ]
            if not running:
                return
            actions, endpoints = actor.act(
                [one.request() for one in running], spaces.observation, spaces.action
            )
            chunks = [
                ChunkOrder(one.slot, one.plan(actor.execution, actor.executed, rows, endpoint))
                for one, rows, endpoint in zip(running, actions, endpoints, strict=True)
            ]
            with timing.measure("simulator"):
                outcomes = host.step(chunks)
            for one, order, outcome in zip(running, chunks, outcomes, strict=True):
                one.take(order.actions, outcome)
            share = (time.perf_counter() - begin) / len(running)
            for one in running:
                one.seconds += share
            ended = [one for one in running if one.ended]
            running = [one for one in running if not one.ended]
            free = [one.slot for one in ended]
            if ended:
                yield [one.finish(actor) for one in ended]
            begin = time.perf_counter()


@contextmanager
def open_runner(env_cfg: Any, batch_size: int = 32, num_workers: int = 0) -> Iterator[Runner]:
    """Holds environments, and the processes that they live in, open over several runs.

    Args:
        env_cfg: a LeRobot `EnvConfig`, of one task or of suites of tasks.
        batch_size: episodes that run side by side; for speed, no result depends on it but by rounding.
        num_workers: processes that hold the environments, each its share; 0 for this one.

    Raises:
        UserError: for numbers out of range.
    """
    with open_host(env_cfg, batch_size, num_workers) as host:
        yield Runner(env_cfg, host, batch_size)


def run_episodes(
    policy: FlowPolicy,
    env_cfg: Any,
    seeds: Sequence[int],
    *,
    num_steps: int,
    solver: str = "euler",
    grid_power: float = 1.0,
    batch_size: int = 32,
    num_workers: int = 0,
    n_action_steps: int | None = None,
    execution: Execution = PLAIN,
    store: EpisodeStore | None = None,
    record_frames: Collection[int] = (),
    progress: Progress | None = None,
    timing: Timing | None = None,
) -> list[Episode]:
    """Runs one episode for each task and seed, in environments that are made for it.

    Observations and actions go the way of LeRobot's own rollout: the environment's processors around the
    checkpoint's. Only the noise differs: see `rollouts.noise`.

    The arguments, what is returned and what is raised are those of `open_runner` and `Runner.run`.
    """
    with open_runner(env_cfg, batch_size, num_workers) as runner:
        return runner.run(
            policy,
            seeds,
            num_steps=num_steps,
            solver=solver,
            grid_power=grid_power,
            n_action_steps=n_action_steps,
            execution=execution,
            store=store,
            record_frames=record_frames,
            progress=progress,
            timing=timing,
        )


class _Clock:
    """Wall-clock time since it was made, without what the caller's own function took."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._paused = 0.0

    def paused(self, function: Progress) -> Progress:
        """`function`, its time not counted."""

        def call(episode: Episode) -> None:
            begin = time.perf_counter()
            try:
                function(episode)
            finally:
                self._paused += time.perf_counter() - begin

        return call

    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._begin - self._paused


def _ignore(_episode: Episode) -> None:
    pass


@contextmanager
def evaluation_mode(policy: FlowPolicy) -> Iterator[None]:
    """Puts the policy in the mode in which LeRobot runs it, and back."""
    training = policy.module.training
    policy.module.eval()
    try:
        yield
    finally:
        policy.module.train(training)
