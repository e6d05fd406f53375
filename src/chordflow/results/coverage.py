"""How often the intervals hold and the tests decide under a known truth, by going through all that can happen.

No simulation: every table of counts is weighed by its binomial or multinomial probability. Tables that together
weigh less than about 1e-9 are left out, far below the 0.1 % to which coverages are stated.

Episodes are taken as independent with the same rates; docs/statistics.md says what follows where they are not.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import gammaln, xlogy

from chordflow.results.limits import FloatArray, bootstrap_limits, newcombe_limits, wilson_limits
from chordflow.results.power import check_margin, check_rates
from chordflow.results.sequential import SequentialTest, decided_at

_NEGLIGIBLE = 1e-10
"""Tail of a count that is left out."""

_ROUNDING = 1e-12
"""An interval that ends at the truth holds it, whatever the last digit says."""


def wilson_coverage(episodes: int, rate: float) -> float:
    """Chance that Wilson's 95 % interval holds the true success rate.

    Args:
        episodes: At least 1.
        rate: True rate, from 0 to 1.

    Raises:
        ValueError: If one is out of range.
    """
    _check_episodes(episodes)
    check_rates(rate)
    successes = np.arange(episodes + 1)
    low, high = wilson_limits(successes, episodes)
    holds = (low - _ROUNDING <= rate) & (rate <= high + _ROUNDING)
    return float(stats.binom.pmf(successes, episodes, rate)[holds].sum())


def paired_coverage(episodes: int, only_first: float, only_second: float, both: float) -> float:
    """Chance that Newcombe's 95 % interval holds the true difference of paired success rates.

    Args:
        episodes: Paired episodes, at least 1; time grows with their square to their cube.
        only_first: Rate of pairs that only the first policy solves.
        only_second: Rate of pairs that only the second solves.
        both: Rate of pairs that both solve.

    Raises:
        ValueError: If one is out of range.
    """
    truth = only_first - only_second
    covered = 0.0
    for n11, n10, n01, n00, weight in _tables(episodes, both, only_first, only_second):
        low, high = newcombe_limits(n11, n10, n01, n00)
        covered += float(weight[(low - _ROUNDING <= truth) & (truth <= high + _ROUNDING)].sum())
    return covered


def bootstrap_coverage(episodes: int, only_first: float, only_second: float) -> float:
    """Chance that the percentile bootstrap's 95 % interval holds the true difference of paired success rates.

    Where every pair says the same, the interval is a point, and counts as such.

    Args:
        episodes: Paired episodes, at least 1.
        only_first: Rate of pairs that only the first policy solves.
        only_second: Rate of pairs that only the second solves.

    Raises:
        ValueError: If one is out of range.
    """
    truth = only_first - only_second
    covered = 0.0
    # Agreement of either kind is the same to it, so "both" takes no part.
    for _, n10, n01, _, weight in _tables(episodes, 0.0, only_first, only_second):
        low, high = bootstrap_limits(n10, n01, episodes)
        covered += float(weight[(low - _ROUNDING <= truth) & (truth <= high + _ROUNDING)].sum())
    return covered


def non_inferiority_power(
    episodes: int, only_first: float, only_second: float, both: float, margin: float
) -> tuple[float, float]:
    """Chances that `chordflow.results.statistics.non_inferiority` says "non-inferior", and "inferior".

    Args:
        episodes: Paired episodes, fixed beforehand.
        only_first: Rate of pairs that only the first policy solves.
        only_second: Rate of pairs that only the second solves.
        both: Rate of pairs that both solve.
        margin: Between 0 and 1.

    Raises:
        ValueError: If one is out of range.
    """
    check_margin(margin)
    better = worse = 0.0
    for n11, n10, n01, n00, weight in _tables(episodes, both, only_first, only_second):
        low, high = newcombe_limits(n11, n10, n01, n00)
        better += float(weight[low > -margin].sum())
        worse += float(weight[high < -margin].sum())
    return better, worse


@dataclass(frozen=True)
class SequentialPower:
    """What a sequential test does under a known truth.

    Attributes:
        non_inferior: Chance that it ends with "non-inferior".
        inferior: Chance that it ends with "inferior".
        mean_episodes: Paired episodes until it ends, decided or at its largest number, on average.
    """

    non_inferior: float
    inferior: float
    mean_episodes: float


def sequential_power(test: SequentialTest, only_first: float, only_second: float) -> SequentialPower:
    """What the test does when it looks as often as it may, exactly: the law of the counts is carried pair by pair.

    Args:
        test: Its margin, alpha and numbers of episodes; its evidence is not used.
        only_first: Rate of pairs that only the first policy solves.
        only_second: Rate of pairs that only the second solves.

    Raises:
        ValueError: If the test has no largest number of episodes, or rates are impossible.
    """
    check_rates(only_first, only_second)
    if test.max_episodes is None:
        raise ValueError("max_episodes is None; without an end the test's figures have none.")
    last = test.max_episodes
    wins = np.arange(_largest(last, only_first) + 1)[:, None]
    losses = np.arange(_largest(last, only_second) + 1)[None, :]
    law = np.zeros(np.broadcast_shapes(wins.shape, losses.shape))
    law[0, 0] = 1.0
    better_total = worse_total = mean = 0.0
    for pairs in range(1, last + 1):
        grown = law * max(1 - only_first - only_second, 0.0)
        grown[1:] += law[:-1] * only_first
        grown[:, 1:] += law[:, :-1] * only_second
        law = grown
        if not test.looks_at(pairs):
            continue
        # Counts that cannot be have no weight, and are not worth a logarithm.
        live = np.nonzero(law)
        won, lost = wins[live[0], 0], losses[0, live[1]]
        better, worse = decided_at(won, pairs - won - lost, lost, test.margin, test.alpha)
        weight = law[live]
        better_total += float(weight[better].sum())
        worse_total += float(weight[worse & ~better].sum())
        mean += pairs * float(weight[better | worse].sum())
        law[live[0][better | worse], live[1][better | worse]] = 0.0
    return SequentialPower(better_total, worse_total, mean + last * float(law.sum()))


def _tables(episodes: int, both: float, only_first: float, only_second: float) -> Iterator[list[FloatArray]]:
    """All tables of paired outcomes, a list of counts and their probability for each count of one cell."""
    _check_episodes(episodes)
    check_rates(both, only_first, only_second)
    neither = max(1 - both - only_first - only_second, 0.0)
    n10_all, n01_all, n11_all = (_range(episodes, rate) for rate in (only_first, only_second, both))
    for n10 in n10_all:
        n01, n11 = (a.ravel() for a in np.meshgrid(n01_all, n11_all, indexing="ij"))
        n00 = episodes - n10 - n01 - n11
        possible = n00 >= 0
        counts = [a[possible] for a in (n11, np.full_like(n01, n10), n01, n00)]
        logs = gammaln(episodes + 1) + sum(
            xlogy(count, rate) - gammaln(count + 1)
            for count, rate in zip(counts, (both, only_first, only_second, neither), strict=True)
        )
        yield [*counts, np.exp(logs)]


def _range(episodes: int, rate: float) -> FloatArray:
    smallest = episodes - _largest(episodes, 1 - rate)
    return np.arange(smallest, _largest(episodes, rate) + 1, dtype=np.float64)


def _largest(episodes: int, rate: float) -> int:
    """A count that is passed with negligible probability."""
    return min(int(stats.binom.isf(_NEGLIGIBLE, episodes, min(max(rate, 0.0), 1.0))) + 1, episodes)


def _check_episodes(episodes: int) -> None:
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; it must be at least 1.")
