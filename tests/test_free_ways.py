"""What can be had without training: which ways are tried, on which episodes, and what is said of them."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from chordflow.evaluation.free import GRID_POWERS, candidates
from chordflow.experiments.arms import _Rollouts
from chordflow.flow.solvers import SOLVERS, get_solver
from chordflow.policies import FlowPolicy
from chordflow.reporting.card import card
from chordflow.reporting.flow_tables import summary
from chordflow.reporting.table import markdown, render
from chordflow.results.findings import findings, verdict
from chordflow.results.schema import (
    LEAST_NOISE_SHARE,
    FreeWays,
    GapRow,
    ObservationSpread,
    PolicyInfo,
    Results,
)
from chordflow.results.statistics import Estimate
from closed_forms import GaussianFlow
from report_samples import gap, ratio, sample, success

OLDER = Path(__file__).parent.parent / "benchmarks" / "metaworld" / "results" / "tried"


@given(nfe=st.integers(1, 24))
@settings(max_examples=12, deadline=None)
def test_no_way_is_tried_twice_under_two_names(nfe: int) -> None:
    flow = GaussianFlow(torch.ones(1, 1, 3).double(), torch.tensor([[[0.2, 0.5, 0.9]]]).double())
    noise = torch.tensor([[[0.3, -1.2, 2.0]]]).double()
    evaluations = 0

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal evaluations
        evaluations += 1
        return flow.velocity(x, t)

    ends, ways = [], candidates(nfe)
    assert ways[0] == ("euler", nfe, 1.0)
    for way in ways:
        evaluations = 0
        end = get_solver(way.solver).integrate(velocity, noise, way.num_steps, grid_power=way.grid_power)
        assert evaluations == way.nfe == nfe
        ends.append(tuple(round(float(x), 9) for x in end.flatten()))
    assert len(set(ends)) == len(ends)
    if nfe >= 4 and nfe % 2 == 0:
        assert {way.solver for way in ways} == set(SOLVERS)
        assert {way.grid_power for way in ways} == set(GRID_POWERS)


def best_ways(*rows: GapRow) -> FreeWays:
    return FreeWays([0], [1, 2], list(rows), [])


def two(rms: float) -> GapRow:
    return gap("teacher", 2, "converged", rms, grid_power=2.0, ratio_to_untrained=ratio(0.8, 0.7, 0.9))


AB4 = gap("teacher", 3, "converged", 0.05, solver="adams_bashforth", nfe=4, grid_power=2.0,
          ratio_to_untrained=ratio(0.5, 0.4, 0.6))  # fmt: skip


@pytest.mark.parametrize(("free", "student", "further", "expected"), [
    (None, 2, [3], [(2, "euler", 1.0), (3, "euler", 1.0), (1, "midpoint", 1.0)]),
    (best_ways(AB4, two(0.1)), 1, [2, 4],
     [(1, "euler", 1.0), (2, "euler", 1.0), (4, "euler", 1.0), (2, "euler", 2.0), (3, "adams_bashforth", 2.0)]),
    (best_ways(gap("teacher", 2, "converged", 0.1)), 2, [], [(2, "euler", 1.0)]),
    (best_ways(gap("teacher", 9, "converged", 0.01, solver="adams_bashforth", nfe=10)), 10, [20],
     [(20, "euler", 1.0)]),
])  # fmt: skip
def test_episodes_are_run_by_the_best_way(
    free: FreeWays | None, student: int, further: list[int], expected: list[tuple[int, str, float]]
) -> None:
    options = SimpleNamespace(n_episodes=2, num_clips=0, teacher_num_steps=further)
    config: Any = SimpleNamespace(seed=0, env=None, eval=options)
    entrants: Any = {
        name: SimpleNamespace(name=name, policy=FlowPolicy, num_steps=num_steps, folder=Path("none"))
        for name, num_steps in (("teacher", 10), ("student", student))
    }
    runner: Any = SimpleNamespace(tasks=lambda: {("", 0): None})
    arms = _Rollouts(config, entrants, runner, free)._untrained()
    assert [(arm.num_steps, arm.solver, arm.grid_power) for arm in arms] == expected
    assert len({arm.key for arm in arms}) == len({arm.label for arm in arms}) == len(arms)


FLOOR = gap("teacher", 10, "converged", 0.06)


def spreads(share: float) -> list[ObservationSpread]:
    """Two observations over which noise explains this share of the variance."""
    variances = (0.5 * share, 1.5 * share)
    return [ObservationSpread(i, i, 0, "", value**0.5, 1, [1.0]) for i, value in enumerate(variances)]


def with_free(ways: list[GapRow], others: list[GapRow], **changes: Any) -> Results:
    return sample(free=FreeWays([0], [1, 2], ways, others), latency=None, success=[], **changes)


def said(results: Results) -> dict[str, str]:
    return {finding.rule: finding.text for finding in findings(results)}


@pytest.mark.parametrize(("rms", "floor", "student", "expected"), [
    # On its own pairs it is within their floor, whatever the floor of all pairs (4.3 %) is.
    (0.055, 0.06, 0.03, "Two untrained euler steps with grid power 2 are enough: they lie within the floor"),
    (0.061, 0.06, 0.07, "Two untrained euler steps with grid power 2 (not in stock LeRobot) lie at least as near"),
    (0.04, 0.03, 0.03, "At one step the student's action gap to the"),
])  # fmt: skip
def test_the_verdict_holds_the_best_way_to_its_own_pairs(
    rms: float, floor: float, student: float, expected: str
) -> None:
    others = [gap("teacher", 10, "converged", floor), gap("student", 1, "converged", student)]
    assert verdict(with_free([two(rms)], others)).startswith(expected)


@pytest.mark.parametrize(("row", "said", "name"), [
    (gap("teacher", 1, "converged", 0.05, solver="heun", nfe=2), "One untrained heun step (two evaluations, not in "
     "stock LeRobot) lies at least as near", ["teacher, heun (2 evaluations)", "1"]),
    (gap("teacher", 2, "converged", 0.05), "Two untrained steps lie at least as near", ["teacher", "2"]),
])  # fmt: skip
def test_the_way_that_a_verdict_names_is_in_its_table(row: GapRow, said: str, name: list[str]) -> None:
    results = sample(success=[])
    gaps = [r for r in results.gaps if (r.policy, r.num_steps) == ("student", 1) or r == results.floor]
    results = replace(
        results, gaps=[*gaps, row, *(gap("teacher", n, "converged", 0.9) for n in range(11, 31))]
    )
    assert verdict(results).startswith(said)
    for one in (
        results,
        replace(results, student=None, kind="diagnose", gaps=[*results.gaps, replace(row, rms=0)]),
    ):
        rows = summary(one).rows
        assert name in [[cell.text for cell in cells[:2]] for cells in rows]
        assert len(rows) <= 10


def test_stock_steps_come_before_the_best_way_at_the_same_cost() -> None:
    results, at_two = with_free([two(0.01)], [FLOOR]), ("teacher", 2, "converged")
    gaps = [row for row in results.gaps if (row.policy, row.num_steps, row.reference) != at_two]
    results = replace(results, gaps=[*gaps, gap("teacher", 2, "converged", 0.02)])
    text = said(results)["no_training_needed"]
    assert text.startswith("Two untrained steps are enough: they lie within the floor")
    assert "set the number of steps to 2" in text


def test_other_solvers_are_the_best_ways_where_these_were_looked_for() -> None:
    midpoint = gap("teacher", 1, "converged", 0.02, solver="midpoint", nfe=2)
    # On all pairs it was not chosen, so it is no news.
    results = with_free([two(0.08)], [FLOOR, gap("student", 1, "converged", 0.05)])
    results = replace(results, gaps=[*results.gaps, midpoint])
    assert "midpoint" not in verdict(results)
    assert "midpoint" in verdict(replace(results, free=None))


@pytest.mark.parametrize(("counts", "expected"), [
    (None, "0.40 (0.30 to 0.50) at two, 1.02 (0.90 to 1.20) at four, 3.00 at ten; at four and ten it does not"),
    ([1], None),
    ([1, 2], "0.40 (0.30 to 0.50) at two."),
])  # fmt: skip
def test_the_claim_is_the_one_that_the_best_way_leaves(
    counts: list[int] | None, expected: str | None
) -> None:
    ratios = {1: None, 2: ratio(0.4, 0.3, 0.5), 4: ratio(1.02, 0.9, 1.2), 10: Estimate(3.0, None)}
    others = [gap("student", steps, "converged", 0.05, ratio_to_free=own) for steps, own in ratios.items()]
    info = PolicyInfo("student", "s", "smolvla", 1, 1, "a" * 64, counts)
    text = said(with_free([], others, policies=[info])).get("student_beside_the_best_way")
    assert (text is None) is (expected is None)
    assert text is None or expected is None or expected in text


def test_a_better_solver_is_told_for_the_fewest_evaluations_and_as_deployed() -> None:
    deployed = gap("teacher", 9, "converged", 0.016, solver="adams_bashforth", nfe=10, grid_power=2.0,
                   ratio_to_untrained=ratio(0.25, 0.2, 0.3))  # fmt: skip
    assert said(with_free([AB4, deployed], [FLOOR]))["better_solver"] == (
        "At four evaluations adams_bashforth with grid power 2 is nearer to the converged ODE than even Euler steps "
        "(5.0 % against 10 % RMS), at ten evaluations adams_bashforth with grid power 2 is nearer to the converged ODE "
        "than even Euler steps (1.6 % against 6.4 % RMS)."
    )


@pytest.mark.parametrize("share", [0.0, 0.0199, 0.02, 0.1, 1.0])
def test_the_harder_normalisation_is_told_where_it_means_something(share: float) -> None:
    results = sample(spreads=spreads(share), latency=None, success=[])
    assert results.noise_share == pytest.approx(share)
    row = results.gap("student", 1, "deployed")
    assert row is not None
    texts = (verdict(results), markdown(results), card(results))
    assert "noise decides" in texts[0]
    assert "noise decides" not in verdict(sample())
    if share >= LEAST_NOISE_SHARE:
        value = results.of_noise(row.rms)
        assert value == pytest.approx(0.091 / share**0.5)
        assert all(f"{100 * value:.0f} %" in text or f"{100 * value:.1f} %" in text for text in texts)
        assert "of what noise decides" in texts[0]
        return
    assert results.of_noise(row.rms) is None
    assert "9.1 % RMS of the whole spread or 0.273 in the robot's units" in texts[0]
    assert "see the differences in the robot's units" in texts[1]
    assert "of noise |" not in texts[1]


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("student", [True, False])
def test_tables_hold_both_normalisations_and_the_best_ways(width: int, student: bool) -> None:
    others = [FLOOR, *([gap("student", 4, "converged", 0.07)] if student else [])]
    results = with_free([AB4, replace(AB4, reference="deployed", reference_num_steps=10)], others)
    results = replace(results, spreads=spreads(0.1))
    file = io.StringIO()
    Console(width=width, file=file, force_terminal=False).print(render(results, verbose=True))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    (line,) = [line for line in lines if line.startswith("adams_bashforth")]
    # Evaluations, RMS, relative to noise, even Euler's and the student's on the same pairs.
    expected = ["4", "5.0", "%", "16", "%", "10.0", "%", *(["7.0", "%"] if student else [])]
    assert line.split()[-len(expected) :] == expected


def test_rows_of_named_solvers_are_said_to_need_a_sampler() -> None:
    note = "Stock LeRobot runs rows without a named solver alone"
    even = [row for row in sample().gaps if row.is_stock]
    assert note in markdown(sample())
    assert note not in markdown(sample(gaps=even))
    graded = replace(success("teacher", 2, 0.9, None), grid_power=2.0)
    assert note in markdown(sample(gaps=even, success=[*sample().success, graded]))


@pytest.mark.parametrize(("name", "share"), [("euler_endpoints", 0.0228), ("four_tokens_9000", 0.0041)])
def test_published_files_of_older_layouts_are_read(name: str, share: float) -> None:
    results = Results.load(OLDER / f"{name}.json")
    assert {row.grid_power for row in results.gaps} | {row.grid_power for row in results.success} == {1.0}
    assert results.noise_share == pytest.approx(share, abs=1e-4)
    assert (results.of_noise(0.1) is None) == (share < 0.02)
