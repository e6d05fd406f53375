"""What the runs of a benchmark say together: medians over seeds, and how long a loop takes to a given gap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from chordflow.results.bench import NAIVE, Look, TrainingBench


@dataclass(frozen=True)
class Reached:
    """When a loop comes to a gap.

    Attributes:
        seconds: of training.
        at_most: whether it may have been earlier: the first mark is there already.
    """

    seconds: float
    at_most: bool


def over_seeds(
    bench: TrainingBench, loop: str, mark_s: float, figure: Callable[[Look], float]
) -> float | None:
    """The median over the seeds that are done of a figure at a mark; None where none is."""
    looks = [look for seed in bench.seeds if (look := bench.look(loop, seed, mark_s)) is not None]
    return median(figure(look) for look in looks) if looks else None


def speed_ratio(bench: TrainingBench, loop: str, mark_s: float) -> float | None:
    """Training samples a second over the naive loop's with the same seed, the median over seeds."""
    ratios = []
    for seed in bench.seeds:
        own, naive = bench.look(loop, seed, mark_s), bench.look(NAIVE, seed, mark_s)
        if own is not None and naive is not None and naive.samples > 0:
            ratios.append((own.samples / own.seconds) / (naive.samples / naive.seconds))
    return median(ratios) if ratios else None


def time_to_naive(bench: TrainingBench, loop: str) -> Reached | None:
    """When a loop reaches the RMS gap of the naive loop at its last mark: the median over the seeds of both.

    Between two marks the logarithm of the gap is taken to fall evenly over the logarithm of time.

    Returns:
        None where fewer than half of the seeds reach it, or none is done.
    """
    times: list[Reached | None] = []
    last = max(bench.budgets)
    (own,) = (known.budgets or bench.budgets for known in bench.loops if known.name == loop)
    for seed in bench.seeds:
        naive = bench.look(NAIVE, seed, last)
        marks = [(m, look) for m in sorted(own) if (look := bench.look(loop, seed, m)) is not None]
        if naive is not None and len(marks) == len(own):
            points = [(mark, look.gap.rms) for mark, look in marks]
            times.append(first_at_most(points, naive.gap.rms))
    if not times:
        return None
    # A seed that never gets there is later than all others.
    ordered = sorted(times, key=lambda reached: math.inf if reached is None else reached.seconds)
    middle = ordered[len(ordered) // 2]
    if len(ordered) % 2:
        return middle
    other = ordered[len(ordered) // 2 - 1]
    if middle is None or other is None:
        return None
    return Reached((middle.seconds + other.seconds) / 2, middle.at_most or other.at_most)


def first_at_most(points: list[tuple[float, float]], target: float) -> Reached | None:
    """When a curve of (seconds, gap), with rising seconds, first comes down to a target.

    Returns:
        None where it does not.
    """
    for place, (seconds, gap) in enumerate(points):
        if gap > target:
            continue
        if place == 0:
            return Reached(seconds, at_most=True)
        before_s, before = points[place - 1]
        if gap <= 0 or target <= 0:
            return Reached(seconds, at_most=True)
        share = math.log(before / target) / math.log(before / gap)
        return Reached(before_s * (seconds / before_s) ** share, at_most=False)
    return None
