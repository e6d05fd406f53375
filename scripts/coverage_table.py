"""Compute what docs/statistics.md states of intervals and tests, and write it there.

    python scripts/coverage_table.py

writes docs/statistics.json and fills the tables between the marks of docs/statistics.md. Nothing is simulated but for
the column that says so: every table of counts is weighed by its binomial or multinomial probability. Tables that
together weigh less than about 1e-9 are left out, far below the 0.1 % to which coverages are stated.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy import fft, stats
from scipy.special import gammaln, xlogy

from chordflow.results.sequential import SequentialTest, decided_at
from chordflow.results.statistics import (
    CONFIDENCE,
    ROUNDING,
    FloatArray,
    episodes_needed,
    newcombe_limits,
    wilson_coverage,
)

DOCS = Path(__file__).parents[1] / "docs"

EPISODES = (20, 50, 100, 500)

RATES = (0.5, 0.8, 0.9, 0.95, 0.99)

PAIRED = ((0.01, 0.01, 0.95), (0.03, 0.03, 0.9), (0.02, 0.04, 0.9), (0.1, 0.1, 0.6), (0.05, 0.15, 0.6))
"""Rates of pairs that only the first policy solves, that only the second does, that both do."""

PLANS = (
    (0.0025, 0.0025, 0.95, 0.02),
    (0.01, 0.01, 0.95, 0.02),
    (0.02, 0.02, 0.95, 0.02),
    (0.025, 0.015, 0.95, 0.02),
    (0.0, 0.06, 0.92, 0.02),
    (0.01, 0.09, 0.85, 0.02),
    (0.05, 0.05, 0.85, 0.05),
    (0.1, 0.1, 0.6, 0.1),
    (0.05, 0.35, 0.5, 0.02),
)
"""The same rates and a margin."""

PEEKED = ((0.0, 0.02, 0.95, 0.02), (0.01, 0.03, 0.93, 0.02), (0.05, 0.1, 0.75, 0.05))
"""Rates at the margin itself, where a decision is an error."""

PEEKS, RUNS, FIRST_LOOK = 500, 2_000, 20


NEGLIGIBLE = 1e-10
"""Tail of a count that is left out."""


def paired_coverage(episodes: int, only_first: float, only_second: float, both: float) -> float:
    """Chance that Newcombe's 95 % interval holds the true difference of paired success rates.

    Args:
        episodes: Paired episodes, at least 1; time grows with their square to their cube.
        only_first: Rate of pairs that only the first policy solves.
        only_second: Rate of pairs that only the second solves.
        both: Rate of pairs that both solve.
    """
    truth = only_first - only_second
    covered = 0.0
    for n11, n10, n01, n00, weight in _tables(episodes, both, only_first, only_second):
        low, high = newcombe_limits(n11, n10, n01, n00)
        covered += float(weight[(low - ROUNDING <= truth) & (truth <= high + ROUNDING)].sum())
    return covered


def bootstrap_limits(
    only_first: ArrayLike, only_second: ArrayLike, episodes: int
) -> tuple[FloatArray, FloatArray]:
    """Percentile bootstrap of the difference of paired rates, of many tables at once (Efron 1979).

    A resample of n pairs sums n draws of -1, 0 or 1, so the law of the resampled difference is the n-fold
    convolution of their frequencies: it is computed, by a Fourier transform, in place of drawn.

    Args:
        only_first: Pairs that only the first policy solved, counts of any shape.
        only_second: Pairs that only the second solved.
        episodes: Number n of pairs in every table.

    Returns:
        The 2.5 % and 97.5 % quantiles of the resampled difference, first less second.
    """
    wins, losses = (np.asarray(c, dtype=np.float64)[..., None] / episodes for c in (only_first, only_second))
    size = fft.next_fast_len(2 * episodes + 1, real=True)
    turn = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)
    one_pair = 1 - wins - losses + wins * turn + losses * turn.conj()
    law = fft.irfft(one_pair**episodes, size, axis=-1)
    # Sums from -n to n: the negative ones lie at the end.
    cumulated = np.cumsum(np.roll(law, episodes, axis=-1)[..., : 2 * episodes + 1], axis=-1)
    tail = (1 - CONFIDENCE) / 2
    low, high = (np.argmax(cumulated >= level, axis=-1) - episodes for level in (tail, 1 - tail))
    return low / episodes, high / episodes


def bootstrap_coverage(episodes: int, only_first: float, only_second: float) -> float:
    """Chance that the percentile bootstrap's 95 % interval holds the true difference of paired success rates.

    Where every pair says the same, the interval is a point, and counts as such.

    Args:
        episodes: Paired episodes, at least 1.
        only_first: Rate of pairs that only the first policy solves.
        only_second: Rate of pairs that only the second solves.
    """
    truth = only_first - only_second
    covered = 0.0
    # Agreement of either kind is the same to it, so "both" takes no part.
    for _, n10, n01, _, weight in _tables(episodes, 0.0, only_first, only_second):
        low, high = bootstrap_limits(n10, n01, episodes)
        covered += float(weight[(low - ROUNDING <= truth) & (truth <= high + ROUNDING)].sum())
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
    """
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
        ValueError: If the test has no largest number of episodes.
    """
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
    return min(int(stats.binom.isf(NEGLIGIBLE, episodes, min(max(rate, 0.0), 1.0))) + 1, episodes)


def wilson() -> list[dict[str, float]]:
    """Coverage of Wilson's interval."""
    return [
        {"episodes": n, "rate": rate, "coverage": wilson_coverage(n, rate)}
        for n in EPISODES
        for rate in RATES
    ]


def paired() -> list[dict[str, float]]:
    """Coverage of both intervals of a paired difference."""
    return [
        {
            "episodes": n,
            "only_first": first,
            "only_second": second,
            "both": both,
            "newcombe": paired_coverage(n, first, second, both),
            "bootstrap": bootstrap_coverage(n, first, second),
        }
        for n in EPISODES
        for first, second, both in PAIRED
    ]


def plans() -> list[dict[str, float]]:
    """Fixed plans beside the sequential test."""
    return [_plan(*plan) for plan in PLANS]


def peeking() -> list[dict[str, float]]:
    """Errors of looking after every pair."""
    return [_peeking(*truth) for truth in PEEKED]


TABLES: dict[str, Callable[[], list[dict[str, float]]]] = {
    "wilson": wilson,
    "paired": paired,
    "plans": plans,
    "peeking": peeking,
}
"""What computes each table; rates and coverages are fractions."""


def _plan(first: float, second: float, both: float, margin: float) -> dict[str, float]:
    """A plan with a fixed number of pairs beside the sequential test that may take twice as many."""
    needed = episodes_needed(first, second, margin)
    if needed is None:
        raise ValueError(f"a plan at {first} and {second} lies at its margin, {margin}.")
    better = first - second > -margin
    fixed = non_inferiority_power(needed, first, second, both, margin)
    sequential = sequential_power(SequentialTest(margin, max_episodes=2 * needed), first, second)
    return {
        "only_first": first,
        "only_second": second,
        "margin": margin,
        "episodes": needed,
        "power": fixed[0] if better else fixed[1],
        "sequential_episodes": sequential.mean_episodes,
        "sequential_power": sequential.non_inferior if better else sequential.inferior,
    }


def _peeking(first: float, second: float, both: float, margin: float) -> dict[str, float]:
    """Chance of a wrong "non-inferior" from looking after every pair: by simulation for the fixed interval."""
    rng = np.random.default_rng(0)
    law = [both, first, second, max(1 - both - first - second, 0.0)]
    outcomes = rng.choice(4, p=law, size=(RUNS, PEEKS))
    counts = [np.cumsum(outcomes == cell, axis=1)[:, FIRST_LOOK - 1 :] for cell in range(4)]
    low, _ = newcombe_limits(*counts)
    test = SequentialTest(margin, min_episodes=FIRST_LOOK, max_episodes=PEEKS)
    return {
        "only_first": first,
        "only_second": second,
        "margin": margin,
        "newcombe_once": float((low[:, -1] > -margin).mean()),
        "newcombe_peeking": float((low > -margin).any(axis=1).mean()),
        "betting": sequential_power(test, first, second).non_inferior,
    }


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:g}"


def _wilson(rows: list[dict[str, float]]) -> list[list[str]]:
    head = ["episodes", *(f"rate {_points(rate)} %" for rate in RATES)]
    found = {(row["episodes"], row["rate"]): _percent(row["coverage"]) for row in rows}
    return [head, *([str(n), *(found[n, rate] for rate in RATES)] for n in EPISODES)]


def _paired(rows: list[dict[str, float]]) -> list[list[str]]:
    head = ["only first / only second / both", *(f"{n} episodes" for n in EPISODES)]
    found = {
        (r["only_first"], r["only_second"], r["both"], r["episodes"]): (
            f"{_percent(r['newcombe'])} / {_percent(r['bootstrap'])}"
        )
        for r in rows
    }
    body = [[" / ".join(map(_points, law)), *(found[(*law, n)] for n in EPISODES)] for law in PAIRED]
    return [head, *body]


def _plans(rows: list[dict[str, float]]) -> list[list[str]]:
    head = ["only first / only second", "margin", "pairs, fixed", "decides", "pairs, sequential", "decides"]
    body = [
        [
            f"{_points(r['only_first'])} / {_points(r['only_second'])}",
            _points(r["margin"]),
            f"{r['episodes']:.0f}",
            _percent(r["power"]),
            f"{r['sequential_episodes']:.0f}",
            _percent(r["sequential_power"]),
        ]
        for r in rows
    ]
    return [head, *body]


def _peeks(rows: list[dict[str, float]]) -> list[list[str]]:
    head = ["only first / only second", "margin", "Newcombe, once", "Newcombe, after every pair", "betting"]
    body = [
        [
            f"{_points(r['only_first'])} / {_points(r['only_second'])}",
            _points(r["margin"]),
            _percent(r["newcombe_once"]),
            _percent(r["newcombe_peeking"]),
            _percent(r["betting"]),
        ]
        for r in rows
    ]
    return [head, *body]


_LAYOUTS: dict[str, Callable[[list[dict[str, float]]], list[list[str]]]] = {
    "wilson": _wilson,
    "paired": _paired,
    "plans": _plans,
    "peeking": _peeks,
}


def fill(page: str, figures: dict[str, list[dict[str, float]]]) -> str:
    """The page with its tables written anew.

    Args:
        page: Markdown with the marks ``<!-- NAME -->`` and ``<!-- /NAME -->`` around each table.
        figures: The rows of each table.

    Raises:
        ValueError: If a mark is missing.
    """
    for name, layout in _LAYOUTS.items():
        head, *body = layout(figures[name])
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = page.partition(opening)
        _, mark, after = rest.partition(closing)
        if not mark:
            raise ValueError(f"docs/statistics.md lacks {opening} or {closing}; put both around its table.")
        page = f"{before}{opening}\n{table}\n{closing}{after}"
    return page


def main() -> None:
    """Write both files."""
    figures = {name: table() for name, table in TABLES.items()}
    page = DOCS / "statistics.md"
    filled = fill(page.read_text(), figures)
    (DOCS / "statistics.json").write_text(json.dumps(figures, indent=1) + "\n")
    page.write_text(filled)


if __name__ == "__main__":
    main()
