"""The sequential test: fair bets, errors under looking after every pair, and what an early stop leaves."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chordflow.results.files import decode, encode
from chordflow.results.sequential import SequentialDecision, SequentialTest, decided_at, log_capital
from script_files import ROOT, load_script

COVERAGE = load_script(ROOT / "scripts" / "coverage_table.py")

counts = st.integers(0, 60)
differences = st.lists(st.sampled_from([-1, 0, 0, 0, 1]), min_size=1, max_size=80)
means = st.floats(-0.95, 0.95)


def _outcomes(d: list[int] | np.ndarray) -> tuple[list[bool], list[bool]]:
    return [x == 1 for x in d], [x == -1 for x in d]


@given(counts, counts, counts, means)
def test_every_bet_is_fair_and_made_before_its_pair(wins: int, ties: int, losses: int, mean: float) -> None:
    # The three capitals that the next pair may lead to lie on a line through the present one at the mean: the
    # slope is the bet, the same whatever comes, so it was made from the past alone and expects to gain nothing.
    # As it is above zero, it expects to lose where the true mean is lower.
    next_pair = np.eye(3, dtype=int)[::-1]
    after = log_capital(*(np.array([[wins], [ties], [losses]]) + next_pair.T), mean)
    after = np.exp(after - log_capital(wins, ties, losses, mean))
    bet = after[2] - after[1]
    assert bet > 0
    assert after[1] - after[0] == pytest.approx(bet)
    assert after == pytest.approx(1 + bet * (np.array([-1, 0, 1]) - mean))
    assert (after > 0).all()
    assert float(log_capital(0, 0, 0, mean)) == pytest.approx(0)


@settings(deadline=None, max_examples=50)
@given(differences, st.lists(st.integers(1, 16), min_size=1, max_size=10))
def test_batches_do_not_matter(d: list[int], sizes: list[int]) -> None:
    whole = SequentialTest(0.3, min_episodes=5, max_episodes=60)
    expected = whole.update(*_outcomes(d))
    parts = SequentialTest(0.3, min_episodes=5, max_episodes=60)
    rest, state = list(d), parts.state()
    for size in itertools.cycle(sizes):
        if not rest:
            break
        batch, rest = rest[:size], rest[size:]
        state = parts.update(*_outcomes(batch))
    assert state == expected


@settings(deadline=None, max_examples=30)
@given(differences, st.integers(1, 40), st.floats(0.02, 0.6))
def test_decisions_keep_to_their_bounds(d: list[int], least: int, margin: float) -> None:
    test = SequentialTest(margin, min_episodes=least, max_episodes=least + 30)
    for x in d:
        before = test.finished
        counted = test.state().episodes
        state = test.update([x == 1], [x == -1])
        assert state.episodes == (counted if before else counted + 1) <= least + 30
        assert state.looks == max(0, state.episodes - least + 1)
        assert state.stopped_early == (state.decision != "undecided" and state.episodes < least + 30)
        # From the first look on the decision is what the interval says, and the evidence.
        may = state.episodes >= least
        better, worse = state.decision == "non-inferior", state.decision == "inferior"
        assert better == (may and state.low > -margin) == (may and state.e_non_inferior >= 2 / 0.05)
        assert worse == (may and state.high < -margin) == (may and state.e_inferior >= 2 / 0.05)


@pytest.mark.parametrize(
    ("margin", "discordance"), [(0.02, 0.02), (0.02, 0.1), (0.02, 0.4), (0.1, 0.1), (0.1, 0.2), (0.1, 0.4)]
)
def test_errors_under_looking_after_every_pair(margin: float, discordance: float) -> None:
    test = SequentialTest(margin, min_episodes=1, max_episodes=400)
    # At the margin itself either decision is wrong.
    at_margin = COVERAGE.sequential_power(test, (discordance - margin) / 2, (discordance + margin) / 2)
    assert max(at_margin.non_inferior, at_margin.inferior) <= 0.025
    if (margin, discordance) == (0.1, 0.2):
        # A test that never decides would pass.
        assert min(at_margin.non_inferior, at_margin.inferior) > 0.005


def test_tasks_of_unequal_difficulty_are_looked_at_in_whole_rounds() -> None:
    # Four tasks in turn: three on which the policies agree, one on which the first loses 40 points; the mean over
    # tasks is at the margin, so "non-inferior" is an error.
    losing, rounds, runs = np.array([0.0, 0.0, 0.0, 0.4]), 60, 1500
    d = -(np.random.default_rng(2).random((runs, rounds, 4)) < losing).astype(int).reshape(runs, -1)
    after_rounds = [np.cumsum(d == x, axis=1)[:, 3::4] for x in (1, 0, -1)]
    better, worse = decided_at(*after_rounds, 0.1, 0.05)
    wrong = better[np.arange(runs), (better | worse).argmax(axis=1)]
    assert wrong.mean() <= 0.025
    ends = [SequentialTest(0.1, min_episodes=1, look_every=4).update(*_outcomes(row)) for row in d[:40]]
    assert [end.decision == "non-inferior" for end in ends] == wrong[:40].tolist()
    assert (better | worse)[:, :-1].any()
    assert all(end.episodes == 4 * end.looks for end in ends)


def test_it_is_worth_betting() -> None:
    # Policies that differ little are told apart by about as many pairs as a fixed plan with 80 % power needs.
    power = COVERAGE.sequential_power(SequentialTest(0.05, max_episodes=700), 0.05, 0.05)
    assert power.non_inferior > 0.85
    assert power.mean_episodes < 1.1 * 350
    clear = COVERAGE.sequential_power(SequentialTest(0.02, max_episodes=500), 0.02, 0.22)
    assert clear.inferior > 0.99
    assert clear.mean_episodes < 60


def test_agreement_decides() -> None:
    end = SequentialTest(0.02).update([True] * 400, [True] * 400)
    assert end.decision == "non-inferior"
    assert end.stopped_early
    assert end.episodes == 255  # as docs/statistics.md says
    assert decode(SequentialDecision, encode(end)) == end


def test_capital_beyond_all_floats_is_still_a_number() -> None:
    state = SequentialTest(0.02, min_episodes=5000).update([True] * 4000, [False] * 4000)
    assert state.decision == "undecided"
    assert math.isfinite(state.e_non_inferior)
    assert decode(SequentialDecision, encode(state)) == state


def test_the_confidence_sequence_covers_at_all_times_at_once() -> None:
    rng = np.random.default_rng(1)
    first, second, runs, n = 0.03, 0.07, 2000, 400
    d = rng.choice([1, 0, -1], p=[first, 1 - first - second, second], size=(runs, n))
    wins, ties, losses = (np.cumsum(d == x, axis=1) for x in (1, 0, -1))
    mean = first - second
    refuted = np.maximum(log_capital(wins, ties, losses, mean), log_capital(losses, ties, wins, -mean))
    ever = (refuted >= np.log(2 / 0.05)).any(axis=1).mean()
    assert 0.002 < ever <= 0.05
