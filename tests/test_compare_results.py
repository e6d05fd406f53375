"""What a comparison says in words and shows as a table, from figures that are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from chordflow.errors import UserError
from chordflow.reporting.compare_table import markdown, render, table
from chordflow.reporting.side_by_side import SEEDS
from chordflow.results.compare import STEP_COUNTS, Comparison, Entry, Figures, Run, Untrained
from chordflow.results.compare_summary import Spread, headline, middle_seed, over_seeds
from chordflow.results.schema import GapRow, HeldOut, SuccessRow
from chordflow.results.statistics import Estimate, compare_success

ROOT = Path(__file__).resolve().parent.parent


def gap_row(policy: str, num_steps: int, rms: float) -> GapRow:
    return GapRow(
        policy, "euler", num_steps, num_steps, "converged", 100, rms, rms / 2, rms / 100, 1.0, 0.1, 8, 32,
        ratio_to_floor=Estimate(rms / 0.05, None), nearer_than_deployed=1 - rms,
    )  # fmt: skip


def figures(policy: str, *rms: float) -> Figures:
    return Figures(
        0.1, rms[0], None, [gap_row(policy, n, value) for n, value in zip(STEP_COUNTS, rms, strict=True)]
    )


TEACHER_SOLVES = [True] * 36 + [False] * 4


def success(policy: str, num_steps: int, successes: int, paired: bool = True) -> SuccessRow:
    own = [True] * successes + [False] * (40 - successes)
    versus = compare_success(own, TEACHER_SOLVES) if paired else None
    return SuccessRow(policy, "euler", num_steps, "all", successes, 40, versus_teacher=versus)


def run(method: str, seed: int, *rms: float, solved: int | None = None) -> Run:
    return Run(
        method, seed, f"{method}/seed_{seed}/pretrained_model", "0" * 64, 10.0 + seed, 1.0, 5, 20, 0.1, 99,
        figures=figures(method, *rms), success=[] if solved is None else [success(method, 1, solved)],
    )  # fmt: skip


def entry(name: str, step_counts: list[int] | None = None) -> Entry:
    return Entry(name, "method", "", name, {"method": {"type": name}}, True, step_counts)


def comparison(*runs: Run, teacher: tuple[float, float, float] = (0.3, 0.2, 0.05)) -> Comparison:
    names = dict.fromkeys(run.method for run in runs)
    return Comparison(
        command=["chordflow", "compare"], settings={}, versions={"chordflow": "0"}, device="cpu, 1 threads",
        teacher="a/b", teacher_sha256="1" * 64,
        methods=[entry(name, [1] if name == "one" else None) for name in names],
        seeds=sorted({run.seed for run in runs}), steps=5, seconds=None,
        held_out=HeldOut([3], 8, 16, False), untrained=Untrained(10, figures("teacher", *teacher)), runs=list(runs),
    )  # fmt: skip


CLEAR = [
    run("one", 0, 0.04, 0.5, 0.9, solved=38), run("one", 1, 0.05, 0.5, 0.9, solved=40),
    run("all", 0, 0.08, 0.07, 0.06, solved=35), run("all", 1, 0.09, 0.07, 0.06, solved=35),
    run("bad", 0, 0.4, 0.3, 0.2, solved=2), run("bad", 1, 0.6, 0.3, 0.2, solved=4),
]  # fmt: skip


def test_clear_winners_are_named() -> None:
    said = headline(comparison(*CLEAR))
    assert (
        "At one step one (4.5 %, 4.0 % to 5.0 % over 2 seeds) is nearest to the teacher's converged ODE."
        in said
    )
    # A student for one step alone is no candidate, and what counts is the worst of the step counts.
    assert (
        "At every step count (the worst of 1, 2 and 10) all (8.5 %, 8.0 % to 9.0 % over 2 seeds) is" in said
    )
    # The ranges over seeds do not overlap, but 40 episodes tell the two no further apart.
    assert (
        "no clear winner between one (95.0 %, 95.0 % to 100.0 % over 2 seeds) and all (87.5 %, 87.5 % to"
        in said
    )
    assert (
        "The untrained teacher at two steps is not as good as one at one by its gap (20 % against 4.5 %)."
        in said
    )


def test_where_ranges_overlap_nobody_is_named() -> None:
    runs = [run("a", 0, 0.04, 0.1, 0.1), run("a", 1, 0.08, 0.1, 0.1), run("b", 0, 0.07, 0.2, 0.2),
            run("b", 1, 0.09, 0.2, 0.2), run("c", 0, 0.2, 0.3, 0.3), run("c", 1, 0.3, 0.3, 0.3)]  # fmt: skip
    said = headline(comparison(*runs))
    assert (
        "At one step there is no clear winner between a (6.0 %, 4.0 % to 8.0 % over 2 seeds) and b (8.0 %"
        in said
    )
    assert "c (" not in said
    assert "At every step count (the worst of 1, 2 and 10) a (10 %" in said


def test_a_single_seed_has_no_winner() -> None:
    said = headline(comparison(CLEAR[0], CLEAR[2]))
    assert (
        "At one step there is no clear winner with a single seed between one (4.0 %) and all (8.0 %)." in said
    )
    assert "there is all (8.0 %) alone" in said


def test_entries_with_equal_settings_are_no_rivals() -> None:
    twice = comparison(*CLEAR, run("one again", 0, 0.04, 0.5, 0.9), run("one again", 1, 0.05, 0.5, 0.9))
    same = [*twice.methods[:-1], replace(twice.methods[-1], settings=twice.methods[0].settings)]
    assert "no clear winner between one (4.5 %" in headline(twice)
    assert headline(replace(twice, methods=same)) == headline(comparison(*CLEAR))


def test_a_student_that_made_no_step_wins_nothing() -> None:
    runs = [*CLEAR[2:], *(replace(run, steps=0) for run in CLEAR[:2])]
    said = headline(comparison(*runs))
    assert (
        said
        == f"{headline(comparison(*CLEAR[2:]))} Left out, because the budget was too small for a step: one."
    )
    assert "one (no step)" in [row[0].text for row in table(comparison(*runs)).rows]


def test_an_untrained_teacher_that_is_as_good_is_said_to_be() -> None:
    assert "is as good as one at one by its gap (5.0 % against 4.5 %)" in headline(
        comparison(*CLEAR, teacher=(0.2, 0.05, 0.01))
    )
    both = comparison(*CLEAR, teacher=(0.2, 0.051, 0.01))
    assert both.untrained is not None
    rows = [success("teacher", 1, 10), success("teacher", 2, 37), success("teacher", 10, 36, paired=False)]
    both = replace(both, untrained=replace(both.untrained, success=rows))
    said = headline(both)
    assert "is not as good as one at one by its gap" in said
    assert "and as good as one in episodes (92.5 % against 95.0 %)." in said


def test_success_over_seeds_is_one_seed_with_its_own_pairs() -> None:
    rows = [success("one", 1, 38), success("one", 1, 30), success("one", 1, 20)]
    # As many episodes as were run, however many students met them.
    assert middle_seed(rows) == rows[1]
    assert middle_seed(rows[:2]) == rows[1], "the lower of an even number"
    assert middle_seed([]) is None


def test_who_succeeds_most_often_needs_seeds_and_episodes_apart() -> None:
    clear = [run(name, seed, 0.1, 0.1, 0.1, solved=solved - seed) for name, solved in [("a", 40), ("b", 20)]
             for seed in (0, 1)]  # fmt: skip
    assert (
        "In episodes at one step a (97.5 %, 97.5 % to 100.0 % over 2 seeds) succeeds most often."
        in headline(comparison(*clear))
    )
    assert (
        "In episodes at one step there is no clear winner with a single seed between a (100.0 %) and b"
        in (headline(comparison(clear[0], clear[2])))
    )
    # A seed of the one that does as well as the least of the other.
    overlap = [*clear[:3], run("b", 1, 0.1, 0.1, 0.1, solved=39)]
    assert "In episodes at one step there is no clear winner between a (97.5 %" in headline(
        comparison(*overlap)
    )


def test_figures_over_seeds() -> None:
    found = over_seeds(
        comparison(*CLEAR), "bad", lambda run: run.figures.gaps[0].rms if run.figures else None
    )
    assert found == Spread(0.5, 0.4, 0.6, 2)
    assert over_seeds(comparison(*CLEAR), "nobody", lambda run: 1.0) is None


def test_the_table_has_the_teacher_then_medians_and_ranges() -> None:
    whole = comparison(*CLEAR)
    assert whole.untrained is not None
    rows = [success("teacher", 1, 10), success("teacher", 2, 37), success("teacher", 10, 36, paired=False)]
    whole = replace(whole, untrained=replace(whole.untrained, success=rows), env="drift")
    shown = [[cell.text for cell in row] for row in table(whole).rows]
    assert [row[0] for row in shown] == [
        "teacher, untrained", "- at two steps", "- deployed, at ten steps", "one", "- least to largest", "all",
        "- least to largest", "bad", "- least to largest",
    ]  # fmt: skip
    assert shown[0][1:7] == [
        "30.0", "30.0/15.0/0.3", "20.0/10.0/0.2", "5.0/2.5/0.1", "6.00/70.0", "25.0 [14.2, 40.2]",
    ]  # fmt: skip
    assert shown[2][6:9] == ["90.0 [76.9, 96.0]", "-", "-"]
    assert shown[3][1:3] == ["4.5", "4.5/2.2/0.0"]
    assert shown[3][5] == "0.90/95.5"
    assert shown[3][9:] == ["10", "20", "yes", "1"]
    assert shown[4][2] == "4.0-5.0/2.0-2.5/0.0-0.1"
    assert shown[4][5] == "0.80-1.00/95.0-96.0"
    assert shown[3][6:9] == ["95.0 [83.5, 98.6]", "+5.0 [-5.0, +16.7]", "0.500"]
    assert shown[4][6:9] == ["95.0-100.0", "+5.0 to +10.0", "0.125 to 0.500"]
    assert shown[5][-1] == "any"
    unfinished = [[cell.text for cell in row] for row in table(comparison(*CLEAR[:-1])).rows]
    assert unfinished[-1][0] == "bad (1 of 2 seeds)"
    text = markdown(whole)
    assert text.startswith("**At one step one ")
    assert "- device: cpu, 1 threads" in text
    assert "budget of a run: 5 steps; seeds 0, 1" in text
    # How success is taken over seeds is said only where there is an environment.
    assert SEEDS in text
    assert SEEDS not in markdown(replace(whole, env=""))


@pytest.mark.parametrize("width", [100, 140])
def test_figures_are_whole_on_a_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    large = run("noise_biased", 0, 1.234, 1.23, 1.234, solved=3)
    console.print(render(comparison(*CLEAR, large)))
    console.print(render(comparison(replace(large, success=[]))))
    text = console.export_text()
    assert "noise_biased (1/2) " in text
    assert "…" not in text
    for head in ("curva-", "ture %", "gap at 10, %:", "RMS/median/", "one step, %", "train-", "ing s"):
        assert head in text
    for figure in ("123.4/61.7/1.2 ", "4.5/2.2/0.0", "50.0/25.0/0.5", "90.0/45.0/0.9", "95.0 [83.5, 98.6]"):
        assert figure in text


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    whole = comparison(*CLEAR)
    whole.save(tmp_path / "compare.json")
    assert Comparison.load(tmp_path / "compare.json") == whole
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(UserError, match="is no readable result of chordflow compare"):
        Comparison.load(tmp_path / "compare.json")
    with pytest.raises(UserError, match=r"give a comparison's compare\.json"):
        Comparison.load(tmp_path / "nothing.json")
