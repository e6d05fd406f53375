"""A scripted expert, two-sided where the instruction leaves the side open."""

import numpy as np
from numpy.typing import NDArray

from lerobot_env_detour.scene import MAX_STEP, Scene

CLEARANCE = 0.58
"""Distance from the obstacle's centre at which the expert passes it, in world units."""
SPEED = 0.125
"""Distance that the expert covers in a step, in world units."""
RUN_UP = 0.55
"""How far below the obstacle's centre the expert leaves its straight way upwards, in world units."""
JITTER = 0.03
"""Standard deviation of the noise on each component of the expert's action, in units of the action."""


class DetourExpert:
    """Goes straight up at first, then heads for a point beside the obstacle, then for the goal.

    On "go any way" the side is a fair coin thrown with the expert's own seed, whatever the layout: nothing
    that a policy sees tells which side it will be.
    """

    def __init__(self, scene: Scene, seed: int) -> None:
        """Choose the side.

        Args:
            scene: The layout of the episode.
            seed: Decides the side on "go any way", and the noise on the actions.
        """
        self._rng = np.random.default_rng(seed)
        self.side = str(self._rng.choice(scene.allowed_sides))
        sign = -1.0 if self.side == "left" else 1.0
        self._beside = np.array([scene.obstacle[0] + sign * CLEARANCE, scene.obstacle[1]])
        self._goal = np.array(scene.goal)

    def act(self, position: NDArray[np.floating]) -> NDArray[np.float32]:
        """The action at a position.

        Args:
            position: The agent's centre, shape (2,).

        Returns:
            Action of shape (2,) in [-1, 1].
        """
        to_beside, to_goal = self._beside - position, self._goal - position
        if to_beside[1] > RUN_UP:
            return self._move(np.array([0.0, 1.0]), SPEED)
        # Blend from one aim to the other over the last SPEED units before the obstacle's height.
        passed = np.clip(1.0 - to_beside[1] / SPEED, 0.0, 1.0)
        aim = (1.0 - passed) * _unit(to_beside) + passed * _unit(to_goal)
        # Do not overshoot a goal that is nearer than one step.
        return self._move(aim, min(SPEED, float(np.hypot(*to_goal))))

    def _move(self, direction: NDArray[np.floating], distance: float) -> NDArray[np.float32]:
        action = distance / MAX_STEP * _unit(direction) + JITTER * self._rng.standard_normal(2)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def _unit(vector: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(vector / max(float(np.hypot(*vector)), 1e-9))
