"""Compute what docs/statistics.md states of intervals and tests, and write it there.

    python scripts/coverage_table.py

writes docs/statistics.json and fills the tables between the marks of docs/statistics.md.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chordflow.results.coverage import (
    bootstrap_coverage,
    non_inferiority_power,
    paired_coverage,
    sequential_power,
    wilson_coverage,
)
from chordflow.results.limits import newcombe_limits
from chordflow.results.power import episodes_needed
from chordflow.results.sequential import SequentialTest

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
