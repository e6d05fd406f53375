"""The benchmark of schedules: its document shows its results, and what is said of them follows from them."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from chordflow.couplings import BufferConfig
from chordflow.experiments.bench_config import Schedule
from chordflow.results.bench import NAIVE, BenchLoop, TrainingBench
from script_files import load_script
from test_bench_results import BENCH, run

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "training" / "schedules.py"


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script(SCRIPT)


@pytest.mark.docs
@pytest.mark.parametrize("mark", ["schedules", "variants"])
def test_the_document_shows_the_results(script: Any, mark: str) -> None:
    text = script.DOCUMENT.read_text(encoding="utf-8")
    shown = text.split(f"<!-- {mark} -->\n")[1].split(f"<!-- /{mark} -->")[0]
    assert shown == script.shown(TrainingBench.load(script.FILES[mark])) + "\n"


def test_the_default_schedule_is_the_one_measured(script: Any) -> None:
    for file in script.FILES.values():
        (loop,) = (loop for loop in TrainingBench.load(file).loops if loop.name == "default")
        assert replace(loop, budgets=None) == Schedule(buffer=BufferConfig()).described("default")
    text = (SCRIPT.parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `--buffer.(\w+)` \| ([\d.]+) \|", text, re.MULTILINE))
    assert {name: str(getattr(BufferConfig, name)) for name in rows} == rows
    assert len(rows) == len(fields(BufferConfig)) - 1


def test_what_is_said_follows_from_the_runs(script: Any) -> None:
    loops = [BenchLoop(NAIVE, 64), BenchLoop("default", 64, 1, 4, 12, 512, 64, 0.5)]
    runs = [replace(r, loop="default" if r.loop == "wide" else r.loop) for r in BENCH.runs]
    bench = replace(BENCH, loops=loops, runs=runs)
    rows = script.table(bench).splitlines()
    assert rows[2] == "| naive | 64 | - | 1 | 1 | 44.0 %, 1.0 | 22.0 %, 1.0 | 40 s |"
    assert rows[3] == "| default | 64 | 512 | 4 | 12 | 44.0 %, 5.0 | 11.0 %, 5.0 | 20 s |"
    assert "reached after 20 s the gap that the naive loop has after 40 s" in script.said(bench)
    assert script.said(bench).endswith("the smaller one in 6 of 6 pairs of runs of the same seed and time.")
    slow = replace(bench, runs=[*runs[:-1], run("default", 2, {40.0: 0.9}, 500)])
    assert script.said(slow).endswith(
        "in 5 of 6 pairs of runs of the same seed and time; the larger one at 40 s with seed 2."
    )
