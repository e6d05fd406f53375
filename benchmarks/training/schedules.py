"""Schedules of the coupling buffer against the loop without reuse, as a table and in words.

    python benchmarks/training/schedules.py --write

`time_training.py` makes the files, by the commands of README.md. `--write` puts what both say between the marks of
README.md; a test compares them.
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from chordflow.results.files import put_between

NAIVE = "naive"

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
        print(shown(json.loads(options.file.read_text(encoding="utf-8"))))
        return
    for mark, file in FILES.items():
        put_between(DOCUMENT, mark, shown(json.loads(file.read_text(encoding="utf-8"))))


def shown(bench: dict[str, Any]) -> str:
    """What stands between the marks of the document."""
    return f"{table(bench)}\n\n{said(bench)}"


def table(bench: dict[str, Any]) -> str:
    """The loops as a table in markdown: what they keep, and the gap and the speed at every budget."""
    budgets = bench["budgets"]
    marks = (f"{budget:g} s: gap, times naive" for budget in budgets)
    head = ("loop", "couplings a step", "observations", "M", "R", *marks, "naive's last gap")
    lines = [head, ("---", *["---:"] * (len(head) - 1))]
    for loop in bench["loops"]:
        seconds, at_most = time_to_naive(bench, loop)
        kept, times = loop["num_observations"], loop["gradient_accumulation_steps"]
        lines.append(
            (
                loop["name"],
                f"{loop['batch_size']} x {times}" if times > 1 else str(loop["batch_size"]),
                "-" if kept is None else f"{kept:,}",
                str(loop["noises_per_observation"]),
                str(loop["uses_per_coupling"] or "all"),
                *(_at(bench, loop["name"], budget) for budget in budgets),
                "-" if seconds == math.inf else f"{'≤ ' * at_most}{seconds:.0f} s",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def said(bench: dict[str, Any]) -> str:
    """What follows from it for the default schedule, whichever way it came out."""
    (loop,) = (loop for loop in bench["loops"] if loop["name"] == MEASURED_BY)
    last, budgets = max(bench["budgets"]), loop["budgets"] or bench["budgets"]
    worse = []
    for seed, mark in product(bench["seeds"], budgets):
        own, naive = run_of(bench, MEASURED_BY, seed, mark), run_of(bench, NAIVE, seed, mark)
        if own and naive and own["gap"]["rms"] > naive["gap"]["rms"]:
            worse.append(f"{mark:g} s with seed {seed}")
    seconds, _ = time_to_naive(bench, loop)
    when = "did not reach" if seconds == math.inf else f"reached after {seconds:.0f} s"
    way = f"The default schedule {when} the gap that the naive loop has after {last:g} s. "
    compared = len(bench["seeds"]) * len(budgets)
    return (
        f"Medians of {len(bench['seeds'])} seeds on {bench['device']}; the floor, the gap of the teacher as deployed, "
        f"is {100 * bench['floor']['rms']:.1f} %. {way if len(bench['budgets']) > 1 else ''}"
        f"The default schedule's gap was the smaller one in {compared - len(worse)} of "
        f"{compared} pairs of runs of the same seed and time"
        + (f"; the larger one at {', '.join(worse)}." if worse else ".")
    )


def run_of(bench: dict[str, Any], loop: str, seed: int, mark: float) -> dict[str, Any] | None:
    """The run of a loop with a seed for a budget; None where there is none."""
    asked = (loop, seed, mark)
    return next((run for run in bench["runs"] if (run["loop"], run["seed"], run["budget_s"]) == asked), None)


def time_to_naive(bench: dict[str, Any], loop: dict[str, Any]) -> tuple[float, bool]:
    """When a loop reaches the RMS gap of the naive loop at its last budget: the median over the seeds.

    Between two budgets the logarithm of the gap is taken to fall evenly over the logarithm of time.

    Returns:
        Seconds, infinite where fewer than half of the seeds reach it or none is done, and whether it may have been
        earlier, the first budget being enough already.
    """
    times, last = [], max(bench["budgets"])
    marks = loop["budgets"] or bench["budgets"]
    for seed in bench["seeds"]:
        naive = run_of(bench, NAIVE, seed, last)
        runs = [run for mark in marks if (run := run_of(bench, loop["name"], seed, mark))]
        if naive and len(runs) == len(marks):
            points = [(run["budget_s"], run["gap"]["rms"]) for run in runs]
            times.append(first_at_most(points, naive["gap"]["rms"]))
    if not times:
        return math.inf, False
    ordered = sorted(times)
    # A seed that never gets there is later than all others.
    middle = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return (middle[0][0] + middle[1][0]) / 2, middle[0][1] or middle[1][1]


def first_at_most(points: list[tuple[float, float]], target: float) -> tuple[float, bool]:
    """When a curve of (seconds, gap), with rising seconds, first comes down to a target, as `time_to_naive` says."""
    before: tuple[float, float] | None = None
    for seconds, gap in points:
        if gap <= target:
            if before is None or gap <= 0:
                return seconds, True
            share = math.log(before[1] / target) / math.log(before[1] / gap)
            return float(before[0] * (seconds / before[0]) ** share), False
        before = seconds, gap
    return math.inf, False


def _at(bench: dict[str, Any], loop: str, budget: float) -> str:
    """Gap, and samples a second over the naive loop's with the same seed: medians over the seeds that are done."""

    def rate(run: dict[str, Any]) -> float:
        return float(run["samples"] / run["seconds"])

    pairs = [[run_of(bench, name, seed, budget) for name in (loop, NAIVE)] for seed in bench["seeds"]]
    gaps = [own["gap"]["rms"] for own, _ in pairs if own]
    ratios = [rate(own) / rate(naive) for own, naive in pairs if own and naive and naive["samples"]]
    return f"{100 * median(gaps):.1f} %, {median(ratios):.1f}" if gaps and ratios else "-"


if __name__ == "__main__":
    main()
