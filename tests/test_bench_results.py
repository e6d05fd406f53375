"""A benchmark's file and what its runs say together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chordflow.errors import UserError
from chordflow.reporting.bench_table import markdown, render
from chordflow.results.bench import (
    NAIVE,
    BenchGap,
    BenchLoop,
    BenchRun,
    Look,
    Roofline,
    Speed,
    TrainingBench,
    Work,
)
from chordflow.results.bench_summary import Reached, first_at_most, over_seeds, speed_ratio, time_to_naive


def run(loop: str, seed: int, marks: dict[float, float], per_s: int) -> BenchRun:
    looks = [
        Look(m, m + 0.5, 3, round((m + 0.5) * per_s), BenchGap(g, g / 2, 0.01, g * 0.9))
        for m, g in marks.items()
    ]
    return BenchRun(loop, seed, max(marks), 1.0, 30.0, 0.1, 10_000_000, 500_000_000, looks)


ROOFLINE = Roofline(
    "float32", 5e10, 17, 10, Work(2, 4_000, 0.1), Work(4, 400, 0.01), Work(4, 1_200, 0.02), 26_000, 4_096
)
BENCH = TrainingBench(
    command=["chordflow", "bench", "training"], settings={}, versions={"torch": "2"}, device="cpu, 1 threads",
    teacher="t", teacher_num_steps=10,
    loops=[
        BenchLoop(NAIVE, 64), BenchLoop("wide", 64, 2, 4, 12, 2048, 64, 0.5), BenchLoop("once", 64, 1, 2, None, 8, 8),
    ],
    budgets=[10.0, 40.0], seeds=[0, 1, 2], clock="wall", pairs=800,
    floor=BenchGap(0.04, 0.03, 0.0, 0.0), untrained=BenchGap(0.25, 0.17, 0.05, 0.23), roofline=ROOFLINE,
    runs=[
        run(loop, seed, {mark: gap * (1 + seed / 10)}, per_s)
        for loop, per_s, gaps in ((NAIVE, 100, {10.0: 0.4, 40.0: 0.2}), ("wide", 500, {10.0: 0.4, 40.0: 0.1}))
        for seed in range(3)
        for mark, gap in gaps.items()
    ],
)  # fmt: skip


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    BENCH.save(path)
    assert TrainingBench.load(path) == BENCH
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "rusn": []}))
    with pytest.raises(UserError, match=r"bench.json is no readable result .*rusn"):
        TrainingBench.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        TrainingBench.load(tmp_path / "nothing.json")
    path.write_text("{")
    with pytest.raises(UserError, match="no readable result"):
        TrainingBench.load(path)


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    bad = replace(BENCH, floor=BenchGap(float("nan"), 0.0, 0.0, 0.0))
    with pytest.raises(UserError, match=r"floor\.rms"):
        bad.save(tmp_path / "bench.json")
    assert not list(tmp_path.iterdir())


def test_medians_are_over_seeds() -> None:
    assert over_seeds(BENCH, "wide", 40.0, lambda look: look.gap.rms) == pytest.approx(0.11)
    assert over_seeds(BENCH, "once", 40.0, lambda look: look.gap.rms) is None
    assert speed_ratio(BENCH, "wide", 40.0) == pytest.approx(5.0, rel=1e-3)
    assert speed_ratio(BENCH, "once", 40.0) is None


@pytest.mark.parametrize(
    ("points", "target", "found"),
    [
        ([(10.0, 0.4), (40.0, 0.1)], 0.2, Reached(20.0, False)),
        ([(10.0, 0.4), (40.0, 0.1)], 0.1, Reached(40.0, False)),
        ([(10.0, 0.4), (40.0, 0.1)], 0.4, Reached(10.0, True)),
        ([(10.0, 0.4), (40.0, 0.1)], 0.09, None),
        ([(10.0, 0.4), (20.0, 0.5), (40.0, 0.0)], 0.2, Reached(40.0, True)),
    ],
)
def test_when_a_gap_is_reached(
    points: list[tuple[float, float]], target: float, found: Reached | None
) -> None:
    reached = first_at_most(points, target)
    if found is None:
        assert reached is None
    else:
        assert reached is not None
        assert (reached.seconds, reached.at_most) == (pytest.approx(found.seconds), found.at_most)


def test_time_to_the_naive_loops_gap() -> None:
    reached = time_to_naive(BENCH, "wide")
    assert reached is not None
    # Every seed's gaps have one factor in both loops, so that all three cross at the same time.
    assert (reached.seconds, reached.at_most) == (pytest.approx(20.0), False)
    assert time_to_naive(BENCH, "once") is None
    # A loop that is run at one of the budgets alone can be there by then.
    loops = [replace(loop, budgets=[40.0]) if loop.name == "wide" else loop for loop in BENCH.loops]
    alone = replace(BENCH, loops=loops, runs=[r for r in BENCH.runs if r.loop == NAIVE or r.budget_s == 40.0])
    assert time_to_naive(alone, "wide") == Reached(40.0, True)
    worse = [
        r if r.loop == NAIVE or r.seed == 0 else run("wide", r.seed, {r.budget_s: 0.9}, 500)
        for r in BENCH.runs
    ]
    assert time_to_naive(replace(BENCH, runs=worse), "wide") is None
    one = replace(BENCH, runs=[r for r in worse if r.seed < 2], seeds=[0, 1])
    assert time_to_naive(one, "wide") is None


def test_a_run_annealed_to_a_mark_stands_for_it() -> None:
    passing = run("wide", 0, {10.0: 0.9, 40.0: 0.1}, 500)
    bench = replace(BENCH, runs=[passing, *BENCH.runs])
    look = bench.look("wide", 0, 10.0)
    assert look is not None
    assert look.gap.rms == 0.4


def test_operations_of_a_sample_are_counted() -> None:
    # Two encodings of 2000, ten passes of 100, a step of 300.
    naive, wide, once = BENCH.loops
    assert ROOFLINE.flop_per_sample(naive) == 2 * 2000 + 10 * 100 + 300
    assert ROOFLINE.flop_per_sample(wide) == pytest.approx((2000 / 4 + 1700) / 12 + 300)
    assert ROOFLINE.flop_per_sample(once) == 300


def test_the_table_shows_what_was_measured() -> None:
    text = markdown(BENCH)
    first = text.split("\n\n")[1]
    rows = {line.split("|")[1].strip(): line for line in first.splitlines()}
    assert "| 5.00 |" in rows["wide"]
    assert "44.0 / 22.0" in rows["wide"]
    assert "11.0 / 5.5" in rows["wide"]
    assert "20.0 s" in rows["wide"]
    assert rows["once"].count(" - ") >= 4
    assert "25.0" in text
    assert "4.0" in text
    # Counted: 5300 / 483.3 operations.
    assert "| 11.0 |" in text
    assert render(BENCH) is not None


def test_speed_alone_makes_a_table_too() -> None:
    speeds = [Speed(NAIVE, 4, 1, 40.0, 0, None), Speed("wide", 48, 12, 24.0, 6_000_000, 3_000_000_000)]
    bench = replace(
        BENCH, runs=[], speeds=speeds, floor=None, untrained=None, budgets=[], seeds=[], loops=BENCH.loops[:2]
    )
    text = markdown(bench)
    assert "| 20.0 |" in text
    assert "gap at" not in text
