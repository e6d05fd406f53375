"""What a study of rounds says in words and shows as a table, from figures that are made up."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from chordflow.errors import UserError
from chordflow.reporting.rounds_plots import plots
from chordflow.reporting.rounds_table import markdown, render, table
from chordflow.reporting.side_by_side import SEEDS
from chordflow.reporting.study_page import rounds_page
from chordflow.results.compare import Untrained
from chordflow.results.paying import paying_rounds
from chordflow.results.rounds_study import Diversity, RoundArm, RoundRun, RoundsStudy
from chordflow.results.rounds_summary import headline, judged, standings, whole_seeds
from test_compare_results import figures, success

LAST, FIRST, ONCE = (
    RoundArm("last", "adams_bashforth", 0.0),
    RoundArm("first", "euler", 0.1),
    RoundArm("once", "adams_bashforth", 0.0),
)


def run(
    arm: RoundArm, round: int, seed: int, curvature: float, gap: float, kept: float | None = 0.5,
    solved: int | None = None,
) -> RoundRun:  # fmt: skip
    measured = replace(figures("student", gap, gap / 2, gap / 4), curvature=curvature)
    return RoundRun(
        arm.start_of(round), arm.solver, arm.real_data_share, round, seed, arm.steps_of(100, 3),
        f"{arm.name}/{round}/{seed}", "0" * 64, 20.0 + round, 64, 0.1,
        figures=measured, diversity=[Diversity(n, 0.9 - 0.1 * round, kept, 4) for n in (1, 2, 10)],
        success=[] if solved is None else [success("student", 1, solved)],
    )  # fmt: skip


def study(*runs: RoundRun, arms: list[RoundArm], seeds: list[int], solves: bool = False) -> RoundsStudy:
    teacher = replace(figures("teacher", 0.3, 0.2, 0.05), curvature=0.2)
    rows = [success("teacher", n, 36) for n in (1, 2, 10)] if solves else []
    return RoundsStudy(
        command=["chordflow", "study", "rounds"], settings={}, versions={"chordflow": "0"}, device="cpu, 1 threads",
        teacher="a/b", teacher_sha256="1" * 64, arms=arms, rounds=3, seeds=seeds, steps=100, least_gain=0.1,
        env="detour" if solves else "", untrained=Untrained(10, teacher, rows),
        diversity=[Diversity(1, 0.4, 0.0, 4), Diversity(2, 0.8, 0.5, 4), Diversity(10, 1.0, 1.0, 4)], runs=list(runs),
    )  # fmt: skip


def of_two_seeds(solved: int | None = None) -> RoundsStudy:
    """`last` drifts in its third round with the median, and with one of the two seeds in its second."""
    ways = {0: [(0.04, 0.10), (0.02, 0.09), (0.01, 0.11)], 1: [(0.05, 0.10), (0.03, 0.102), (0.02, 0.12)]}
    runs = [
        run(LAST, round, seed, *way, solved=solved)
        for seed, rounds in ways.items()
        for round, way in enumerate(rounds, 1)
    ]
    runs += [run(ONCE, 1, seed, 0.02, 0.06, solved=solved) for seed in (0, 1)]
    return study(*runs, arms=[LAST, ONCE], seeds=[0, 1], solves=solved is not None)


def test_the_first_sentence_says_where_another_round_stopped_paying() -> None:
    found = of_two_seeds()
    assert [round(one.gap, 4) for one in standings(found, LAST)] == [0.3, 0.1, 0.096, 0.115]
    said = headline(found)
    assert said.startswith(
        "Up to three rounds of 100 steps with 2 seeds, measured by curvature and by the gap at one step to the first "
        "teacher's converged ODE: with last, another round stopped paying after round 2, in 2 of 2 seeds as well "
        "(curvature 20 % -> 4.5 % -> 2.5 % -> 1.5 %, gap 30 % -> 10 % -> 9.6 % -> 12 %). "
        "One round of 300 steps instead: curvature 2.0 %, gap 6.0 % with once. "
    )
    assert said.endswith(
        "keep of the first teacher's spread over noise (and all modes, at so many of the observations that have "
        "several) 60 % (50 %) with last and 80 % (50 %) with once."
    )
    # The second round pays by the medians, and by itself in one seed of two.
    second = judged(found, LAST, 2)
    assert second is not None
    assert (second.gain.pays, second.pays, second.count) == (True, 1, 2)
    assert paying_rounds(standings(found, LAST), 0.1) == 2


def test_rounds_that_all_pay_and_rounds_that_never_do() -> None:
    falling = study(*(run(LAST, k, 0, 0.2 / 2**k, 0.3 / 2**k) for k in (1, 2, 3)), arms=[LAST], seeds=[0])
    assert "with last, round 3 still paid (curvature 20 % -> 10 % -> 5.0 % -> 2.5 %" in headline(falling)
    never = study(*(run(FIRST, k, 0, 0.2, 0.4) for k in (1, 2, 3)), arms=[FIRST], seeds=[0])
    assert "with first, euler, real 0.1, not even round 1 paid (curvature" in headline(never)
    without_modes = study(*(run(LAST, k, 0, 0.1, 0.1, None) for k in (1, 2, 3)), arms=[LAST], seeds=[0])
    assert headline(without_modes).endswith("keep of the first teacher's spread over noise 60 % with last.")


def test_seeds_are_judged_whole_or_not_at_all() -> None:
    """Medians over other seeds in each round would be falls that nobody made."""
    found = of_two_seeds()
    missing = replace(found, runs=[one for one in found.runs if (one.round, one.seed) != (3, 1)])
    assert whole_seeds(missing, LAST) == [0]
    assert [one.gap for one in standings(missing, LAST)] == [0.3, 0.1, 0.09, 0.11]
    assert "with 1 of 2 seeds so far" in headline(missing)
    assert "| last (1/2 seeds) | 3 |" in markdown(missing)
    assert headline(replace(found, runs=found.runs[:2])) == "No seed has all its rounds yet."
    assert headline(replace(found, untrained=None, runs=[])) == "No seed has all its rounds yet."


def test_the_table_shows_medians_ranges_and_falls() -> None:
    section = table(of_two_seeds())
    rows = {(row[0].text, row[1].text): [cell.text for cell in row] for row in section.rows if row[1].text}
    assert rows["last", "2"][2] == "2.5"
    assert rows["last", "2"][3] == "9.6/4.8/0.1"
    assert rows["last", "2"][6:8] == ["70.0", "50.0"]
    assert rows["last", "2"][11:14] == ["44", "4", "yes (1/2)"]
    assert rows["last", "3"][11:14] == ["40", "-20", "no (0/2)"]
    assert rows["teacher, untrained", "0"][6:8] == ["40.0", "0.0"]
    ranges = [[cell.text for cell in row] for row in section.rows if row[0].text == "- least to largest"]
    assert ranges[1][2:4] == ["2.0-3.0", "9.0-10.2/4.5-5.1/0.1-0.1"]
    assert all(len(row) == len(section.heads) for row in section.rows)
    # Only a terminal's columns are too narrow for whole words.
    assert "| curvature % |" in markdown(of_two_seeds())


@pytest.mark.parametrize("solved", [None, 30])
def test_success_is_explained_only_where_episodes_were_run(solved: int | None) -> None:
    assert (SEEDS in markdown(of_two_seeds(solved))) is (solved is not None)


def test_the_plots_go_from_the_untrained_teacher_over_all_steps() -> None:
    drawn = {plot.key: plot for group in plots(of_two_seeds(30)) for plot in group}
    assert list(drawn) == ["curvature", "gap-1", "gap-2", "gap-10", "spread", "modes", "success"]
    band, last, _, once = drawn["gap-1"].figure.data
    assert (list(last.x), list(last.y)) == ([0, 100, 200, 300], [30, 10, 9.6, 11.5])
    assert list(band.y) == [30, 10, 10.2, 12, 11, 9, 10, 30]
    # One round of the steps of three stands above the third of the others.
    assert (list(once.x), list(once.y)) == ([0, 300], [30, 6])
    assert (
        "after the last round last 12 % (11 % to 12 %); once 6.0 % (6.0 % to 6.0 %)" in drawn["gap-1"].caption
    )
    assert list(drawn["modes"].figure.data[1].y) == [0, 50, 50, 50]
    assert list(drawn["success"].figure.data[1].y) == [90, 75, 75, 75]
    without = {plot.key for group in plots(of_two_seeds()) for plot in group}
    assert without == set(drawn) - {"success"}
    assert list(drawn["modes"].figure.layout.xaxis.tickvals) == [0, 100, 200, 300]
    assert plots(replace(of_two_seeds(), runs=[])) == []


def test_the_page_is_whole_and_escaped() -> None:
    found = replace(of_two_seeds(30), teacher="a/<b>", settings={"steps": 100, "env": {"type": "<i>"}})
    text = rounds_page(found)
    outside = text.partition("<script>")[0] + text.rpartition("</script>")[2]
    assert "a/&lt;b&gt;" in text
    assert not re.search("<b>|<i>", outside)
    held = json.loads(re.findall(r'id="plots">(.*?)</script>', text)[0])
    assert set(re.findall(r'data-plot="([\w-]+)"', text)) == set(held)
    needed = (
        "curvature 20 % → 4.5 % → 2.5 %",
        "3 rounds of 100 steps, seeds 0, 1",
        "Made by chordflow from rounds.json",
        "env.type",
    )
    assert all(part in html.unescape(text) for part in needed)


@pytest.mark.parametrize("solved", [None, 30])
def test_the_terminal_has_room_for_it(solved: int | None) -> None:
    found = of_two_seeds(solved)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(found))
    text = console.export_text()
    assert "…" not in text
    assert all(head in text for head in ("round", "curva-", "spread", "pays"))
    assert max(map(len, text.splitlines())) <= 100
    assert "observations with several modes: 4" in text
    assert "a round pays: where curvature or the gap at one step falls by 10 % or more" in text
    if solved is not None:
        assert "75.0 [" in text
        assert (
            "Success at one step from the first round to the last: 75.0 % -> 75.0 % with last and 75.0 % with once "
            "(the teacher as deployed 90.0 %)." in " ".join(text.split())
        )


def test_a_file_comes_back_and_something_else_is_refused(tmp_path: Path) -> None:
    found, path = of_two_seeds(12), tmp_path / "rounds.json"
    found.save(path)
    assert RoundsStudy.load(path) == found
    path.write_text("{}")
    with pytest.raises(UserError, match="no readable result of chordflow study rounds"):
        RoundsStudy.load(path)


def test_names_are_whole_where_no_terminal_says_how_wide_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from chordflow.console import PIPED_WIDTH, _console

    monkeypatch.delenv("COLUMNS", raising=False)
    assert _console().width == PIPED_WIDTH >= 100
    monkeypatch.setenv("COLUMNS", "90")
    assert _console().width == 90
