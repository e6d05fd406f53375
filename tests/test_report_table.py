"""The tables hold the numbers, fit the terminal, and never read a name as markup."""

import contextlib
import dataclasses
import io
import itertools
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.console import Console

from chordflow.reporting import flow_plots, rollout_plots, study_table
from chordflow.reporting.flow_tables import summary
from chordflow.reporting.section import Section
from chordflow.reporting.table import Drawn, facts, markdown, render, sections
from chordflow.results.actions import FreeWays
from chordflow.results.findings import verdict
from chordflow.results.schema import PolicyInfo, Results
from report_samples import MAKERS, diagnosis, evaluation, exported, gap, sample, success
from study_samples import beginnings


def printed(results: Results, width: int = 200, verbose: bool = True) -> str:
    file = io.StringIO()
    Console(width=width, file=file, force_terminal=False).print(render(results, verbose=verbose))
    return file.getvalue()


def row(text: str, *starts: str) -> list[str]:
    """The cells of the one line of the gap table that begins with these cells."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    found = [line for line in lines if line[: len(starts)] == list(starts) and len(line) > 5]
    return found[-1]


def test_the_gap_table_holds_every_way_to_act_and_the_floor() -> None:
    text = printed(sample())
    student = sample().gap("student", 1, "deployed")
    assert student is not None
    assert row(text, "student", "1") == [
        "student", "1", "1", "9.1 %", "4.3 %", "1.6 %", "9.9 %",
        f"{student.mean_abs:.3f}", f"{student.max_abs:.2f}", "0.39 [0.33, 0.45]", "0.27",
    ]  # fmt: skip
    assert row(text, "teacher", "10")[3:8] == ["0 %", "0 %", "0 %", "4.3 %", "0"]
    assert row(text, "teacher", "1")[3] == "23.1 %"
    assert row(text, "teacher, midpoint", "1")[2:4] == ["2", "16.4 %"]
    assert row(text, "floor", "10")[3:7] == ["-", "3.4 %", "1.6 %", "4.3 %"]
    assert "Floor: the deployed teacher (ten steps) to its converged ODE" in text


def test_success_comes_by_group_with_interval_and_pairing() -> None:
    text = printed(sample())
    assert re.search(r"all \(500\) +teacher +10 +92\.2 \[89\.5, 94\.2\] +- +-", text)
    assert re.search(r"student +1 +91\.0 \[88\.2, 93\.2\] +-1\.2 \[-3\.0, \+0\.6\] +0\.200", text)
    assert "go any way (250)" in text
    assert "Success in episodes" not in printed(sample(success=[]))
    # Episodes are counted by row where they differ.
    rows = [success("teacher", 10, 0.9, None), success("student", 1, 0.5, None, episodes=100)]
    text = printed(sample(success=rows))
    assert re.search(r"all \(500\) +teacher", text)
    assert re.search(r"all \(100\) +student", text)


def test_facts_below_the_tables() -> None:
    text = " ".join(printed(sample()).split())
    assert "200 observations of 3 episodes, 16 noises each" in text
    assert "may have seen" not in text
    assert "2048 observations with 4 noises each, by midpoint with ten steps; buffer 61 MB" in text
    # The grid of the couplings is named where it is not the uniform one.
    couplings = dataclasses.replace(sample().couplings, grid_power=1.4)
    assert "ten steps, grid power 1.4; buffer" in dict(facts(sample(couplings=couplings)))["couplings"]


def check_whole(text: str, width: int, tables: list[Section]) -> None:
    """No line is cut, no column lost, no word broken."""
    assert all(
        len(line) <= width for line in text.splitlines() if not line.startswith(("Report:", "Tables:"))
    )
    assert "…" not in text
    words = set(text.split())
    for section in tables:
        if not section.page_only:
            shown = [*section.heads, *(cell.text for row in section.rows for cell in row if not cell.repeats)]
            missing = {word for cell in shown for word in cell.split()} - words
            assert not missing, (section.key, missing)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_tables_of_every_kind_are_whole_in_a_terminal(width: int) -> None:
    for results in (sample(), diagnosis(), evaluation()):
        check_whole(printed(results, width), width, sections(results))


def test_each_part_of_a_table_tells_its_rows_apart() -> None:
    (gaps,) = (section for section in sections(diagnosis()) if section.key == "gap")
    console = Console(width=80)
    with console.capture() as capture:
        console.print(Drawn(gaps))
    heads = [line.split()[:3] for line in capture.get().splitlines() if line.startswith("policy ")]
    assert len(heads) > 1
    assert all(head == ["policy", "steps", "nfe"] for head in heads)


def test_without_verbose_there_is_one_table_of_at_most_ten_rows() -> None:
    infos = [PolicyInfo(f"p{i}", "x", "smolvla", 1, 1, "0" * 64) for i in range(20)]
    many = sample(policies=infos, gaps=[gap(info.name, 1, "deployed", 0.1) for info in infos])
    for results in (sample(), many):
        lines = printed(results, 80, verbose=False).splitlines()
        (rule,) = (i for i, line in enumerate(lines) if set(line) == {"─"})
        assert max(map(len, lines)) <= 80
        rows = list(itertools.takewhile(lambda line: re.search(r"\d", line[:30]), lines[rule + 1 :]))
        assert 4 <= len(rows) <= 10
    assert summary(sample()) is not None


def test_the_summary_is_the_verdicts_ways_to_act() -> None:
    best = [gap("teacher", 1, r, 0.1, solver="midpoint", nfe=2) for r in ("deployed", "converged")]
    graded = [dataclasses.replace(row, solver="euler", num_steps=2, grid_power=2.0) for row in best]
    section = summary(sample(free=FreeWays([0], [1], graded, [])))
    assert [cell.text for cell in section.rows[3]] == ["teacher, euler (grid 2)", "2", "-", "10.0 %", "0.35"]
    assert section.below.startswith(
        "Gap of teacher, euler (grid 2): on the half of the held-out episodes that did"
    )
    # What was measured on all observations stands as the other rows do.
    section = summary(sample(free=FreeWays([0], [1], best, [])))
    assert "half" not in section.below
    assert [[cell.text for cell in row] for row in section.rows] == [
        ["teacher", "10", "92.2 [89.5, 94.2]", "0 %", "1.00"],
        ["teacher", "2", "85.8 [82.5, 88.6]", "13.4 %", "0.35"],
        ["teacher", "1", "71.2 [67.1, 75.0]", "23.1 %", "0.27"],
        ["teacher, midpoint (2 evaluations)", "1", "-", "16.4 %", "0.35"],
        ["student", "1", "91.0 [88.2, 93.2]", "9.1 %", "0.27"],
    ]
    assert section.marked == {4}


def test_an_exported_folder_has_its_own_way_evaluations_and_time() -> None:
    results = exported()
    section = summary(results)
    assert [cell.text for cell in section.rows[-1]] == [
        "student, adams_bashforth (grid 1.4) (3 evaluations)", "2", "90.0 [87.1, 92.3]", "9.4 %", "0.05",
    ]  # fmt: skip
    assert section.marked == {len(section.rows) - 1}
    tables = {section.key: section for section in sections(results)}
    found = [[cell.text for cell in row] for row in tables["gap"].rows if "student" in row[0].text]
    assert [(row[0], row[2], row[-1]) for row in found] == [
        ("student, adams_bashforth (grid 1.4)", "3", "0.05")
    ]
    assert [row[-1].text for row in tables["free"].rows] == ["-", "9.6 %"]
    text = markdown(results)
    assert "0.93 (0.83 to 0.97) of the untrained teacher's at three Euler steps, as many evaluations" in text
    assert (
        "Chunks come 20.0 times as fast from the exported folder; as many evaluations in PyTorch give 2.8"
        in text
    )
    panels = [*flow_plots.gaps(results), *rollout_plots.latency(results)]
    assert all(re.search("student.* at two steps|Exported folders", panel.caption) for panel in panels)


def test_long_names_take_several_lines_and_figures_are_kept() -> None:
    long = "pick up the red block and put it onto the blue one " * 4
    text = printed(sample(success=[success("student", 1, 0.9, (-0.01, -0.02, 0.01), long)]), 100)
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"student +1 +90\.0 \[87\.1, 92\.3\] +-1\.0 \[-2\.0, \+1\.0\] +0\.200", text)
    assert "…" not in text
    assert "block" in text.split("episodes", 1)[1]


def test_names_are_never_read_as_markup_or_terminal_codes() -> None:
    name = "[red]go[/red] [/]\x1b[31m\nany"
    rows = [success("student", 1, 0.9, None, name)]
    text = printed(sample(success=rows, student="out[bold]puts\x1b]0;x\x07"))
    assert "[red]go[/red] [/] [31m any (500)" in text
    assert "out[bold]puts ]0;x" in text
    assert not set("\x1b\x07") & set(text)


def test_markdown_names_do_not_break_the_table() -> None:
    name = "a|b <img src=x> `c` *d* [e](f)\n| g"
    text = markdown(sample(success=[success("student", 1, 0.9, None, name)]))
    assert r"| a\|b &lt;img src=x&gt; \`c\` \*d\* \[e\](f) \| g (500) | student | 1 |" in text


def test_the_verdict_comes_first_by_todays_rules_and_what_was_not_measured_is_left_out() -> None:
    assert " ".join(printed(sample(verdict="Of an older file.")).split()).startswith(verdict(sample()))
    absent = dict.fromkeys(("latency", "held_out", "couplings", "training_s"))
    nothing = sample(gaps=[], success=[], curvature=[], **absent)
    assert printed(nothing).split("\n")[-3:] == ["teacher  outputs/teacher", "student  outputs/student", ""]
    far = [gap("teacher", 1, "converged", 0.2), gap("student", 1, "converged", 0.1)]
    text = printed(sample(gaps=far, latency=None))
    assert row(text, "student", "1")[2:] == ["8.0 %", "1.6 %", "10.0 %", "0.300", "4.10"]
    assert "Floor" not in text


def test_markdown_of_every_kind_has_whole_rows() -> None:
    for make in MAKERS.values():
        width = None
        for line in markdown(make()).splitlines():
            columns = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("| ") else None
            assert width is None or columns is None or columns == width
            width = columns


def test_the_command_prints_whole_tables_into_a_terminal(tmp_path: Path) -> None:
    """Of a run, and of a study whose arms differ in so much that their settings want the whole width."""
    evaluation().save(tmp_path / "results.json")
    made = beginnings()
    differs = {"student.init": "pretrained_vlm", "student.train": ["prefix_projections", "action_head"]}
    wide = dataclasses.replace(
        made.arms[0], name="wide", way="pretrained_vlm_full, lr 0.0001", differs=differs
    )
    made = dataclasses.replace(made, arms=[*made.arms, wide], seeds=[0])
    made.save(tmp_path / "study.json")
    for verb, tables in (
        (["report"], sections(evaluation())),
        (["study", "table"], study_table.sections(made)),
    ):
        check_whole(in_a_terminal(80, *verb, str(tmp_path), "--verbose"), 80, tables)


def in_a_terminal(width: int, *arguments: str) -> str:
    """What the command prints into a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (50, width))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    command = [sys.executable, "-m", "chordflow", *arguments]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = bytearray()
        # The end of a pseudo-terminal is an error where the other side has closed.
        with contextlib.suppress(OSError):
            while part := os.read(ours, 65536):
                shown += part
        os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r", "")
