"""Pictures of a scene: anti-aliased discs on a plain ground, in numpy alone."""

import numpy as np
from numpy.typing import NDArray

from lerobot_env_detour.scene import AGENT_RADIUS, GOAL_RADIUS, OBSTACLE_RADIUS, Scene

GROUND = (236, 233, 226)
OBSTACLE = (72, 74, 84)
GOAL = (86, 163, 112)
AGENT = (214, 84, 56)


def _draw_disc(
    image: NDArray[np.float32], centre: tuple[float, float], radius: float, colour: tuple[int, int, int]
) -> None:
    """Blend a disc into an image of shape (size, size, 3), touching only the pixels near it."""
    size = image.shape[0]
    column, row = (centre[0] + 1) / 2 * size, (1 - centre[1]) / 2 * size
    reach = radius / 2 * size
    top, bottom = max(int(row - reach - 1), 0), min(int(row + reach + 2), size)
    first, last = max(int(column - reach - 1), 0), min(int(column + reach + 2), size)
    rows = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - row)
    columns = np.arange(first, last, dtype=np.float32)[None, :] + np.float32(0.5 - column)
    # A pixel's share of the disc falls from 1 to 0 over one pixel's width around the rim.
    share = np.clip(reach + 0.5 - np.sqrt(rows * rows + columns * columns), 0, 1)[..., None]
    patch = image[top:bottom, first:last]
    patch += share * (np.asarray(colour, dtype=np.float32) - patch)


def draw_ground(scene: Scene, size: int) -> NDArray[np.float32]:
    """Draw what does not move: the ground, the goal and the obstacle.

    Args:
        scene: the layout.
        size: side of the image in pixels.

    Returns:
        Image of shape (size, size, 3), values from 0 to 255, row 0 at the top of the world.
    """
    image = np.empty((size, size, 3), dtype=np.float32)
    image[:] = GROUND
    _draw_disc(image, scene.goal, GOAL_RADIUS, GOAL)
    _draw_disc(image, scene.obstacle, OBSTACLE_RADIUS, OBSTACLE)
    return image


def draw_agent(ground: NDArray[np.float32], position: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Draw the agent on a copy of the ground.

    Args:
        ground: what `draw_ground` returned, shape (size, size, 3).
        position: the agent's centre, shape (2,).

    Returns:
        Image of shape (size, size, 3).
    """
    image = ground.copy()
    # The agent is drawn larger than it is, lest it be a pixel or two in a small image.
    _draw_disc(image, (float(position[0]), float(position[1])), 1.6 * AGENT_RADIUS, AGENT)
    return image.astype(np.uint8)
