"""What one episode of the detour task looks like: where things are and what the task is.

World coordinates: x grows to the right, y grows upwards, both in [-1, 1]. The agent travels upwards, so its
left is the side of smaller x.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Side = Literal["left", "right", "none"]

INSTRUCTIONS: tuple[str, str, str] = ("go left", "go right", "go any way")
INSTRUCTION_PROBABILITIES: tuple[float, float, float] = (0.25, 0.25, 0.5)

AGENT_RADIUS = 0.05
OBSTACLE_RADIUS = 0.16
GOAL_RADIUS = 0.2
MAX_STEP = 0.3
"""Distance in world units that an action component of 1 moves the agent."""


@dataclass(frozen=True)
class Scene:
    """One layout with its instruction.

    Attributes:
        start: where the agent begins, `(x, y)`.
        goal: centre of the disc that the agent must reach.
        obstacle: centre of the disc that the agent must not touch.
        instruction: one of `INSTRUCTIONS`.
    """

    start: tuple[float, float]
    goal: tuple[float, float]
    obstacle: tuple[float, float]
    instruction: str

    @property
    def allowed_sides(self) -> tuple[str, ...]:
        """The sides by which the instruction lets the obstacle be passed."""
        if self.instruction == "go any way":
            return ("left", "right")
        return (self.instruction.removeprefix("go "),)


def draw_scene(rng: np.random.Generator, instruction: str | None = None) -> Scene:
    """Draw a layout, and an instruction too unless one is given.

    The same generator state gives the same layout whether or not the instruction is given.

    Args:
        rng: source of all randomness.
        instruction: one of `INSTRUCTIONS`, or None to draw one (25, 25 and 50 percent).

    Raises:
        ValueError: if the instruction is not one of `INSTRUCTIONS`.
    """
    drawn = str(rng.choice(INSTRUCTIONS, p=INSTRUCTION_PROBABILITIES))
    obstacle = (rng.uniform(-0.15, 0.15), rng.uniform(-0.08, 0.08))
    start = (rng.uniform(-0.15, 0.15), rng.uniform(-0.90, -0.75))
    goal = (rng.uniform(-0.30, 0.30), rng.uniform(0.75, 0.90))
    if instruction is not None and instruction not in INSTRUCTIONS:
        raise ValueError(f"instruction is {instruction!r}; it must be one of {list(INSTRUCTIONS)}.")
    return Scene(start=start, goal=goal, obstacle=obstacle, instruction=instruction or drawn)


def passed_side(before: NDArray[np.floating], after: NDArray[np.floating], scene: Scene) -> Side:
    """On which side of the obstacle a move crosses the obstacle's height, or "none" if it does not.

    Args:
        before: position `(2,)` before the move.
        after: position `(2,)` after the move.
        scene: the layout.
    """
    height = scene.obstacle[1]
    if not before[1] < height <= after[1]:
        return "none"
    part = (height - before[1]) / (after[1] - before[1])
    x = before[0] + part * (after[0] - before[0])
    return "left" if x < scene.obstacle[0] else "right"


def hits_obstacle(before: NDArray[np.floating], after: NDArray[np.floating], scene: Scene) -> bool:
    """Whether the agent's disc touches the obstacle anywhere on the straight move, not just at its end.

    Args:
        before: position `(2,)` before the move.
        after: position `(2,)` after the move.
        scene: the layout.
    """
    move_x, move_y = float(after[0] - before[0]), float(after[1] - before[1])
    to_x, to_y = scene.obstacle[0] - float(before[0]), scene.obstacle[1] - float(before[1])
    length = move_x * move_x + move_y * move_y
    part = min(max((to_x * move_x + to_y * move_y) / length, 0.0), 1.0) if length > 0 else 0.0
    gap_x, gap_y = to_x - part * move_x, to_y - part * move_y
    return gap_x * gap_x + gap_y * gap_y < (OBSTACLE_RADIUS + AGENT_RADIUS) ** 2
