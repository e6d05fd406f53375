"""Intervals and tests, held against published figures, closed forms and simulated coverage."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from chordflow.results.statistics import (
    Interval,
    compare_success,
    paired_difference,
    ratio_of_means,
    ratio_of_rms,
    summarise,
    wilson_interval,
)


def _pairs(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    counts = {
        (True, True): both,
        (True, False): only_first,
        (False, True): only_second,
        (False, False): neither,
    }
    outcomes = [pair for pair, count in counts.items() for _ in range(count)]
    return [a for a, _ in outcomes], [b for _, b in outcomes]


counts = st.integers(0, 40)


@pytest.mark.parametrize(("successes", "low", "high"), [(395, 0.971, 0.995), (391, 0.958, 0.988)])
def test_wilson_of_published_success_rates(successes: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, 400)
    assert interval.low == pytest.approx(low, abs=5e-4)
    assert interval.high == pytest.approx(high, abs=5e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_defining_equation(case: tuple[int, int]) -> None:
    successes, n = case
    z = scipy.stats.norm.ppf(0.975)
    interval = wilson_interval(successes, n)
    assert 0 <= interval.low <= successes / n <= interval.high <= 1
    for end in (interval.low, interval.high):
        if 0 < end < 1:
            assert abs(successes / n - end) == pytest.approx(
                z * math.sqrt(end * (1 - end) / n), rel=1e-5, abs=1e-9
            )


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        wilson_interval(successes, n)


@given(counts, counts, counts, counts)
def test_mcnemar_is_the_sign_test_of_the_discordant_pairs(a: int, b: int, c: int, d: int) -> None:
    if a + b + c + d == 0:
        return
    result = compare_success(*_pairs(a, b, c, d))
    expected = scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert result.p_value == pytest.approx(expected)
    assert (result.only_first, result.only_second, result.episodes) == (b, c, a + b + c + d)
    assert result.difference.value == pytest.approx((b - c) / (a + b + c + d))


def test_newcombe_of_his_worked_example() -> None:
    # The limits published for method 10 on the table (36, 12, 2, 0).
    interval = compare_success(*_pairs(36, 12, 2, 0)).difference.interval
    assert interval is not None
    assert interval.low == pytest.approx(0.0569, abs=5e-5)
    assert interval.high == pytest.approx(0.3404, abs=5e-5)


@given(counts, counts, counts, counts)
def test_newcombe_contains_the_difference_and_turns_with_the_policies(a: int, b: int, c: int, d: int) -> None:
    if a + b + c + d == 0:
        return
    forth, back = compare_success(*_pairs(a, b, c, d)), compare_success(*_pairs(a, c, b, d))
    there, here = forth.difference.interval, back.difference.interval
    assert there is not None
    assert here is not None
    assert -1 <= there.low <= forth.difference.value + 1e-12
    assert forth.difference.value - 1e-12 <= there.high <= 1
    assert there.low == pytest.approx(-here.high)
    assert there.high == pytest.approx(-here.low)


def test_agreement_on_every_episode_still_has_an_interval() -> None:
    interval = compare_success([True] * 20, [True] * 20).difference.interval
    assert interval is not None
    assert interval.low < -0.1
    assert interval.high > 0.1


def test_newcombe_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    probabilities = [0.7, 0.15, 0.05, 0.1]
    hits = 0
    for draw in rng.multinomial(100, probabilities, size=1000):
        interval = compare_success(*_pairs(*(int(n) for n in draw))).difference.interval
        assert interval is not None
        hits += interval.low <= 0.10 <= interval.high
    assert 0.93 <= hits / 1000 <= 0.98


def test_outcomes_must_be_paired_and_binary() -> None:
    with pytest.raises(ValueError, match="same episodes"):
        compare_success([True], [True, False])
    with pytest.raises(ValueError, match="true or false"):
        compare_success([2], [1])
    with pytest.raises(ValueError, match="empty"):
        compare_success([], [])


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_summary_is_ordered(values: list[float]) -> None:
    s = summarise(values)
    assert s.mean <= s.rms * (1 + 1e-12) + 1e-150
    assert s.rms <= s.max * (1 + 1e-12) + 1e-150
    assert min(values) <= s.median <= s.max == max(values)


def test_summary_figures() -> None:
    s = summarise([[3.0, 0.0], [4.0, 0.0]])
    assert (s.rms, s.median, s.mean, s.max) == (2.5, 1.5, 1.75, 4.0)


@given(st.integers(0, 1000), st.integers(2, 30), st.floats(0.1, 10.0))
@settings(max_examples=20, deadline=None)
def test_ratios_of_proportional_values_are_exact(seed: int, n: int, factor: float) -> None:
    values = np.random.default_rng(seed).uniform(0.1, 1.0, n)
    for ratio in (ratio_of_rms, ratio_of_means):
        estimate = ratio(factor * values, values, seed=seed)
        assert estimate.value == pytest.approx(factor)
        assert estimate.interval is not None
        assert estimate.interval.low == pytest.approx(factor)
        assert estimate.interval.high == pytest.approx(factor)


def test_estimates_are_what_they_say() -> None:
    a, b = np.array([3.0, 4.0, 5.0]), np.array([1.0, 2.0, 2.0])
    assert ratio_of_rms(a, b, seed=0).value == pytest.approx(math.sqrt(50 / 9))
    assert ratio_of_means(a, b, seed=0).value == pytest.approx(12 / 5)
    assert paired_difference(a, b, seed=0).value == pytest.approx(7 / 3)
    assert ratio_of_rms(a, b, seed=0, clusters=[0, 0, 1]).value == pytest.approx(math.sqrt(50 / 9))


def test_intervals_repeat_from_their_seed() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 1, 40), rng.uniform(0, 1, 40)
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    first = ratio_of_rms(a, b, seed=3)
    np.random.seed(2)  # noqa: NPY002
    assert first == ratio_of_rms(a, b, seed=3)
    assert first != ratio_of_rms(a, b, seed=4)


def test_one_cluster_has_no_interval() -> None:
    assert paired_difference([1.0], [0.0], seed=0).interval is None
    assert ratio_of_rms([1.0, 2.0], [1.0, 1.0], seed=0, clusters=[7, 7]).interval is None


def test_duplicated_noises_do_not_narrow_a_clustered_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.uniform(0, 1, 30), rng.uniform(0, 1, 30)
    plain = ratio_of_rms(a, b, seed=0)
    repeated = ratio_of_rms(np.repeat(a, 8), np.repeat(b, 8), seed=0, clusters=np.repeat(np.arange(30), 8))
    naive = ratio_of_rms(np.repeat(a, 8), np.repeat(b, 8), seed=0)
    assert plain.interval is not None
    assert naive.interval is not None
    assert repeated.interval is not None
    assert repeated.interval.low == pytest.approx(plain.interval.low)
    assert repeated.interval.high == pytest.approx(plain.interval.high)
    assert _width(naive.interval) < 0.6 * _width(plain.interval)


def test_clustered_interval_covers_the_truth() -> None:
    hits = 0
    trials = 60
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        level = np.repeat(rng.gamma(4.0, 1.0, 60), 4)
        a, b = 0.5 * level * rng.uniform(0.8, 1.2, 240), level * rng.uniform(0.8, 1.2, 240)
        interval = ratio_of_rms(a, b, seed=trial, clusters=np.repeat(np.arange(60), 4)).interval
        assert interval is not None
        hits += interval.low <= 0.5 <= interval.high
    assert hits >= 0.87 * trials


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "empty"),
        ([1.0, math.nan], [1.0, 1.0], "not finite"),
        ([1.0], [1.0, 2.0], "shape"),
        ([1.0, 1.0], [0.0, 0.0], "denominator"),
    ],
)
def test_unusable_data_are_refused(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ratio_of_rms(a, b, seed=0)


def test_clusters_must_name_every_pair() -> None:
    with pytest.raises(ValueError, match="clusters"):
        paired_difference([1.0, 2.0], [0.0, 0.0], seed=0, clusters=[1])


def _width(interval: Interval) -> float:
    return interval.high - interval.low
