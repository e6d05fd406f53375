"""Runs policies through episodes that are each a pure function of policy, task, seed, solver, steps and delay.

Work goes in rounds. In a round every running episode gets a chunk, in one batch, and executes it by itself;
one that ends makes room for the next seed. So the network never sees an episode that is over, observations
are processed only where a chunk is asked for, and an episode does not depend on who shares its batch (but
for the rounding of batched matrix products) nor on which process its environment lives in.

Shapes: H chunk size, D padded and A real action dimension, T executed actions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from chordflow.errors import named
from chordflow.policies import FlowPolicy
from chordflow.rollouts.acting import Actor, Request
from chordflow.rollouts.delay import round_actions
from chordflow.rollouts.environments import ChunkOrder, Outcome, Started, StartOrder, TaskKey
from chordflow.rollouts.episodes import Episode, EpisodeKey, Timing, jerk, jump
from chordflow.rollouts.store import EpisodeStore
from chordflow.rollouts.workers import Host, open_host
from chordflow.threads import is_small, one_thread


class Running:
    """An episode on its way; `first` says whether its task is the first of the run.

    Attributes:
        slot: number of its sub-environment.
        ended: whether it is over.
        seconds: its share of wall-clock time so far.
        request: what its last chunk was made from.
        seen: its last observations, from before the last chunk as far as the policy looks back.
    """

    request: Request

    def __init__(
        self, actor: Actor, task: TaskKey, order: StartOrder, started: Started, *, first: bool
    ) -> None:
        self.slot, self.ended, self.seconds = order.slot, False, 0.0
        self.seen: list[Any] = [started.observation]
        self._actor, self._task, self._seed, self._instruction = actor, task, order.seed, started.task
        self._noise_task = None if first else task
        self._frames = None if started.frame is None else [started.frame]
        self._actions: list[NDArray[np.float32]] = []
        self._length = self._asked = self._planned_old = 0
        # Index of the first action of each chunk, which an episode may end before.
        self._starts: list[int] = [0]
        self._chunk: NDArray[np.float32] | None = None
        self._endpoint: Tensor | None = None
        self._sum_reward = 0.0
        self._success = False
        self._side: str | None = None

    def ask(self) -> Request:
        """What the next chunk is made from."""
        self.request = Request(
            self._seed,
            self._asked,
            self._length,
            self._actor.history.choose(self.seen),
            self._instruction,
            self._endpoint,
            self._noise_task,
        )
        return self.request

    def plan(self, chunk: NDArray[np.float32], endpoint: Tensor) -> ChunkOrder:
        """Takes a new chunk (its leading actions, and its endpoint (H, D)) and gives the round's actions."""
        last = self._actions[-1][-1] if self._actions else None
        actions, self._planned_old = round_actions(
            self._actor.execution, self._actor.executed, chunk, self._chunk, last
        )
        self._chunk, self._endpoint = chunk, endpoint
        self._asked += 1
        return ChunkOrder(self.slot, actions)

    def take(self, order: ChunkOrder, outcome: Outcome) -> None:
        """What came of the planned actions."""
        done = len(outcome.rewards)
        self._actions.append(order.actions[:done])
        # What a robot executes while it waits belongs to the old chunk; at the very beginning there is none.
        if self._asked > 1:
            self._starts.append(self._length + self._planned_old)
        self._length += done
        # Not by `sum`, which rounds otherwise.
        for reward in outcome.rewards:
            self._sum_reward += reward
        self._success = self._success or outcome.success
        self._side = outcome.side if outcome.side is not None else self._side
        if self._frames is not None:
            self._frames += outcome.frames
        self.seen = self.seen[-self._actor.history.span :] + outcome.observations
        self.ended = outcome.ended

    def finish(self) -> Episode:
        """The episode as it is reported."""
        actions = np.concatenate(self._actions)
        sampler, execution = self._actor.sampler, self._actor.execution
        return Episode(
            seed=self._seed,
            task=self._instruction,
            success=self._success,
            length=len(actions),
            sum_reward=self._sum_reward,
            side=self._side,
            chunks=self._asked,
            num_steps=sampler.num_steps,
            solver=sampler.solver,
            grid_power=sampler.grid_power,
            jerk=jerk(actions),
            jump=jump(actions, [start for start in self._starts if start < self._length]),
            seconds=self.seconds,
            actions=actions,
            frames=np.stack(self._frames) if self._frames is not None else None,
            task_group=self._task[0],
            task_id=self._task[1],
            mode=execution.mode,
            delay=execution.delay,
        )


def rounds(
    host: Host,
    actor: Actor,
    task: TaskKey,
    seeds: Iterator[int],
    batch_size: int,
    *,
    first: bool,
    recorded: Collection[int] = (),
    all_kept: bool = False,
) -> Iterator[list[tuple[Running, Outcome]]]:
    """Runs episodes of a task, at most `batch_size` side by side, until `seeds` and the last of them end.

    The next seed is asked for when there is room. `first` says whether the task is the first of the run; pictures are
    kept of the seeds in `recorded`; with `all_kept` all observations come back, not only those that chunks need.

    Yields:
        After each round the episodes that took part, with what came of their chunks.
    """
    begin, measure = time.perf_counter(), actor.timing.measure
    kept = None if all_kept else actor.history.span
    with measure("simulator"):
        spaces = host.select(task)
    free, running = list(range(batch_size)), list[Running]()
    while True:
        # `free` first: a zip that ends by it takes no seed along.
        orders = [
            StartOrder(slot, seed, seed in recorded, kept) for slot, seed in zip(free, seeds, strict=False)
        ]
        free = free[len(orders) :]
        if orders:
            with measure("simulator"):
                begun = zip(orders, host.start(orders), strict=True)
            running += [Running(actor, task, order, started, first=first) for order, started in begun]
        if not running:
            return
        chunks = actor.act([one.ask() for one in running], spaces)
        plans = [one.plan(actions, end) for one, actions, end in zip(running, *chunks, strict=True)]
        with measure("simulator"):
            outcomes = host.step(plans)
        for one, plan, outcome in zip(running, plans, outcomes, strict=True):
            one.take(plan, outcome)
        share = (time.perf_counter() - begin) / len(running)
        for one in running:
            one.seconds += share
        yield list(zip(running, outcomes, strict=True))
        free += [one.slot for one in running if one.ended]
        running = [one for one in running if not one.ended]
        begin = time.perf_counter()


class Runner:
    """Environments that stay open over several runs; see `open_runner`."""

    def __init__(self, env_cfg: Any, host: Host, batch_size: int) -> None:
        self.env_cfg, self.batch_size, self._host = env_cfg, batch_size, host

    def tasks(self) -> dict[TaskKey, int | None]:
        """The tasks that the config names, each with the number of its starts; see `LocalHost.make`."""
        return self._host.make(1)

    def check(self, policy: FlowPolicy, seed: int, given: str) -> None:
        """Makes a single chunk at the first observation of an episode, to check that policy and environment fit.

        Raises:
            UserError: as `run`; where the policy does not fit, it begins with how it was `given`, as an option.
        """
        task, *_ = self._host.make(1)
        spaces = self._host.select(task)
        actor = Actor(policy, self.env_cfg, 1)
        (started,) = self._host.start([StartOrder(0, seed)])
        seen = actor.history.choose([started.observation])
        with named(given), evaluation_mode(policy):
            actor.act([Request(seed, 0, 0, seen, started.task)], spaces)

    def run(
        self,
        actor: Actor,
        seeds: Sequence[int],
        *,
        store: EpisodeStore | None = None,
        record_frames: Collection[int] = (),
        progress: Callable[[Episode], object] | None = None,
        timing: Timing | None = None,
    ) -> list[Episode]:
        """Runs one episode for each task and seed, but for the noise (see `rollouts.acting`) as LeRobot's own rollout.

        Args:
            actor: who acts, and how, in this environment.
            seeds: of the episodes, each once; every task gets all of them.
            store: where each episode is saved as it ends; those that it holds are not run again (but where
                pictures are asked for that it lacks).
            record_frames: seeds of the episodes whose pictures are kept.
            progress: called with each episode as it ends, in whichever order they end, those of the store first.
            timing: where this run's time is added.

        Returns:
            The episodes, task by task in LeRobot's order, each in the order of `seeds`.

        Raises:
            UserError: for an environment that cannot be made, fails, or lacks what the
                policy looks at, another action size, or an action that is not finite.
        """
        begin, paused, spent = time.perf_counter(), 0.0, Timing()
        actor.timing = spent
        episodes: dict[EpisodeKey, Episode] = {}

        def report(episode: Episode) -> None:
            """Keeps an episode; what the caller does with it is no time of the run."""
            nonlocal paused
            episodes[episode.key] = episode
            if progress is not None:
                called = time.perf_counter()
                progress(episode)
                paused += time.perf_counter() - called

        try:
            with evaluation_mode(actor.policy):
                with spent.measure("simulator"):
                    tasks = list(self._host.make(min(self.batch_size, len(seeds))))
                for key in ((*task, seed) for task in tasks for seed in seeds):
                    known = store.get(key) if store is not None else None
                    if known is not None and (known.seed not in record_frames or known.frames is not None):
                        report(known)
                for task in tasks:
                    waiting = [seed for seed in seeds if (*task, seed) not in episodes]
                    if not waiting:
                        continue
                    for took_part in rounds(
                        self._host,
                        actor,
                        task,
                        iter(waiting),
                        self.batch_size,
                        first=task == tasks[0],
                        recorded=record_frames,
                    ):
                        ended = [one.finish() for one, _ in took_part if one.ended]
                        if store is not None:
                            store.save(ended)
                        for episode in ended:
                            report(episode)
        finally:
            spent.total_s = time.perf_counter() - begin - paused
            if timing is not None:
                timing.add(spent)
            if store is not None:
                store.add_timing(spent)
        return [episodes[*task, seed] for task in tasks for seed in seeds]


@contextmanager
def open_runner(env_cfg: Any, batch_size: int = 32, num_workers: int = 0) -> Iterator[Runner]:
    """Holds environments, and the processes that they live in, open over several runs.

    Args:
        env_cfg: a LeRobot `EnvConfig`, of one task or of suites of tasks; picklable where there are workers.
        batch_size: episodes that run side by side; for speed, no result depends on it but by rounding.
        num_workers: processes that hold the environments, each its share; 0 for this one.
    """
    with open_host(env_cfg, batch_size, num_workers) as host:
        yield Runner(env_cfg, host, batch_size)


def run_episodes(
    actor: Actor, seeds: Sequence[int], *, batch_size: int = 32, num_workers: int = 0, **options: Any
) -> list[Episode]:
    """Runs one episode for each task and seed, in environments that are made for it.

    The arguments, what is returned and what is raised are those of `open_runner` and `Runner.run`.
    """
    with open_runner(actor.env_cfg, batch_size, num_workers) as runner:
        return runner.run(actor, seeds, **options)


@contextmanager
def evaluation_mode(policy: FlowPolicy) -> Iterator[None]:
    """Puts the policy in the mode in which LeRobot runs it, and back; a small one runs in one thread."""
    training = policy.module.training
    policy.module.eval()
    try:
        with one_thread(is_small(policy.module)):
            yield
    finally:
        policy.module.train(training)
