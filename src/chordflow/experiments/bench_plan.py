"""Which runs make a benchmark of training, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

from chordflow.experiments.bench_config import Anneal, TrainingBenchConfig
from chordflow.results.bench import NAIVE


@dataclass(frozen=True)
class Part:
    """One run of one loop."""

    loop: str
    seed: int
    budget_s: float
    marks: list[float]


def planned(config: TrainingBenchConfig) -> list[Part]:
    """All runs, in an order in which whatever else the machine does meets all loops alike."""
    chosen = {name: schedule.budgets for name, schedule in config.schedules.items()}
    loops = {
        name: [b for b in config.budgets if b in (chosen.get(name) or config.budgets)]
        for name in (NAIVE, *chosen)
    }
    if config.anneal == Anneal.LAST:
        return [Part(loop, s, own[-1], own) for s in config.seeds for loop, own in loops.items()]
    return [
        Part(loop, s, b, [b])
        for s in config.seeds
        for b in config.budgets
        for loop, own in loops.items()
        if b in own
    ]
