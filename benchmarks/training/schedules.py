"""Schedules of the coupling buffer against the loop without reuse, as a table and in words.

    make demo
    chordflow bench training ...    (as in README.md)
    cp outputs/schedules/bench.json benchmarks/training/results/schedules.json
    cp outputs/variants/bench.json benchmarks/training/results/variants.json
    python benchmarks/training/schedules.py --write

`--write` puts what both files say between the marks of README.md, a test compares them.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from chordflow.results.bench import NAIVE, BenchLoop, TrainingBench
from chordflow.results.bench_summary import over_seeds, speed_ratio, time_to_naive
from chordflow.results.files import put_between

RESULTS = Path(__file__).parent / "results"
FILES = {"schedules": RESULTS / "schedules.json", "variants": RESULTS / "variants.json"}
"""By the marks of their tables: the default schedule at several budgets, and others at one."""
DOCUMENT = Path(__file__).parent / "README.md"
MEASURED_BY = "default"


def main() -> None:
    """Reads the command line; prints a table, or writes both into the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--file", type=Path, default=FILES["schedules"], help="bench.json to print")
    parser.add_argument("--write", action="store_true", help="write into README.md")
    options = parser.parse_args()
    if not options.write:
        print(shown(TrainingBench.load(options.file)))
        return
    for mark, file in FILES.items():
        put_between(DOCUMENT, mark, shown(TrainingBench.load(file)))


def shown(bench: TrainingBench) -> str:
    """What stands between the marks of the document."""
    return f"{table(bench)}\n\n{said(bench)}"


def table(bench: TrainingBench) -> str:
    """The loops as a table in markdown: what they keep, and the gap and the speed at every budget."""
    head = (
        "loop",
        "couplings a step",
        "observations",
        "M",
        "R",
        *(f"{b:g} s: gap, times naive" for b in bench.budgets),
        "naive's last gap",
    )
    lines = [head, ("---", *["---:"] * (len(head) - 1))]
    for loop in bench.loops:
        reached = time_to_naive(bench, loop.name)
        lines.append(
            (
                loop.name,
                _step_size(loop),
                "-" if loop.num_observations is None else f"{loop.num_observations:,}",
                str(loop.noises_per_observation),
                str(loop.uses_per_coupling or "all"),
                *(_at(bench, loop.name, b) for b in bench.budgets),
                "-" if reached is None else f"{'≤ ' * reached.at_most}{reached.seconds:.0f} s",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def said(bench: TrainingBench) -> str:
    """What follows from it for the default schedule, whichever way it came out."""
    assert bench.floor is not None
    (loop,) = (loop for loop in bench.loops if loop.name == MEASURED_BY)
    last, budgets = max(bench.budgets), _budgets(bench, loop)
    worse = []
    for seed, mark in product(bench.seeds, budgets):
        own, naive = bench.look(MEASURED_BY, seed, mark), bench.look(NAIVE, seed, mark)
        if own is not None and naive is not None and own.gap.rms > naive.gap.rms:
            worse.append(f"{mark:g} s with seed {seed}")
    reached = time_to_naive(bench, MEASURED_BY)
    when = "did not reach" if reached is None else f"reached after {reached.seconds:.0f} s"
    way = f"The default schedule {when} the gap that the naive loop has after {last:g} s. "
    compared = len(bench.seeds) * len(budgets)
    return (
        f"Medians of {len(bench.seeds)} seeds on {bench.device}; the floor, the gap of the teacher as deployed, is "
        f"{100 * bench.floor.rms:.1f} %. {way if len(bench.budgets) > 1 else ''}"
        f"The default schedule's gap was the smaller one in {compared - len(worse)} of "
        f"{compared} pairs of runs of the same seed and time"
        + (f"; the larger one at {', '.join(worse)}." if worse else ".")
    )


def _step_size(loop: BenchLoop) -> str:
    times = loop.gradient_accumulation_steps
    return f"{loop.batch_size} x {times}" if times > 1 else str(loop.batch_size)


def _at(bench: TrainingBench, loop: str, budget: float) -> str:
    """Gap and speed of a loop at a budget."""
    gap, ratio = (
        over_seeds(bench, loop, budget, lambda look: look.gap.rms),
        speed_ratio(bench, loop, budget),
    )
    return "-" if gap is None or ratio is None else f"{100 * gap:.1f} %, {ratio:.1f}"


def _budgets(bench: TrainingBench, loop: BenchLoop) -> list[float]:
    return loop.budgets or bench.budgets


if __name__ == "__main__":
    main()
