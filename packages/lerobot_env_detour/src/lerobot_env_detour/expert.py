"""A scripted expert, two-sided where the instruction leaves the side open."""

import numpy as np
from numpy.typing import NDArray

from lerobot_env_detour.scene import MAX_STEP, Scene

CLEARANCE = 0.55
"""Distance from the obstacle's centre at which the expert passes it, in world units."""
FORWARD = 0.13
"""Distance that the expert moves upwards in a step where it does not swerve, in world units."""
SLOWING = 2.0
"""How much of `FORWARD` is lost to each world unit of sideways movement in a step."""
GAIN = 0.5
"""Share of the sideways distance to where it wants to be that the expert covers in a step."""
RETURN_LENGTH = 0.35
"""Over this distance behind the obstacle the expert's aim moves from its lane to the goal, in world units."""
JITTER = 0.01
"""Standard deviation of the noise on each component of the expert's action, in units of the action."""


class DetourExpert:
    """Swerves into a lane beside the obstacle at once, passes, and returns to the goal.

    On "go any way" the side is a fair coin thrown with the expert's own seed, whatever the layout: nothing
    that a policy sees shows which side it will be. The swerve is quick at first and then settles, so that
    the first action already shows the side.
    """

    def __init__(self, scene: Scene, seed: int) -> None:
        """Choose the side.

        Args:
            scene: the layout of the episode.
            seed: decides the side on "go any way", and the noise on the actions.
        """
        self._rng = np.random.default_rng(seed)
        self._scene = scene
        self.side = str(self._rng.choice(scene.allowed_sides))
        sign = -1.0 if self.side == "left" else 1.0
        self._lane = scene.obstacle[0] + sign * CLEARANCE

    def act(self, position: NDArray[np.floating]) -> NDArray[np.float32]:
        """The action at a position.

        Args:
            position: the agent's centre, shape (2,).

        Returns:
            Action of shape (2,) in [-1, 1].
        """
        x, y = float(position[0]), float(position[1])
        goal_x, goal_y = self._scene.goal
        # No sudden switch: a policy sees the obstacle's height to within a pixel or so.
        returned = float(np.clip((y - self._scene.obstacle[1]) / RETURN_LENGTH, 0.0, 1.0))
        wanted_x = self._lane + returned * (goal_x - self._lane)
        sideways = GAIN * (wanted_x - x)
        forward = FORWARD * max(1.0 - SLOWING * abs(sideways), 0.25)
        move = np.array([sideways, np.clip(goal_y - y, -forward, forward)])
        action = move / MAX_STEP + JITTER * self._rng.standard_normal(2)
        return np.clip(action, -1.0, 1.0).astype(np.float32)
