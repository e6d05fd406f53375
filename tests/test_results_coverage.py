"""Stated coverages, held against enumerations of their own by scipy and statsmodels, and the page that states them."""

import itertools
import json
import math
from functools import cache

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.proportion import proportion_confint

from chordflow.results.sequential import SequentialTest
from script_files import ROOT, load_script

SCRIPT = load_script(ROOT / "scripts" / "coverage_table.py")


@cache
def _newcombe(n11: int, n10: int, n01: int, n00: int) -> tuple[float, float]:
    """Newcombe's method 10 from his formulas, a table at a time."""
    n = n11 + n10 + n01 + n00
    p1, p2 = (n11 + n10) / n, (n11 + n01) / n
    (l1, u1), (l2, u2) = (proportion_confint(k, n, method="wilson") for k in (n11 + n10, n11 + n01))
    denominator = math.sqrt((n11 + n10) * (n01 + n00) * (n11 + n01) * (n10 + n00))
    numerator = n11 * n00 - n10 * n01
    if numerator > n / 2:
        numerator -= n / 2
    elif numerator >= 0:
        numerator = 0
    phi = numerator / denominator if denominator else 0.0
    below = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    above = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    return p1 - p2 - math.sqrt(max(below, 0)), p1 - p2 + math.sqrt(max(above, 0))


def _all_tables(n: int) -> np.ndarray:
    return np.array([t for t in itertools.product(range(n + 1), repeat=4) if sum(t) == n])


@pytest.mark.parametrize("n", [1, 5, 24])
@pytest.mark.parametrize(
    ("both", "only_first", "only_second"),
    [(0.9, 0.02, 0.02), (0.5, 0.1, 0.2), (0.2, 0.3, 0.1), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.7, 0.2, 0.1)],
)
def test_paired_coverage_is_that_of_scipy(n: int, both: float, only_first: float, only_second: float) -> None:
    tables = _all_tables(n)
    neither = max(1 - both - only_first - only_second, 0.0)
    law = scipy.stats.multinomial(n, [both, only_first, only_second, neither]).pmf(tables)
    ends = np.array([_newcombe(*map(int, table)) for table in tables])
    truth = only_first - only_second
    holds = (ends[:, 0] - 1e-12 <= truth) & (truth <= ends[:, 1] + 1e-12)
    assert SCRIPT.paired_coverage(n, only_first, only_second, both) == pytest.approx(
        law[holds].sum(), abs=1e-3
    )
    better, worse = SCRIPT.non_inferiority_power(n, only_first, only_second, both, 0.25)
    assert better == pytest.approx(law[ends[:, 0] > -0.25].sum(), abs=1e-3)
    assert worse == pytest.approx(law[ends[:, 1] < -0.25].sum(), abs=1e-3)


def test_sequential_figures_are_those_of_all_sequences() -> None:
    first, second, margin, alpha, last = 0.5, 0.2, 0.6, 0.4, 6
    better = worse = mean = 0.0
    for code in range(3**last):
        d = [(code // 3**i) % 3 - 1 for i in range(last)]
        weight = math.prod({1: first, 0: 1 - first - second, -1: second}[x] for x in d)
        end = SequentialTest(margin, alpha=alpha, min_episodes=2, max_episodes=last).update(
            [x == 1 for x in d], [x == -1 for x in d]
        )
        better += weight * (end.decision == "non-inferior")
        worse += weight * (end.decision == "inferior")
        mean += weight * end.episodes
    exact = SCRIPT.sequential_power(
        SequentialTest(margin, alpha=alpha, min_episodes=2, max_episodes=last), first, second
    )
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
    changed = json.loads(json.dumps(stated))
    changed["wilson"][0]["coverage"] += 0.01
    assert SCRIPT.fill(page, changed) != page
