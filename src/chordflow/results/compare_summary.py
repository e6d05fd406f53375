"""What a comparison says: figures over seeds, pooled success, and which method is best where that is clear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from chordflow.results.compare import STEP_COUNTS, Comparison, Entry, Run
from chordflow.results.schema import SuccessRow
from chordflow.results.statistics import compare_success
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


def pooled_success(comparison: Comparison, method: str) -> SuccessRow | None:
    """Success at one step over the episodes of all seeds; None where none were run.

    Every seed's student runs the same episodes, so that they are fewer than they count: what differs between students
    is seen in the figures of the seeds.
    """
    rows = [run.success[0] for run in comparison.runs_of(method) if run.success]
    return pooled(rows) if rows else None


def pooled(rows: Sequence[SuccessRow]) -> SuccessRow:
    """Rows of one way to act, added up.

    Args:
        rows: at least one, of the same steps and group; all or none compared with the teacher.
    """
    first = rows[0]
    versus = None
    if all(row.versus_teacher is not None for row in rows):
        own: list[bool] = []
        theirs: list[bool] = []
        for row in rows:
            pairs = row.versus_teacher
            assert pairs is not None
            both = row.successes - pairs.only_first
            neither = row.episodes - both - pairs.only_first - pairs.only_second
            counts = (both, pairs.only_first, pairs.only_second, neither)
            own += np.repeat([True, True, False, False], counts).tolist()
            theirs += np.repeat([True, False, True, False], counts).tolist()
        versus = compare_success(own, theirs)
    return SuccessRow(
        policy=first.policy,
        solver=first.solver,
        num_steps=first.num_steps,
        group=first.group,
        successes=sum(row.successes for row in rows),
        episodes=sum(row.episodes for row in rows),
        versus_teacher=versus,
    )


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
    if len(found) == 1:
        return f"{where} there is {_named(first, found[first])} alone."
    rivals = [
        name
        for name, spread in found.items()
        if name != first and (min(spread.count, found[first].count) < 2 or spread.low <= found[first].high)
    ]
    if rivals:
        seed = " with a single seed" if any(found[name].count < 2 for name in [first, *rivals]) else ""
        listed = counted(
            [_named(name, found[name]) for name in sorted([first, *rivals], key=lambda n: found[n].middle)]
        )
        return f"{where} there is no clear winner{seed} between {listed}."
    return f"{where} {_named(first, found[first])} is nearest to the teacher's converged ODE."


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
    rows = {
        e.name: row for e in comparison.methods if (row := pooled_success(comparison, e.name)) is not None
    }
    rows = _different(comparison, rows)
    if not rows:
        return ""
    first = max(rows, key=lambda name: rows[name].rate)
    told = {name: f"{clean(name)} ({percent(row.rate, 1)})" for name, row in rows.items()}
    if len(rows) == 1:
        return f"In episodes at one step {told[first]} is alone."
    rivals = [n for n, row in rows.items() if n != first and row.interval.high >= rows[first].interval.low]
    if rivals:
        listed = counted([told[n] for n in sorted([first, *rivals], key=lambda n: -rows[n].rate)])
        return f"In episodes at one step there is no clear winner between {listed}."
    return f"In episodes at one step {told[first]} succeeds most often."


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
    rows = {
        e.name: row for e in comparison.methods if (row := pooled_success(comparison, e.name)) is not None
    }
    two = next((r for r in teacher.success if r.num_steps == 2 and r.group == "all"), None)
    if rows and two is not None:
        most = max(rows, key=lambda n: rows[n].rate)
        equals = two.interval.high >= rows[most].interval.low
        text += (
            f", and {'' if equals else 'not '}as good as {clean(most)} in episodes ({percent(two.rate, 1)} against "
            f"{percent(rows[most].rate, 1)})"
        )
    return text + "."


def _named(name: str, spread: Spread) -> str:
    return f"{clean(name)} ({told(spread)})"


def told(spread: Spread) -> str:
    """A share's median and range in words."""
    over = (
        f", {percent(spread.low)} to {percent(spread.high)} over {spread.count} seeds"
        if spread.count > 1
        else ""
    )
    return f"{percent(spread.middle)}{over}"


def counted(items: Sequence[object]) -> str:
    """``a, b and c``."""
    texts = [str(item) for item in items]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def trained_for(entry: Entry) -> str:
    """The step counts that students of an entry are for, in words."""
    return "any" if entry.step_counts is None else counted(entry.step_counts)
