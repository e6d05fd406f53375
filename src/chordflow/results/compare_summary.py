"""What a comparison says: figures over seeds, success, and which method is best where that is clear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from chordflow.results.compare import STEP_COUNTS, Comparison, Entry, Run
from chordflow.results.schema import SuccessRow
from chordflow.results.wording import clean, percent


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        middle: its median.
        low: the least.
        high: the largest.
        count: seeds.
    """

    middle: float
    low: float
    high: float
    count: int


def over_seeds(comparison: Comparison, method: str, figure: Callable[[Run], float | None]) -> Spread | None:
    """A figure over the measured runs of a method; None where none has it."""
    return spread_of([figure(run) for run in comparison.runs_of(method)])


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Of one figure for each seed, where it is known; None where it is for none."""
    found = [value for value in values if value is not None]
    return Spread(median(found), min(found), max(found), len(found)) if found else None


def gap_rms(num_steps: int) -> Callable[[Run], float | None]:
    """The RMS gap to the converged ODE at a number of steps, as a figure of a run."""

    def figure(run: Run) -> float | None:
        row = run.figures.gap(num_steps) if run.figures is not None else None
        return row.rms if row is not None else None

    return figure


def worst_rms(run: Run) -> float | None:
    """The largest RMS gap to the converged ODE over all step counts: how bad the worst choice of them is."""
    found = [gap_rms(n)(run) for n in STEP_COUNTS]
    known = [value for value in found if value is not None]
    return max(known) if len(known) == len(found) else None


def untaken(comparison: Comparison, method: str) -> bool:
    """Whether a measured student of a method made no step, and so is what it began as."""
    return any(run.steps == 0 for run in comparison.runs_of(method))


def success(comparison: Comparison, method: str) -> SuccessRow | None:
    """Success at one step, of several seeds that of `middle_seed`; None where no episodes were run."""
    return middle_seed([run.success[0] for run in comparison.runs_of(method) if run.success])


def shown(comparison: Comparison) -> list[Entry]:
    """The entries that a table has: those that are asked for, and of others those that are measured."""
    asked = comparison.settings.get("methods")
    return [
        entry
        for entry in comparison.methods
        if asked is None or entry.name in asked or comparison.runs_of(entry.name)
    ]


def middle_seed(rows: Sequence[SuccessRow]) -> SuccessRow | None:
    """The row of the seed with the median success, of an even number the lower of the two; None without rows.

    The students of all seeds run the same episodes, against the same outcomes of the teacher. Added up these would be
    counted once for each seed, and intervals and tests that take episodes as independent would say too much.

    Args:
        rows: of one way to act in one group of episodes, one for each seed.
    """
    return sorted(rows, key=lambda row: row.rate)[(len(rows) - 1) // 2] if rows else None


def headline(comparison: Comparison) -> str:
    """In words what the table says: best at one step, best at every step count, and the untrained teacher."""
    idle = [entry.name for entry in comparison.methods if untaken(comparison, entry.name)]
    comparison = replace(comparison, methods=[e for e in comparison.methods if e.name not in idle])
    said = [
        _best(comparison, comparison.methods, "At one step", gap_rms(1)),
        _best(
            comparison,
            [entry for entry in comparison.methods if entry.step_counts is None],
            f"At every step count (the worst of {counted(STEP_COUNTS)})",
            worst_rms,
        ),
        _best_success(comparison),
        _teacher(comparison),
        f"Left out, because the budget was too small for a step: {counted([clean(n) for n in idle])}."
        if idle
        else "",
    ]
    return " ".join(text for text in said if text) or "Nothing is measured yet."


def _best(
    comparison: Comparison, entries: Sequence[Entry], where: str, figure: Callable[[Run], float | None]
) -> str:
    """Who has the smallest gap, where the ranges over seeds leave no doubt."""
    found = {
        e.name: spread for e in entries if (spread := over_seeds(comparison, e.name, figure)) is not None
    }
    found = _different(comparison, found)
    if not found:
        return ""
    first = min(found, key=lambda name: found[name].middle)
    rivals = [name for name in found if name != first and found[name].low <= found[first].high]
    return _named_best(where, found, first, rivals, "is nearest to the teacher's converged ODE")


def _named_best(
    where: str,
    found: dict[str, Spread],
    first: str,
    rivals: list[str],
    wins: str,
    decimals: int | None = None,
) -> str:
    """The sentence on the best of some entries, and of those that it cannot be told from.

    Args:
        where: what is compared.
        found: figures by name, the best among them.
        first: name of the best.
        rivals: those whose figures overlap with the best's.
        wins: what is said of a clear winner.
        decimals: digits of percentages; two significant ones by default.
    """
    named = {name: f"{clean(name)} ({told(spread, decimals)})" for name, spread in found.items()}
    if len(found) == 1:
        return f"{where} there is {named[first]} alone."
    # A single seed has no range that could overlap.
    single = [n for n, s in found.items() if n != first and min(s.count, found[first].count) < 2]
    rivals = [name for name in found if name in {*rivals, *single}]
    if not rivals:
        return f"{where} {named[first]} {wins}."
    seed = " with a single seed" if any(found[name].count < 2 for name in [first, *rivals]) else ""
    apart = sorted([first, *rivals], key=lambda n: abs(found[n].middle - found[first].middle))
    return f"{where} there is no clear winner{seed} between {counted([named[n] for n in apart])}."


def _different[T](comparison: Comparison, found: dict[str, T]) -> dict[str, T]:
    """Figures by name, of entries with equal settings those of the first: chance alone would part them."""
    settings: list[dict[str, Any]] = []
    kept = {}
    for entry in comparison.methods:
        if entry.name in found and entry.settings not in settings:
            settings.append(entry.settings)
            kept[entry.name] = found[entry.name]
    return kept


def _best_success(comparison: Comparison) -> str:
    """Who succeeds most often, where neither seeds nor episodes leave a doubt.

    Ranges over seeds that do not overlap say nothing of the chance of episodes, which all seeds share: the intervals
    of the median seeds must not overlap either.
    """
    rows = {e.name: row for e in comparison.methods if (row := success(comparison, e.name)) is not None}
    rows = _different(comparison, rows)
    if not rows:
        return ""
    found = {}
    for name, row in rows.items():
        rates = [run.success[0].rate for run in comparison.runs_of(name) if run.success]
        found[name] = Spread(row.rate, min(rates), max(rates), len(rates))
    first = max(rows, key=lambda name: rows[name].rate)
    rivals = [
        name
        for name in rows
        if name != first
        and (found[name].high >= found[first].low or rows[name].interval.high >= rows[first].interval.low)
    ]
    return _named_best("In episodes at one step", found, first, rivals, "succeeds most often", decimals=1)


def _teacher(comparison: Comparison) -> str:
    """Whether the untrained teacher at two steps is as good as the best student at one."""
    teacher = comparison.untrained
    free = teacher.figures.gap(2) if teacher is not None else None
    found = {
        e.name: spread
        for e in comparison.methods
        if (spread := over_seeds(comparison, e.name, gap_rms(1))) is not None
    }
    if teacher is None or free is None or not found:
        return ""
    name = min(found, key=lambda n: found[n].middle)
    best = found[name]
    as_good = free.rms <= best.high
    text = (
        f"The untrained teacher at two steps is {'' if as_good else 'not '}as good as {clean(name)} at one by its gap "
        f"({percent(free.rms)} against {percent(best.middle)})"
    )
    rows = {e.name: row for e in comparison.methods if (row := success(comparison, e.name)) is not None}
    two = next((r for r in teacher.success if r.num_steps == 2 and r.group == "all"), None)
    if rows and two is not None:
        most = max(rows, key=lambda n: rows[n].rate)
        equals = two.interval.high >= rows[most].interval.low
        text += (
            f", and {'' if equals else 'not '}as good as {clean(most)} in episodes ({percent(two.rate, 1)} against "
            f"{percent(rows[most].rate, 1)})"
        )
    return text + "."


def told(spread: Spread, decimals: int | None = None) -> str:
    """A share's median and range in words."""
    low, high = percent(spread.low, decimals), percent(spread.high, decimals)
    over = f", {low} to {high} over {spread.count} seeds" if spread.count > 1 else ""
    return f"{percent(spread.middle, decimals)}{over}"


def counted(items: Sequence[object]) -> str:
    """``a, b and c``."""
    texts = [str(item) for item in items]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def trained_for(entry: Entry) -> str:
    """The step counts that students of an entry are for, in words."""
    return "any" if entry.step_counts is None else counted(entry.step_counts)
