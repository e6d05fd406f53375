"""Intervals and tests, held against published figures, closed forms and simulated coverage."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from chordflow.results.files import decode, encode
from chordflow.results.statistics import (
    Interval,
    NonInferiority,
    PairedSuccess,
    compare_success,
    episodes_needed,
    mean_interval,
    non_inferiority,
    percentiles,
    ratio_of_rms,
    wilson_interval,
)
from script_files import ROOT, load_script

COVERAGE = load_script(ROOT / "scripts" / "coverage_table.py")

Table = tuple[int, int, int, int]
"""Pairs that both solved, only the first, only the second, neither."""

tables = st.tuples(*[st.integers(0, 40)] * 4).filter(any)


def compared(table: Table) -> PairedSuccess:
    first, second = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], table, axis=0).astype(bool).T
    return compare_success(first, second)


def ends(interval: Interval | None) -> tuple[float, float]:
    return interval.low, interval.high


def width(interval: Interval | None) -> float:
    low, high = ends(interval)
    return high - low


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(case: tuple[int, int]) -> None:
    theirs = scipy.stats.binomtest(*case).proportion_ci(0.95, method="wilson")
    assert ends(wilson_interval(*case)) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        wilson_interval(successes, n)


@given(tables)
def test_mcnemar_is_the_sign_test_of_the_discordant_pairs(table: Table) -> None:
    a, b, c, d = table
    result = compared(table)
    assert result.p_value == pytest.approx(scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0)
    assert (result.only_first, result.only_second, result.episodes) == (b, c, a + b + c + d)
    assert result.difference.value == pytest.approx((b - c) / (a + b + c + d))


@pytest.mark.parametrize(("table", "low", "high"), [
    # Newcombe 1998, method 10.
    ((36, 12, 2, 0), 0.0569, 0.3404),
    # Response before and after consolidation, in Fagerland, Lydersen and Laake 2017, chapter 8.
    ((59, 6, 16, 80), -0.1186, -0.0046),
])  # fmt: skip
def test_newcombe_of_published_examples(table: Table, low: float, high: float) -> None:
    assert ends(compared(table).difference.interval) == pytest.approx((low, high), abs=5e-5)


@given(tables)
def test_newcombe_holds_the_difference_and_is_symmetric(table: Table) -> None:
    a, b, c, d = table
    low, high = ends(compared(table).difference.interval)
    difference = compared(table).difference.value
    assert -1 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1
    # It turns with the policies, and is the same of failures.
    assert ends(compared((a, c, b, d)).difference.interval) == pytest.approx((-high, -low))
    assert ends(compared((d, b, c, a)).difference.interval) == pytest.approx((low, high))


@pytest.mark.parametrize(("table", "margin", "decision"), [
    ((480, 10, 5, 5), 0.02, "non-inferior"),
    ((350, 5, 60, 85), 0.02, "inferior"),
    ((45, 2, 2, 1), 0.02, "undecided"),
    ((189, 0, 0, 0), 0.02, "non-inferior"),
    ((188, 0, 0, 0), 0.02, "undecided"),
])  # fmt: skip
def test_non_inferiority(table: Table, margin: float, decision: str) -> None:
    paired = compared(table)
    result = non_inferiority(paired, margin)
    assert result.decision == decision
    assert Interval(result.lower, result.upper) == paired.difference.interval
    assert decode(NonInferiority, encode(result)) == result


@given(tables, st.floats(0.005, 0.5))
def test_non_inferiority_asks_for_more_episodes_than_there_were(table: Table, margin: float) -> None:
    result = non_inferiority(compared(table), margin)
    at_the_margin = math.isclose((table[1] - table[2]) / sum(table), -margin, rel_tol=0, abs_tol=1e-9)
    assert (result.episodes_needed is None) == (result.decision != "undecided" or at_the_margin)
    assert result.episodes_needed is None or result.episodes_needed > result.episodes


def test_agreement_on_few_episodes_does_not_promise_that_few_will_do() -> None:
    needed = [non_inferiority(compared((n, 0, 0, 0)), 0.02).episodes_needed or 0 for n in (10, 50, 150)]
    assert needed == sorted(needed, reverse=True)
    assert needed[-1] > (episodes_needed(0.0, 0.0, 0.02) or math.inf)


def test_a_difference_at_the_margin_is_never_decided() -> None:
    assert episodes_needed(0.01, 0.03, 0.02) is None


@pytest.mark.parametrize(
    ("only_first", "only_second", "margin"),
    [(0.02, 0.02, 0.02), (0.05, 0.05, 0.02), (0.015, 0.025, 0.02), (0.1, 0.1, 0.1), (0.01, 0.09, 0.02)],
)
@pytest.mark.parametrize("both", [0.85, 0.6, 0.3])
def test_the_number_of_episodes_has_its_power(
    only_first: float, only_second: float, both: float, margin: float
) -> None:
    both = min(both, 1 - only_first - only_second)
    n = episodes_needed(only_first, only_second, margin)
    assert n is not None
    better, worse = COVERAGE.non_inferiority_power(n, only_first, only_second, both, margin)
    right, wrong = (better, worse) if only_first - only_second > -margin else (worse, better)
    assert 0.79 <= right <= 0.86
    assert wrong < 1e-4
    # With half as many it has not.
    fewer = COVERAGE.non_inferiority_power(n // 2, only_first, only_second, both, margin)
    assert max(fewer) < 0.65


def test_percentiles_of_a_hundred_and_one_values() -> None:
    p = percentiles(np.random.default_rng(0).permutation(101))
    assert (p.p50, p.p90, p.p95, p.p99) == (50.0, 90.0, 95.0, 99.0)


@given(st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_mean_interval_agrees_with_scipy(seed: int) -> None:
    values = np.random.default_rng(seed).gamma(2.0, 1.0, 40)
    ours = mean_interval(values, seed=seed)
    again = {"n_resamples": 9999, "batch": 1000, "rng": np.random.default_rng(seed + 1)}
    theirs = scipy.stats.bootstrap((values,), np.mean, **again).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    near = 0.04 * (theirs.high - theirs.low)
    assert ends(ours.interval) == pytest.approx((theirs.low, theirs.high), abs=near)


@given(st.integers(0, 1000), st.integers(2, 30), st.floats(0.1, 10.0))
@settings(max_examples=20, deadline=None)
def test_ratios_of_proportional_values_are_exact(seed: int, n: int, factor: float) -> None:
    values = np.random.default_rng(seed).uniform(0.1, 1.0, n)
    estimate = ratio_of_rms(factor * values, values, seed=seed)
    assert (estimate.value, *ends(estimate.interval)) == pytest.approx([factor] * 3)


def test_a_ratio_is_of_root_mean_squares() -> None:
    for clusters in (None, [0, 0, 1]):
        found = ratio_of_rms([3.0, 4.0, 5.0], [1.0, 2.0, 2.0], seed=0, clusters=clusters)
        assert found.value == pytest.approx(math.sqrt(50 / 9))


def test_one_cluster_has_no_interval() -> None:
    assert mean_interval([1.0], seed=0).interval is None
    assert ratio_of_rms([1.0, 2.0], [1.0, 1.0], seed=0, clusters=[7, 7]).interval is None


def test_duplicated_noises_do_not_narrow_a_clustered_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.uniform(0, 1, 30), rng.uniform(0, 1, 30)
    eight, clusters = (np.repeat(a, 8), np.repeat(b, 8)), np.repeat(np.arange(30), 8)
    plain = ratio_of_rms(a, b, seed=0).interval
    assert ends(ratio_of_rms(*eight, seed=0, clusters=clusters).interval) == pytest.approx(ends(plain))
    assert width(ratio_of_rms(*eight, seed=0).interval) < 0.6 * width(plain)
    mean = mean_interval(eight[0], seed=0, clusters=clusters).interval
    assert width(mean) == pytest.approx(width(mean_interval(a, seed=0).interval))


def test_clustered_interval_covers_the_truth() -> None:
    hits, trials = 0, 60
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        level = np.repeat(rng.gamma(4.0, 1.0, 60), 4)
        a, b = 0.5 * level * rng.uniform(0.8, 1.2, 240), level * rng.uniform(0.8, 1.2, 240)
        low, high = ends(ratio_of_rms(a, b, seed=trial, clusters=np.repeat(np.arange(60), 4)).interval)
        hits += low <= 0.5 <= high
    assert hits >= 0.87 * trials
