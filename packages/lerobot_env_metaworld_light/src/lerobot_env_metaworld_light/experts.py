"""Scripted experts of all tasks: Meta-World's, and those of the two-sided tasks."""

import warnings
from typing import Protocol

import numpy as np
from lerobot.envs.metaworld import TASK_POLICY_MAPPING
from numpy.typing import NDArray

from lerobot_env_metaworld_light.tasks import known
from lerobot_env_metaworld_light.two_sided import GOAL_DISTANCE, WALL_HALF_WIDTH, WALL_Y, Floats

LANE = WALL_HALF_WIDTH + 0.1
"""Distance from the middle at which the hand passes the wall, in metres: the hand itself is 0.08 wide."""
BEHIND = 0.05
"""How far behind the wall the hand turns to the goal, in metres."""


class Expert(Protocol):
    """What solves a task."""

    side: str

    def act(self, state: Floats) -> NDArray[np.float32]:
        """The action, shape (4,) in [-1, 1], in Meta-World's full state, shape (39,)."""
        ...


class StockExpert:
    """One of Meta-World's, its action clipped to what the environment takes."""

    side = "none"

    def __init__(self, task: str) -> None:
        """Make it.

        Args:
            task: name of the task.
        """
        self._policy = TASK_POLICY_MAPPING[task]()

    def act(self, state: Floats) -> NDArray[np.float32]:
        """The action in a state."""
        with warnings.catch_warnings():
            # It says of most experts that the environment clips their actions.
            warnings.simplefilter("ignore")
            action = self._policy.get_action(state)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


class RoundWallExpert:
    """Swerves to its side at once, passes the wall and turns to the goal."""

    def __init__(self, side: str) -> None:
        """Make it.

        Args:
            side: "left" or "right".
        """
        self.side = side
        self._sign = -1.0 if side == "left" else 1.0

    def act(self, state: Floats) -> NDArray[np.float32]:
        """The action in a state."""
        hand, goal = state[:3], state[-3:]
        lane = self._sign * LANE
        if hand[1] > WALL_Y + BEHIND:
            aim = goal
        elif abs(hand[0] - lane) < 0.04:
            aim = np.array([lane, WALL_Y + 2 * BEHIND, goal[2]])
        else:
            # Forwards as well, but not further than in front of the wall.
            aim = np.array([lane, WALL_Y - 0.1, goal[2]])
        return np.clip([*(10.0 * (aim - hand)), 0.0], -1.0, 1.0).astype(np.float32)


class PushEitherGoalExpert:
    """Meta-World's expert of pushing, which sees only one of the goals."""

    def __init__(self, side: str) -> None:
        """Make it.

        Args:
            side: "left" or "right".
        """
        self.side = side
        self._expert = StockExpert("push-v3")

    def act(self, state: Floats) -> NDArray[np.float32]:
        """The action in a state."""
        seen = state.copy()
        if self.side == "right":
            seen[-3] += GOAL_DISTANCE
        return self._expert.act(seen)


def make_expert(task: str, seed: int) -> Expert:
    """The expert of a task for one episode.

    Args:
        task: name of the task.
        seed: decides the side of a two-sided task, and nothing else; a policy cannot see it.

    Raises:
        ValueError: if the task is unknown.
    """
    two_sided = {"reach-round-wall": RoundWallExpert, "push-either-goal": PushEitherGoalExpert}
    if known(task) in two_sided:
        # Another stream than the layout's, which is drawn from the seed itself.
        side = np.random.default_rng([seed, 1]).choice(["left", "right"])
        return two_sided[task](str(side))
    return StockExpert(task)
