"""What a study of beginnings says: steps to a level, what is told beside what is measured, tables, page."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from chordflow.reporting.init_study_plots import plots
from chordflow.reporting.init_study_table import markdown, render, sections
from chordflow.reporting.study_page import init_page
from chordflow.results.codec import decode, encode
from chordflow.results.compare import Figures, Untrained
from chordflow.results.init_study import Arm, Checkpoint, InitRun, InitStudy, LeftOut
from chordflow.results.init_study_summary import gap, headline, loss_at, reached, same_couplings, success
from chordflow.results.schema import GapRow, HeldOut, LossCurve, SuccessRow
from chordflow.results.statistics import compare_success

AT = [0, 100, 200]
TEACHER, RANDOM = (
    Arm("teacher", "teacher", ["action_head"], 1e-4),
    Arm("random", "random", ["action_head"], 1e-4),
)


def figures(rms: float) -> Figures:
    gaps = [
        GapRow("student", "euler", n, n, "converged", 100, rms * n, rms / 2, 0.01, 1.0, 0.1, 5, 80)
        for n in (1, 2, 10)
    ]
    return Figures(0.1, 0.2, None, gaps)


def acted(rate: float) -> list[SuccessRow]:
    own = [True] * round(10 * rate) + [False] * (10 - round(10 * rate))
    return [SuccessRow("student", "euler", 1, "all", sum(own), 10, compare_success(own, [True] * 10))]


def run_of(arm: Arm, seed: int, rms: list[float], losses: list[float], couplings: str = "a") -> InitRun:
    checkpoints = [
        Checkpoint(step, f"s/step_{step}", "0", figures(value), acted(1 - value))
        for step, value in zip(AT, rms, strict=True)
    ]
    return InitRun(
        arm.name, seed, 60.0 + seed, 6400, couplings, LossCurve([1, 50, 100, 200], losses), checkpoints
    )


@pytest.fixture
def study() -> InitStudy:
    """Two arms over three seeds."""
    runs = [
        run_of(TEACHER, 0, [0.3, 0.04, 0.03], [0.04, 0.03, 0.02, 0.01]),
        run_of(TEACHER, 1, [0.3, 0.06, 0.04], [0.05, 0.03, 0.02, 0.01]),
        run_of(TEACHER, 2, [0.3, 0.09, 0.02], [0.06, 0.03, 0.02, 0.01]),
        run_of(RANDOM, 0, [0.9, 0.5, 0.2], [0.2, 0.15, 0.12, 0.08]),
        run_of(RANDOM, 1, [0.9, 0.5, 0.04], [0.2, 0.15, 0.12, 0.08]),
        run_of(RANDOM, 2, [0.9, 0.5, 0.3], [0.2, 0.15, 0.12, 0.08]),
    ]
    return InitStudy(
        command=["chordflow", "study", "init", "--arms=[teacher,random]"],
        settings={"steps": 200},
        versions={"torch": "2"},
        device="cpu",
        teacher="a/<b>",
        teacher_sha256="0",
        arms=[TEACHER, RANDOM],
        left_out=[LeftOut("pretrained_vlm", "it has none")],
        seeds=[0, 1, 2],
        steps=200,
        at=AT,
        level=0.05,
        env="drift",
        held_out=HeldOut([4, 5], 10, 16, True),
        untrained=Untrained(10, figures(0.3)),
        runs=runs,
    )


def test_a_study_is_read_back_as_it_was(study: InitStudy) -> None:
    assert decode(InitStudy, json.loads(json.dumps(encode(study)))) == study


def test_the_first_checkpoint_under_the_level_counts(study: InitStudy) -> None:
    teacher, random = reached(study, TEACHER), reached(study, RANDOM)
    assert teacher is not None
    assert random is not None
    assert (teacher.steps, teacher.runs, teacher.text) == ([100, 200, 200], 3, "100-200")
    assert (random.steps, random.text) == ([200], "200 (1 of 3)")
    never = reached(replace(study, level=0.001), RANDOM)
    assert never is not None
    assert never.text == "never"
    assert reached(replace(study, runs=[]), RANDOM) is None
    # The median is under it long before the RMS, which counts flips in full.
    middle = reached(study, TEACHER, "median")
    assert middle is not None
    assert middle.text == "100"


def test_figures_are_over_seeds(study: InitStudy) -> None:
    spread = gap(study, TEACHER, 100)
    assert spread is not None
    assert (spread.low, spread.middle, spread.high, spread.count) == (0.04, 0.06, 0.09, 3)
    tenfold = gap(study, TEACHER, 100, 10)
    assert tenfold is not None
    assert tenfold.middle == pytest.approx(0.6)
    row = success(study, RANDOM, 200)
    assert row is not None
    # Of the seeds' 8, 10 and 7.
    assert (row.successes, row.episodes) == (8, 10)
    assert [loss_at(study.runs[0], step) for step in (0, 49, 50, 100, 150, 500)] == [
        0.04,
        0.04,
        0.03,
        0.02,
        0.02,
        0.01,
    ]
    # Only the seeds that are asked for.
    assert gap(replace(study, seeds=[1]), TEACHER, 100) == gap(
        replace(study, runs=study.runs[1:2]), TEACHER, 100
    )


def test_couplings_that_differ_are_told(study: InitStudy) -> None:
    assert same_couplings(study) is True
    other = replace(study.runs[3], couplings_sha256="b")
    differs = replace(study, runs=[*study.runs[:3], other, *study.runs[4:]])
    assert same_couplings(differs) is False
    assert "couplings: of a seed not the same to the bit in all arms" in markdown(differs)
    assert same_couplings(replace(study, runs=study.runs[:3])) is None


def test_the_first_line_sets_what_is_told_beside_what_is_measured(study: InitStudy) -> None:
    assert headline(study) == (
        "Gap at one step after 200 steps, the median and range over 3 seeds, and steps to 5 %: "
        "teacher, lr 0.0001: 3.0 % (2.0 % to 4.0 %), under 5 % by step 200 (100 to 200); "
        "random, lr 0.0001: 20 % (4.0 % to 30 %), under 5 % by step 200 in 1 of 3 seeds. "
        "Told is 2-5 % for teacher, 10-15 % for pretrained_vlm and 30-50 % for random."
    )
    assert "Success" not in headline(study)
    teacher = [
        replace(row, policy="teacher", num_steps=n) for n, row in ((1, acted(0.4)[0]), (10, acted(0.9)[0]))
    ]
    assert headline(replace(study, untrained=Untrained(10, figures(0.3), teacher))).endswith(
        " Success at one step then: teacher, lr 0.0001: 100.0 %; random, lr 0.0001: 80.0 %. "
        "The untrained teacher solves 40.0 % at 1 step and 90.0 % at 10 steps."
    )
    assert "not under 0.1 %" in headline(replace(study, level=0.001))
    assert "under 40 % before any step" in headline(replace(study, level=0.4))
    assert headline(replace(study, runs=[])) == "Nothing is measured yet."


def test_the_tables_have_every_arm_and_checkpoint(study: InitStudy) -> None:
    arms, gaps, losses, rates = sections(study)
    rows = {row[0].text: [cell.text for cell in row] for row in arms.rows}
    assert list(rows)[:2] == ["teacher, untrained", "teacher, lr 0.0001"]
    assert rows["teacher, lr 0.0001"][1:7] == [
        "action_head", "3.0/1.5/1.0", "6.0/1.5/1.0", "30.0/1.5/1.0", "2-5", "100-200; 100",
    ]  # fmt: skip
    assert rows["random, lr 0.0001"][5:7] == ["30-50", "200 (1 of 3); 200 (1 of 3)"]
    assert all(
        len(row) == len(section.heads) for section in (arms, gaps, losses, rates) for row in section.rows
    )
    assert [cell.text for cell in gaps.rows[0]] == ["teacher, lr 0.0001", "30.0", "6.0", "3.0"]
    assert [cell.text for cell in gaps.rows[1]] == ["- least to largest", "30.0-30.0", "4.0-9.0", "2.0-4.0"]
    assert [cell.text for cell in losses.rows[0]] == ["teacher, lr 0.0001", "0.05", "0.02", "0.01"]
    assert [cell.text for cell in rates.rows[2]] == ["random, lr 0.0001", "10.0", "50.0", "80.0"]
    assert [section.key for section in sections(replace(study, env=""))] == ["arms", "gap", "loss"]
    text = markdown(study)
    assert (
        "- left out: pretrained\\_vlm: it has none" in text
        or "- left out: pretrained_vlm: it has none" in text
    )
    assert "0.04, 0.02, 0.01 and 0.008 after 0, 1,000, 5,000 and 20,000 steps" in text
    console = Console(width=100, record=True, file=None, quiet=False)
    with console.capture() as shown:
        console.print(render(study))
    assert max(len(line) for line in shown.get().splitlines()) <= 100
    assert "3.0/1.5/1.0" in shown.get()


def test_the_plots_show_the_spread_over_seeds(study: InitStudy) -> None:
    drawn = {plot.key: plot for group in plots(study) for plot in group}
    assert list(drawn) == ["loss", "gap-1", "gap-2", "gap-10", "success"]
    band, line = drawn["gap-1"].figure.data[:2]
    assert list(line.x) == AT
    assert list(line.y) == [30, 6, 3]
    assert list(band.x) == [*AT, *reversed(AT)]
    assert list(band.y) == [30, 9, 4, 2, 4, 30]
    assert "teacher, lr 0.0001 3.0 % (2.0 % to 4.0 %)" in drawn["gap-1"].caption
    assert list(drawn["loss"].figure.data[1].x) == [1, 50, 100, 200]
    alone = replace(study, seeds=[0], env="", runs=study.runs[:1], arms=[TEACHER])
    assert len(plots(alone)[0][1].figure.data) == 1
    assert plots(replace(study, runs=[])) == []


def test_the_page_is_whole_and_escaped(study: InitStudy) -> None:
    text = init_page(study)
    assert "a/&lt;b&gt;" in text
    assert "<b>" not in text.partition("<script>")[0] + text.rpartition("</script>")[2]
    held = json.loads(re.findall(r'id="plots">(.*?)</script>', text)[0])
    assert set(re.findall(r'data-plot="([\w-]+)"', text)) == set(held)
    for needed in ('id="theme"', 'id="status"', "chordflow study init", "told of the training loss"):
        assert needed in text
