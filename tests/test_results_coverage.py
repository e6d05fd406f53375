"""Stated coverages, held against enumerations of their own, and the page that states them."""

import itertools
import json
import math
from functools import cache, partial

import numpy as np
import pytest
import scipy.stats

from chordflow.results.sequential import SequentialTest
from chordflow.results.statistics import newcombe_limits
from script_files import ROOT, load_script

SCRIPT = load_script(ROOT / "scripts" / "coverage_table.py")


@cache
def _all_tables(n: int) -> np.ndarray:
    return np.array([t for t in itertools.product(range(n + 1), repeat=4) if sum(t) == n])


@pytest.mark.parametrize("n", [1, 5, 24])
@pytest.mark.parametrize(
    ("both", "only_first", "only_second"),
    [(0.9, 0.02, 0.02), (0.5, 0.1, 0.2), (0.2, 0.3, 0.1), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.7, 0.2, 0.1)],
)
def test_paired_coverage_is_that_over_all_tables(
    n: int, both: float, only_first: float, only_second: float
) -> None:
    tables = _all_tables(n)
    neither = max(1 - both - only_first - only_second, 0.0)
    law = scipy.stats.multinomial(n, [both, only_first, only_second, neither]).pmf(tables)
    low, high = newcombe_limits(*tables.T)
    truth = only_first - only_second
    holds = (low - 1e-12 <= truth) & (truth <= high + 1e-12)
    assert SCRIPT.paired_coverage(n, only_first, only_second, both) == pytest.approx(
        law[holds].sum(), abs=1e-3
    )
    better, worse = SCRIPT.non_inferiority_power(n, only_first, only_second, both, 0.25)
    assert better == pytest.approx(law[low > -0.25].sum(), abs=1e-3)
    assert worse == pytest.approx(law[high < -0.25].sum(), abs=1e-3)


def test_sequential_figures_are_those_of_all_sequences() -> None:
    first, second, margin, alpha, last = 0.5, 0.2, 0.6, 0.4, 6
    test = partial(SequentialTest, margin, alpha=alpha, min_episodes=2, max_episodes=last)
    better = worse = mean = 0.0
    for code in range(3**last):
        d = [(code // 3**i) % 3 - 1 for i in range(last)]
        weight = math.prod({1: first, 0: 1 - first - second, -1: second}[x] for x in d)
        end = test().update([x == 1 for x in d], [x == -1 for x in d])
        better += weight * (end.decision == "non-inferior")
        worse += weight * (end.decision == "inferior")
        mean += weight * end.episodes
    exact = SCRIPT.sequential_power(test(), first, second)
    assert better > 0.1
    assert (exact.non_inferior, exact.inferior, exact.mean_episodes) == pytest.approx((better, worse, mean))


@pytest.mark.parametrize(
    "table", ["wilson", "paired", "peeking", pytest.param("plans", marks=pytest.mark.slow)]
)
def test_the_page_states_what_is_computed(table: str) -> None:
    stated = json.loads((ROOT / "docs" / "statistics.json").read_text())
    assert stated.keys() == SCRIPT.TABLES.keys()
    computed = SCRIPT.TABLES[table]()
    assert len(stated[table]) == len(computed)
    for before, now in zip(stated[table], computed, strict=True):
        assert before == pytest.approx(now, abs=1e-3)


def test_the_page_shows_what_is_stated() -> None:
    stated = json.loads((ROOT / "docs" / "statistics.json").read_text())
    page = (ROOT / "docs" / "statistics.md").read_text()
    assert SCRIPT.fill(page, stated) == page
