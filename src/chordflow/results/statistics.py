"""Intervals and tests for the few kinds of comparison that chordflow reports.

Everything is seeded or exact, so a table repeats to the last digit. What each interval assumes and how often
it covers the truth is told in docs/statistics.md.

Shapes: n pairs, episodes or samples; a *cluster* is an observation that several of them share.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import betainc
from statsmodels.stats.contingency_tables import mcnemar

from chordflow.results.limits import (
    CONFIDENCE,
    FloatArray,
    newcombe_limits,
    wilson_limits,
)
from chordflow.results.power import check_margin, episodes_needed

RESAMPLES = 9_999
"""Bootstrap samples behind an interval."""

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
    """Percentiles by linear interpolation between order statistics (numpy's default, Hyndman and Fan's 7).

    With fewer than 100 values the 99th lies between the two largest: it says little of rarer delays.

    Args:
        values: times of any shape, at least one, all finite.

    Raises:
        ValueError: if there are none, or one is not finite.
    """
    p50, p90, p95, p99 = np.percentile(_finite("values", values), [50, 90, 95, 99])
    return Percentiles(float(p50), float(p90), float(p95), float(p99))


def wilson_interval(successes: float, episodes: int) -> Interval:
    """Wilson's score interval for a success rate (Wilson 1927).

    Args:
        successes: from 0 to episodes.
        episodes: at least 1.

    Returns:
        The interval, as fractions.

    Raises:
        ValueError: if the counts are impossible.
    """
    if episodes < 1 or not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes in {episodes} episodes is impossible.")
    low, high = wilson_limits(successes, episodes)
    return Interval(float(low), float(high))


def compare_success(first: ArrayLike, second: ArrayLike, *, starts: int | None = None) -> PairedSuccess:
    """Compare two policies that ran the same episodes.

    The test is McNemar's, exact (McNemar 1947). The interval is Newcombe's square-and-add of Wilson
    intervals with the correlation of the pairs (Newcombe 1998, Statistics in Medicine 17:2635, method 10):
    unlike a bootstrap it does not shrink to nothing where the policies agree on every episode.

    Args:
        first: whether the first policy solved each episode, shape (n,).
        second: the same of the second policy, in the same order, shape (n,).
        starts: how many of the episodes begin differently, at most n. Interval and test are then those of so many
            pairs in which everything is as frequent: right where episodes that begin alike also end alike, and
            cautious where they do not. All differ by default.

    Raises:
        ValueError: if the lengths differ, there is no episode, or a value is neither true nor false.
    """
    a, b = paired_outcomes(first, second)
    both, only_a = int(np.sum(a & b)), int(np.sum(a & ~b))
    only_b, neither = int(np.sum(~a & b)), int(np.sum(~a & ~b))
    p_value = (
        float(mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue) if only_a + only_b else 1.0
    )
    if starts is not None:
        share = starts / a.size
        low, high = newcombe_limits(*(share * cell for cell in (both, only_a, only_b, neither)))
        fewer, more = sorted((share * only_a, share * only_b))
        # The binomial tail at any real number of pairs; at whole ones it is McNemar's exact test.
        p_value = 2 * float(betainc(more, fewer + 1, 0.5)) if only_a + only_b else 1.0
        return PairedSuccess(
            difference=Estimate((only_a - only_b) / a.size, Interval(float(low), float(high))),
            p_value=min(p_value, 1.0),
            only_first=only_a,
            only_second=only_b,
            episodes=a.size,
            starts=starts,
        )
    low, high = newcombe_limits(both, only_a, only_b, neither)
    return PairedSuccess(
        difference=Estimate((only_a - only_b) / a.size, Interval(float(low), float(high))),
        p_value=min(p_value, 1.0),
        only_first=only_a,
        only_second=only_b,
        episodes=a.size,
    )


def non_inferiority(paired: PairedSuccess, margin: float) -> NonInferiority:
    """Decide non-inferiority of the first policy by the interval of the paired difference.

    Both one-sided claims are made at 2.5 %. The number of episodes is fixed before looking: who looks early needs
    `chordflow.results.sequential`.

    Args:
        paired: the comparison, from `compare_success`.
        margin: how much lower the first policy's success may be, a fraction between 0 and 1.

    Raises:
        ValueError: if the margin is out of range or the comparison has no interval.
    """
    check_margin(margin)
    interval = paired.difference.interval
    if interval is None:
        raise ValueError("the comparison has no interval of its difference; make it with compare_success.")
    decision: Decision = "undecided"
    if interval.low > -margin:
        decision = "non-inferior"
    elif interval.high < -margin:
        decision = "inferior"
    needed = None
    # More episodes from the same starts would not decide.
    if decision == "undecided" and paired.starts is None:
        needed = _needed_after(paired.only_first, paired.only_second, paired.episodes, margin)
    return NonInferiority(margin, decision, interval.low, interval.high, paired.episodes, needed)


def _needed_after(only_first: int, only_second: int, episodes: int, margin: float) -> int | None:
    rates = only_first / episodes, only_second / episodes
    if only_first + only_second == 0:
        # No disagreement in n pairs is no proof that there is none. Half a pair in each cell of the table, as for
        # intervals of paired differences (Agresti and Min 2005, Statistics in Medicine 24:729), keeps a short run
        # from promising that a short one will do.
        rates = 0.5 / (episodes + 2), 0.5 / (episodes + 2)
    needed = episodes_needed(*rates, margin)
    return None if needed is None else max(needed, episodes + 1)


def mean_interval(
    values: ArrayLike,
    *,
    seed: int,
    clusters: Sequence[int] | NDArray[np.int_] | None = None,
) -> Estimate:
    """Mean with a bootstrap interval over clusters.

    Args:
        values: shape (n,).
        seed: seed of the bootstrap.
        clusters: which observation or episode each value belongs to, shape (n,); each its own by default.

    Raises:
        ValueError: if the shape is another, there is no value, or one is not finite.
    """
    v = _finite("values", values)
    if v.ndim != 1:
        raise ValueError(f"values has shape {v.shape}; it must be (n,).")
    return _bootstrap(_ratio_of_sums, v, np.ones_like(v), clusters, seed)


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    seed: int,
    clusters: Sequence[int] | NDArray[np.int_] | None = None,
) -> Estimate:
    """Mean of `first - second` over pairs, with a bootstrap interval over clusters.

    Args:
        first: shape (n,).
        second: the paired values, shape (n,).
        seed: seed of the bootstrap.
        clusters: which observation each pair belongs to, shape (n,); each pair its own by default.

    Raises:
        ValueError: if shapes differ, there is no pair, or a value is not finite.
    """
    a, b = _paired("first", first, "second", second)
    return _bootstrap(_ratio_of_sums, a - b, np.ones_like(a), clusters, seed)


def ratio_of_rms(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    seed: int,
    clusters: Sequence[int] | NDArray[np.int_] | None = None,
) -> Estimate:
    """`rms(numerator) / rms(denominator)` over pairs, with a bootstrap interval over clusters.

    Noises of one observation are not independent, and few observations can decide an RMS: resampling whole
    observations shows both.

    Args:
        numerator: distances of one policy, shape (n,).
        denominator: distances of the other on the same pairs, shape (n,).
        seed: seed of the bootstrap.
        clusters: which observation each pair belongs to, shape (n,); each pair its own by default.

    Raises:
        ValueError: if shapes differ, there is no pair, a value is not finite, or the denominator is zero.
    """
    num, den = _paired("numerator", numerator, "denominator", denominator)
    if not (den**2).any():
        raise ValueError("denominator is zero throughout.")
    return _bootstrap(_root_ratio_of_sums, num**2, den**2, clusters, seed)


_Statistic = Callable[..., FloatArray]


def _ratio_of_sums(num: FloatArray, den: FloatArray, axis: int = -1) -> FloatArray:
    return np.asarray(num.sum(axis=axis) / den.sum(axis=axis))


def _root_ratio_of_sums(num: FloatArray, den: FloatArray, axis: int = -1) -> FloatArray:
    return np.asarray(np.sqrt(_ratio_of_sums(num, den, axis)))


def _bootstrap(
    statistic: _Statistic,
    num: FloatArray,
    den: FloatArray,
    clusters: Sequence[int] | NDArray[np.int_] | None,
    seed: int,
) -> Estimate:
    """Value and BCa interval (Efron 1987), resampling whole clusters.

    Both statistics depend on the data through sums alone, so a cluster is its two sums.
    """
    if clusters is not None:
        labels = np.asarray(clusters)
        if labels.shape != num.shape:
            raise ValueError(
                f"clusters has shape {labels.shape}; it must name one for each of {num.size} pairs."
            )
        _, index = np.unique(labels, return_inverse=True)
        num, den = (np.bincount(index, weights=w).astype(np.float64) for w in (num, den))
    value = float(statistic(num, den))
    if num.size < 2:
        return Estimate(value, None)
    # Where every cluster says the same, or the rest says the same without any one of them, BCa's correction
    # divides by zero; the percentile interval is right there.
    low, high = float("nan"), float("nan")
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


def _finite(name: str, values: ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{name} is empty; a measure needs at least one value.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(array)).sum())} values that are not finite.")
    return array


def _paired(name_a: str, a: ArrayLike, name_b: str, b: ArrayLike) -> tuple[FloatArray, FloatArray]:
    first, second = _finite(name_a, a), _finite(name_b, b)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"{name_a} has shape {first.shape} and {name_b} {second.shape}; both must be (n,).")
    return first, second


def paired_outcomes(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Outcomes of two policies on the same episodes, checked.

    Args:
        first: whether the first policy solved each episode, shape (n,).
        second: the same of the second policy, shape (n,).

    Returns:
        Both as booleans.

    Raises:
        ValueError: if the lengths differ, there is no episode, or a value is neither true nor false.
    """
    a, b = _outcomes("first", first), _outcomes("second", second)
    if a.shape != b.shape:
        raise ValueError(f"first has {a.size} episodes and second {b.size}; they must be the same episodes.")
    return a, b


def _outcomes(name: str, values: ArrayLike) -> NDArray[np.bool_]:
    array = _finite(name, values)
    if array.ndim != 1 or not np.isin(array, (0.0, 1.0)).all():
        raise ValueError(f"{name} must be one true or false per episode.")
    return array.astype(bool)
