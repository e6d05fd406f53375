"""The times at which a solver stops on its way from noise at t = 1 to an action at t = 0."""

import math
from itertools import pairwise

from chordflow.errors import UserError


def time_grid(num_steps: int, power: float = 1.0) -> list[tuple[float, float]]:
    """The time at the start of each step from t = 1 to t = 0, and the step's signed length.

    The times are `u ** power` for evenly spaced u. A power above 1 makes steps smaller towards t = 0, where a
    learned field bends most because data are sharper than noise (compare Karras et al. 2022, arXiv 2206.00364,
    eq. 5); 1 is the uniform grid, whose steps are of equal length to the last bit.

    Args:
        num_steps: number of steps, at least 1.
        power: above 0.

    Returns:
        `num_steps` pairs; the lengths are negative and add up to -1.

    Raises:
        UserError: if num_steps is not a whole number above 0, or power not a finite number above 0.
    """
    num_steps, power = require_num_steps(num_steps), require_grid_power(power)
    dt = -1.0 / num_steps
    even = [1.0 + step * dt for step in range(num_steps)]
    if power == 1.0:
        return [(t, dt) for t in even]
    times = [*(u**power for u in even), 0.0]
    return [(t, t_next - t) for t, t_next in pairwise(times)]


def require_num_steps(num_steps: int) -> int:
    """Check a number of solver steps.

    Args:
        num_steps: the number to check.

    Returns:
        The same number.

    Raises:
        UserError: if it is not a whole number above 0.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise UserError(f"num_steps is {num_steps!r}; choose a whole number of at least 1.")
    return num_steps


def require_grid_power(power: float) -> float:
    """Check the power of a graded grid.

    Args:
        power: the number to check.

    Returns:
        The same number.

    Raises:
        UserError: if it is not a finite number above 0.
    """
    if not (power > 0 and math.isfinite(power)):
        raise UserError(f"grid_power is {power!r}; choose a number above 0, such as 1 (uniform) or 1.4.")
    return power
