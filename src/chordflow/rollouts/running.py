"""An episode on its way: what it has done, and what it asks and executes next.

Shapes: H chunk size, D padded and A real action dimension, T executed actions.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from chordflow.rollouts.acting import Actor, Request
from chordflow.rollouts.delay import Execution, round_actions
from chordflow.rollouts.episodes import Episode, jerk, jump
from chordflow.rollouts.history import History
from chordflow.rollouts.hosts import Outcome, Started, StartOrder, TaskKey


class Running:
    """An episode on its way.

    Args:
        key: suite and number of its task.
        order: where it runs, and its seed.
        started: how it began.
        history: the observations that a chunk is made from.
        first: whether its task is the first of the run.

    Attributes:
        slot: number of its sub-environment.
        ended: whether it is over.
        seconds: its share of wall-clock time so far.
    """

    def __init__(
        self, key: TaskKey, order: StartOrder, started: Started, history: History, *, first: bool
    ) -> None:
        self.slot = order.slot
        self.ended = False
        self.seconds = 0.0
        self._key = key
        self._noise_task = None if first else key
        self._seed = order.seed
        self._task = started.task
        self._history = history
        self._seen: deque[Any] = deque([started.observation], maxlen=history.span)
        self._frames = None if started.frame is None else [started.frame]
        self._actions: list[NDArray[np.float32]] = []
        self._length = 0
        # Index of the first action of each chunk, which an episode may end before.
        self._starts: list[int] = [0]
        self._asked = 0
        self._planned_old = 0
        self._chunk: NDArray[np.float32] | None = None
        self._endpoint: Tensor | None = None
        self._sum_reward = 0.0
        self._success = False
        self._side: str | None = None

    def request(self) -> Request:
        """What the next chunk is made from."""
        seen = self._history.choose(self._seen)
        return Request(
            self._seed, self._asked, self._length, seen, self._task, self._endpoint, self._noise_task
        )

    def plan(
        self, execution: Execution, executed: int, chunk: NDArray[np.float32], endpoint: Tensor
    ) -> NDArray[np.float32]:
        """Takes a new chunk (its leading actions, and its endpoint (H, D)) and gives the round's actions."""
        last = self._actions[-1][-1] if self._actions else None
        actions, self._planned_old = round_actions(execution, executed, chunk, self._chunk, last)
        self._chunk, self._endpoint = chunk, endpoint
        self._asked += 1
        return actions

    def take(self, actions: NDArray[np.float32], outcome: Outcome) -> None:
        """What came of the planned actions."""
        done = len(outcome.rewards)
        self._actions.append(actions[:done])
        # What a robot executes while it waits belongs to the old chunk; at the very beginning there is none.
        if self._asked > 1:
            self._starts.append(self._length + self._planned_old)
        self._length += done
        for reward in outcome.rewards:
            self._sum_reward += reward
        self._success = self._success or outcome.success
        self._side = outcome.side if outcome.side is not None else self._side
        if self._frames is not None:
            self._frames += outcome.frames
        self._seen.extend(outcome.observations)
        self.ended = outcome.ended

    def finish(self, actor: Actor) -> Episode:
        """The episode as it is reported."""
        actions = np.concatenate(self._actions)
        return Episode(
            seed=self._seed,
            task=self._task,
            success=self._success,
            length=len(actions),
            sum_reward=self._sum_reward,
            side=self._side,
            chunks=self._asked,
            num_steps=actor.sampler.num_steps,
            solver=actor.sampler.solver,
            grid_power=actor.sampler.grid_power,
            jerk=jerk(actions),
            jump=jump(actions, [start for start in self._starts if start < self._length]),
            seconds=self.seconds,
            actions=actions,
            frames=np.stack(self._frames) if self._frames is not None else None,
            task_group=self._key[0],
            task_id=self._key[1],
            mode=actor.execution.mode,
            delay=actor.execution.delay,
        )
