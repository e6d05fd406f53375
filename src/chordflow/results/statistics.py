"""Intervals and tests for the few kinds of comparison that chordflow reports.

Everything is seeded or exact, so a table repeats to the last digit. docs/statistics.md says what each interval assumes
and how often it covers the truth. A difference is always first less second.

Shapes: n pairs, episodes or samples; a *cluster* is an observation or episode that several of them share.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import betainc
from statsmodels.stats.proportion import proportion_confint

FloatArray = NDArray[np.float64]
Clusters = Sequence[int] | NDArray[np.int_] | None
"""Which cluster each value belongs to, shape (n,); None where each is its own."""

CONFIDENCE = 0.95
"""Level of every interval."""

RESAMPLES = 9_999
"""Bootstrap samples behind an interval."""

POWER = 0.8
"""Chance of a decision that the stated number of episodes aims at."""

ROUNDING = 1e-12
"""An interval that ends at the truth holds it, whatever the last digit says."""

Decision = Literal["non-inferior", "inferior", "undecided"]
"""What paired episodes say of the first policy at a margin."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval.

    Attributes:
        low: lower end, in the unit of the measure.
        high: upper end.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A measure with its interval.

    Attributes:
        value: the measure on the data as they are.
        interval: its 95 % interval; None with fewer than two clusters, which tell nothing of their spread.
    """

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class PairedSuccess:
    """Two policies on the same episodes with the same noise.

    Attributes:
        difference: success rate of the first less that of the second, a fraction, with Newcombe's interval.
        p_value: McNemar's exact two-sided test of equal rates.
        only_first: episodes that only the first policy solved.
        only_second: episodes that only the second policy solved.
        episodes: number of paired episodes.
        starts: distinct starts of the episodes, where some begin alike: interval and test count these. None where
            all differ.
    """

    difference: Estimate
    p_value: float
    only_first: int
    only_second: int
    episodes: int
    DROPPED: ClassVar[tuple[str, ...]] = ("bootstrap",)
    """Fields of older files, which are ignored."""

    starts: int | None = None


@dataclass(frozen=True)
class NonInferiority:
    """What paired episodes say at a margin.

    Attributes:
        margin: how much lower success may be, a fraction.
        decision: `non-inferior` where the whole 95 % interval of the difference lies above -margin,
            `inferior` where it lies below, else `undecided`.
        lower: lower end of that interval (Newcombe's).
        upper: upper end.
        episodes: paired episodes run.
        episodes_needed: where undecided, the number of paired episodes that would decide with 80 % power were the
            observed rates the true ones; None where decided, or where no number would do.
    """

    margin: float
    decision: Decision
    lower: float
    upper: float
    episodes: int
    episodes_needed: int | None


@dataclass(frozen=True)
class Percentiles:
    """The slow end of a set of times, which a mean hides.

    Attributes:
        p50: median, in the unit of the values.
        p90: 90th percentile.
        p95: 95th percentile.
        p99: 99th percentile.
    """

    p50: float
    p90: float
    p95: float
    p99: float


def percentiles(values: ArrayLike) -> Percentiles:
    """Percentiles of at least one time, interpolated linearly (numpy's default, Hyndman and Fan's 7).

    With fewer than 100 values the 99th lies between the two largest: it says little of rarer delays.
    """
    return Percentiles(*np.percentile(np.asarray(values, dtype=np.float64), [50, 90, 95, 99]).tolist())


# ---- Success --------------------------------------------------------------------------------------------


def wilson_limits(successes: ArrayLike, episodes: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Lower and upper ends of Wilson's score intervals (1927) of many counts at once, of any shape, unchecked."""
    count, n = np.broadcast_arrays(np.asarray(successes), np.asarray(episodes))
    low, high = proportion_confint(count, n, alpha=1 - CONFIDENCE, method="wilson")
    # Rounding leaves ends such as 3e-18 where the interval touches 0 or 1.
    return np.where(count > 0, low, 0.0), np.where(count < n, high, 1.0)


def wilson_interval(successes: float, episodes: int) -> Interval:
    """Wilson's score interval of a success rate.

    Raises:
        ValueError: if the counts are impossible.
    """
    if episodes < 1 or not 0 <= successes <= episodes:
        raise ValueError(f"{successes:g} successes in {episodes} episodes is impossible.")
    low, high = wilson_limits(successes, episodes)
    return Interval(float(low), float(high))


def wilson_coverage(episodes: int, rate: float) -> float:
    """Chance that Wilson's 95 % interval of so many episodes holds a true success rate."""
    successes = np.arange(episodes + 1)
    low, high = wilson_limits(successes, episodes)
    holds = (low - ROUNDING <= rate) & (rate <= high + ROUNDING)
    return float(stats.binom.pmf(successes, episodes, rate)[holds].sum())


def newcombe_limits(
    both: ArrayLike, only_first: ArrayLike, only_second: ArrayLike, neither: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Newcombe's 95 % intervals of differences of paired rates (1998, Statistics in Medicine 17:2635, method 10).

    Wilson's intervals, squared and added with the correlation of the pairs: unlike a bootstrap it does not shrink to
    nothing where the policies agree on every episode.

    Args:
        both: pairs that both policies solved, of many tables at once: counts of any shape, no table empty.
        only_first: pairs that only the first solved.
        only_second: pairs that only the second solved.
        neither: pairs that neither solved.

    Returns:
        The lower and the upper ends, of the shape to which the counts broadcast.
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


def compare_success(
    first: Sequence[bool] | NDArray[np.bool_],
    second: Sequence[bool] | NDArray[np.bool_],
    *,
    starts: int | None = None,
) -> PairedSuccess:
    """Compare two policies that ran the same episodes, by Newcombe's interval and McNemar's exact test (1947).

    Args:
        first: whether the first policy solved each episode, shape (n,), at least one.
        second: the same of the second policy, in the same order, shape (n,).
        starts: how many of the episodes begin differently, at most n. Interval and test are then those of so many
            pairs in which everything is as frequent: right where episodes that begin alike also end alike, and
            cautious where they do not. All differ by default.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    both, only_a, only_b, neither = (int(np.sum(cell)) for cell in (a & b, a & ~b, ~a & b, ~a & ~b))
    share = 1.0 if starts is None else starts / a.size
    low, high = newcombe_limits(*(share * cell for cell in (both, only_a, only_b, neither)))
    # The binomial tail at any real number of pairs; at whole ones it is McNemar's exact test.
    fewer, more = sorted((share * only_a, share * only_b))
    return PairedSuccess(
        difference=Estimate((only_a - only_b) / a.size, Interval(float(low), float(high))),
        p_value=min(2 * float(betainc(more, fewer + 1, 0.5)), 1.0) if more else 1.0,
        only_first=only_a,
        only_second=only_b,
        episodes=a.size,
        starts=starts,
    )


def non_inferiority(paired: PairedSuccess, margin: float) -> NonInferiority:
    """Decide non-inferiority of the first policy by the interval of the paired difference.

    Both one-sided claims are made at 2.5 %. The number of episodes is fixed before looking: who looks early needs
    `chordflow.results.sequential`.

    Args:
        paired: the comparison, from `compare_success`.
        margin: how much lower the first policy's success may be, a fraction between 0 and 1.
    """
    interval, episodes = paired.difference.interval, paired.episodes
    assert interval is not None
    decision: Decision = "undecided"
    if interval.low > -margin:
        decision = "non-inferior"
    elif interval.high < -margin:
        decision = "inferior"
    needed = None
    # More episodes from the same starts would not decide.
    if decision == "undecided" and paired.starts is None:
        rates = paired.only_first / episodes, paired.only_second / episodes
        if not any(rates):
            # No disagreement in n pairs is no proof that there is none. Half a pair in each cell of the table, as for
            # intervals of paired differences (Agresti and Min 2005, Statistics in Medicine 24:729), keeps a short run
            # from promising that a short one will do.
            rates = 0.5 / (episodes + 2), 0.5 / (episodes + 2)
        found = episodes_needed(*rates, margin)
        needed = None if found is None else max(found, episodes + 1)
    return NonInferiority(margin, decision, interval.low, interval.high, episodes, needed)


def episodes_needed(only_first: float, only_second: float, margin: float) -> int | None:
    """Paired episodes that decide with a chance of `POWER` whether the first policy is non-inferior at a margin.

    The sample size of the score test for paired differences: `n = (z_a sqrt(v_0) + z_b sqrt(v_1))^2 / (d + m)^2`
    with the variance of a pair under the truth, `v_1`, and under the truth's nearest law with d = -m, `v_0`, by
    maximum likelihood (Nam 1997, Biometrics 53:1422; Liu et al. 2002, Statistics in Medicine 21:231). Below the
    margin it is the number that shows inferiority. `non_inferiority` decides by Newcombe's interval, which at that
    number has this power or some more; docs/statistics.md lists both.

    Args:
        only_first: rate of pairs that only the first policy solves.
        only_second: rate of pairs that only the second solves.
        margin: between 0 and 1.

    Returns:
        The number, or None where the difference is -margin itself, which no number of episodes decides.
    """
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
    z_level, z_power = stats.norm.ppf([(1 + CONFIDENCE) / 2, POWER])
    reach = z_level * math.sqrt(variance_null) + z_power * math.sqrt(variance_true)
    return max(math.ceil((reach / (difference + margin)) ** 2), 1)


# ---- Means and ratios -----------------------------------------------------------------------------------


def mean_interval(values: ArrayLike, *, seed: int, clusters: Clusters = None) -> Estimate:
    """Mean of values (n,), or of paired differences, with a bootstrap interval over clusters."""
    v = np.asarray(values, dtype=np.float64)
    return _bootstrap(_ratio_of_sums, v, np.ones_like(v), clusters, seed)


def ratio_of_rms(
    numerator: ArrayLike, denominator: ArrayLike, *, seed: int, clusters: Clusters = None
) -> Estimate:
    """`rms(numerator) / rms(denominator)` over pairs, both (n,), with a bootstrap interval over clusters.

    Noises of one observation are not independent, and few observations can decide an RMS: resampling whole
    observations shows both.
    """
    num, den = (np.asarray(values, dtype=np.float64) ** 2 for values in (numerator, denominator))
    return _bootstrap(_root_ratio_of_sums, num, den, clusters, seed)


def _ratio_of_sums(num: FloatArray, den: FloatArray, axis: int = -1) -> FloatArray:
    return np.asarray(num.sum(axis=axis) / den.sum(axis=axis))


def _root_ratio_of_sums(num: FloatArray, den: FloatArray, axis: int = -1) -> FloatArray:
    return np.asarray(np.sqrt(_ratio_of_sums(num, den, axis)))


def _bootstrap(
    statistic: Callable[..., FloatArray], num: FloatArray, den: FloatArray, clusters: Clusters, seed: int
) -> Estimate:
    """Value and BCa interval (Efron 1987), resampling whole clusters.

    Both statistics depend on the data through sums alone, so a cluster is its two sums.
    """
    if clusters is not None:
        _, index = np.unique(clusters, return_inverse=True)
        num, den = (np.bincount(index, weights=w).astype(np.float64) for w in (num, den))
    value = float(statistic(num, den))
    if num.size < 2:
        return Estimate(value, None)
    # Where every cluster says the same, or the rest says the same without any one of them, BCa's correction
    # divides by zero; the percentile interval is right there.
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            low, high = stats.bootstrap(
                (num, den),
                statistic,
                paired=True,
                vectorized=True,
                n_resamples=RESAMPLES,
                batch=500,
                confidence_level=CONFIDENCE,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite(low) and np.isfinite(high):
            return Estimate(value, Interval(float(low), float(high)))
    return Estimate(value, None)
