"""How many paired episodes would tell whether one policy is at most a margin worse than another?

The difference is always the success rate of the first policy less that of the second: the first is non-inferior
at margin m where the difference is above -m.
"""

import math

from scipy import stats

from chordflow.results.limits import CONFIDENCE

POWER = 0.8
"""Chance of a decision that the stated number of episodes aims at."""


def episodes_needed(
    only_first: float, only_second: float, margin: float, *, power: float = POWER
) -> int | None:
    """Paired episodes that decide with the given power.

    The sample size of the score test for paired differences: `n = (z_a sqrt(v_0) + z_b sqrt(v_1))^2 / (d + m)^2`
    with the variance of a pair under the truth, `v_1`, and under the truth's nearest law with d = -m, `v_0`, by
    maximum likelihood (Nam 1997, Biometrics 53:1422; Liu et al. 2002, Statistics in Medicine 21:231). Below the
    margin it is the number that shows inferiority. `chordflow.results.statistics.non_inferiority` decides by
    Newcombe's interval, which at that number has this power or some more; docs/statistics.md lists both.

    Args:
        only_first: rate of pairs that only the first policy solves.
        only_second: rate of pairs that only the second solves.
        margin: between 0 and 1.
        power: chance of a decision, above one half.

    Returns:
        The number, or None where the difference is -margin itself, which no number of episodes decides.

    Raises:
        ValueError: if rates, margin or power are impossible.
    """
    check_margin(margin)
    check_rates(only_first, only_second)
    if not 0.5 < power < 1:
        raise ValueError(f"power is {power}; it must lie between 0.5 and 1.")
    difference, discordance = only_first - only_second, only_first + only_second
    if math.isclose(difference, -margin, rel_tol=0.0, abs_tol=1e-9):
        return None
    # The law with d = -m nearest to the truth has only_second = x, only_first = x - m, where x is the larger root of
    # 2 x^2 - b x + c = 0.
    b = discordance + margin * (2 - difference)
    c = only_second * margin * (1 + margin)
    x = (b + math.sqrt(max(b * b - 8 * c, 0.0))) / 4
    variance_null = max(2 * x - margin - margin**2, 0.0)
    variance_true = max(discordance - difference**2, 0.0)
    z_level, z_power = stats.norm.ppf([(1 + CONFIDENCE) / 2, power])
    reach = z_level * math.sqrt(variance_null) + z_power * math.sqrt(variance_true)
    return max(math.ceil((reach / (difference + margin)) ** 2), 1)


def check_margin(margin: float) -> None:
    """Refuse a margin that is none.

    Raises:
        ValueError: if it does not lie strictly between 0 and 1.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin is {margin}; it must lie between 0 and 1, such as 0.02 for 2 points.")


def check_rates(*rates: float) -> None:
    """Refuse rates of exclusive outcomes that cannot be.

    Raises:
        ValueError: if one is negative or their sum is above 1.
    """
    # Rates such as 0.7, 0.2 and 0.1 may add up to a little above 1.
    if min(rates) < 0 or not sum(rates) <= 1 + 1e-9:
        raise ValueError(
            f"rates {', '.join(map(str, rates))} are impossible: none is negative, their sum at most 1."
        )
