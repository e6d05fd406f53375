"""Ends of the intervals for success rates, of many tables of counts at once and unchecked.

`chordflow.results.statistics` takes one table from here; `scripts/coverage_table.py` takes all that can happen, so that
the coverage stated in docs/statistics.md is that of the very same intervals.

Shapes: counts of any shape that broadcast with each other.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
"""Level of every interval."""

ROUNDING = 1e-12
"""An interval that ends at the truth holds it, whatever the last digit says."""


def wilson_limits(successes: ArrayLike, episodes: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """`wilson_interval` of many counts at once, unchecked.

    Args:
        successes: counts of any shape.
        episodes: counts that broadcast with them, at least 1.

    Returns:
        The lower and the upper ends, of the broadcast shape.
    """
    count, n = np.broadcast_arrays(np.asarray(successes), np.asarray(episodes))
    low, high = proportion_confint(count, n, alpha=1 - CONFIDENCE, method="wilson")
    # Rounding leaves ends such as 3e-18 where the interval touches 0 or 1.
    return np.where(count > 0, low, 0.0), np.where(count < n, high, 1.0)


def wilson_coverage(episodes: int, rate: float) -> float:
    """Chance that Wilson's 95 % interval holds the true success rate.

    Args:
        episodes: at least 1.
        rate: true rate, from 0 to 1.

    Raises:
        ValueError: if one is out of range.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; it must be at least 1.")
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"a rate of {rate} is impossible.")
    successes = np.arange(episodes + 1)
    low, high = wilson_limits(successes, episodes)
    holds = (low - ROUNDING <= rate) & (rate <= high + ROUNDING)
    return float(stats.binom.pmf(successes, episodes, rate)[holds].sum())


def newcombe_limits(
    both: ArrayLike, only_first: ArrayLike, only_second: ArrayLike, neither: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Newcombe's 95 % interval of the difference of paired rates, of many tables at once (1998, method 10).

    Args:
        both: pairs that both policies solved, counts of any shape.
        only_first: pairs that only the first solved.
        only_second: pairs that only the second solved.
        neither: pairs that neither solved; no table is empty.

    Returns:
        The lower and the upper ends of first less second, of the shape to which the counts broadcast.
    """
    cells = np.broadcast_arrays(both, only_first, only_second, neither)
    n11, n10, n01, n00 = (np.asarray(cell, dtype=np.float64) for cell in cells)
    n = n11 + n10 + n01 + n00
    rate_a, rate_b = (n11 + n10) / n, (n11 + n01) / n
    (low_a, high_a), (low_b, high_b) = wilson_limits(n11 + n10, n), wilson_limits(n11 + n01, n)
    margins = (n11 + n10) * (n01 + n00) * (n11 + n01) * (n10 + n00)
    product = n11 * n00 - n10 * n01
    # Newcombe's continuity correction applies to positive association alone.
    association = np.where(product > 0, np.maximum(product - n / 2, 0.0), product)
    phi = np.where(margins > 0, association / np.sqrt(np.where(margins > 0, margins, 1.0)), 0.0)

    def reach(a: FloatArray, b: FloatArray) -> FloatArray:
        return np.sqrt(np.maximum(a**2 - 2 * phi * a * b + b**2, 0.0))

    low = rate_a - rate_b - reach(rate_a - low_a, high_b - rate_b)
    high = rate_a - rate_b + reach(high_a - rate_a, rate_b - low_b)
    return np.maximum(low, -1.0), np.minimum(high, 1.0)
