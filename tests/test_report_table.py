"""The tables hold the numbers, fit the terminal, and never read a name as markup."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from chordflow.reporting.table import markdown, render
from chordflow.results.schema import HeldOut, Latency, Results
from chordflow.results.verdict import verdict
from report_samples import gap, sample, success


def printed(results: Results, width: int = 100) -> str:
    file = io.StringIO()
    Console(width=width, file=file, force_terminal=False).print(render(results))
    return file.getvalue()


def row(text: str, *starts: str) -> list[str]:
    """The cells of the one line of the gap table that begins with these cells."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    (found,) = (line for line in lines if line[: len(starts)] == list(starts) and len(line) > 6)
    return found


def test_the_gap_table_holds_every_way_to_act_and_the_floor() -> None:
    text = printed(sample())
    student = sample().gap("student", 1, "deployed")
    assert student is not None
    assert row(text, "student", "1") == [
        "student", "1", "1", "9.1 %", "4.3 %", "1.6 %", "9.9 %",
        f"{student.mean_abs:.3f}", f"{student.max_abs:.2f}", "0.27",
    ]  # fmt: skip
    assert row(text, "teacher", "10")[3:8] == ["0 %", "0 %", "0 %", "4.3 %", "0"]
    assert row(text, "teacher", "1")[3] == "23.1 %"
    assert row(text, "teacher, midpoint", "1")[2:4] == ["2", "16.4 %"]
    assert row(text, "floor", "10")[3:7] == ["-", "3.4 %", "1.6 %", "4.3 %"]
    assert "Floor: the teacher at ten steps to its own converged ODE" in text


def test_evaluations_have_a_column_only_where_they_differ_from_steps() -> None:
    euler = sample(gaps=[r for r in sample().gaps if r.solver == "euler"])
    assert "nfe" in printed(sample())
    assert "nfe" not in printed(euler)
    assert row(printed(euler), "student", "1")[2] == "9.1 %"


def test_success_comes_by_group_with_interval_and_pairing() -> None:
    text = printed(sample())
    assert re.search(r"all \(500\) +teacher +10 +92\.2 \[89\.5, 94\.2\] +- +-", text)
    assert re.search(r"student +1 +91\.0 \[88\.2, 93\.2\] +-1\.2 \[-3\.0, \+0\.6\] +0\.200", text)
    assert "go any way (250)" in text
    assert "Success" not in printed(sample(success=[]))


def test_episodes_are_counted_by_row_where_they_differ() -> None:
    rows = [success("teacher", 10, 0.9, None), success("student", 1, 0.5, None, episodes=100)]
    text = printed(sample(success=rows))
    assert re.search(r"all \(500\) +teacher", text)
    assert re.search(r"all \(100\) +student", text)


def test_the_grid_of_the_couplings_is_named_where_it_is_not_the_uniform_one() -> None:
    made = sample().couplings
    assert made is not None
    for power, expected in (
        (1.4, "ten steps, grid power 1.4; buffer"),
        (1.0, "ten steps; buffer"),
        (None, "ten steps; buffer"),
    ):
        couplings = dataclasses.replace(made, grid_power=power)
        assert expected in " ".join(printed(sample(couplings=couplings)).split())


def test_facts_below_the_tables() -> None:
    text = " ".join(printed(sample()).split())
    assert "0.39 [0.33, 0.45] at one, 0.61 [0.52, 0.70] at two" in text
    assert "teacher 15 % (15 % over all dimensions), student 4.5 %" in text
    assert "200 observations of 3 episodes, 16 noises each" in text
    assert "may have seen" not in text
    assert "2048 observations with 4 noises each, by midpoint with ten steps; buffer 61 MB" in text
    seen = sample(held_out=HeldOut([4], 10, 1, True))
    assert "10 observations of 1 episode, 1 noise each; the teacher may have seen them" in " ".join(
        printed(seen).split()
    )


@pytest.mark.parametrize(
    ("device", "named"),
    [("NVIDIA H100 80GB HBM3", True), ("AMD Instinct MI300X", True), ("cuda", False), ("Intel Xeon", False)],
)
def test_milliseconds_only_on_a_named_gpu(device: str, named: bool) -> None:
    text = printed(sample(device=device))
    assert ("9.0 ms to encode and 4.0 ms a step" in " ".join(text.split())) is named
    assert (" ms " in text) is named


def test_the_ceiling_is_printed_beside_the_speed() -> None:
    text = " ".join(printed(sample(latency=Latency(0.5, 0.5, 1, 50, 10, 2))).split())
    assert "3.67 times as fast at two steps, ceiling 5.50; encoding is 33 % of the student's time" in text
    assert "time" not in printed(sample(latency=None)).replace("times", "")


@pytest.mark.parametrize("width", [80, 100])
def test_lines_fit_and_figures_are_whole(width: int) -> None:
    text = printed(sample(), width)
    assert max(map(len, text.splitlines())) <= width
    assert row(text, "student", "1")[-1] == "0.27"
    assert re.search(r"\[-25\.0, -17\.0\] +0\.200", text)


def test_long_names_are_cut_and_figures_kept() -> None:
    long = "pick up the red block and put it onto the blue one " * 4
    text = printed(sample(success=[success("student", 1, 0.9, (-0.01, -0.02, 0.01), long)]))
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(
        r"pick up the red.*… +student +1 +90\.0 \[87\.1, 92\.3\] +-1\.0 \[-2\.0, \+1\.0\] +0\.200", text
    )


def test_names_are_never_read_as_markup_or_terminal_codes() -> None:
    name = "[red]go[/red] [/]\x1b[31m\nany"
    text = printed(
        sample(success=[success("student", 1, 0.9, None, name)], student="out[bold]puts\x1b]0;x\x07")
    )
    assert "[red]go[/red] [/] [31m any (500)" in text
    assert "out[bold]puts ]0;x" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_markdown_has_the_same_figures() -> None:
    text = markdown(sample())
    assert "| student | 1 | 1 | 9.1 % | 4.3 % | 1.6 % | 9.9 % |" in text
    assert "| floor | 10 | 10 | - | 3.4 % | 1.6 % | 4.3 % |" in text
    assert r"| student | 1 | 91.0 \[88.2, 93.2\] | -1.2 \[-3.0, +0.6\] | 0.200 |" in text
    assert text.startswith("**At one step the student's action gap is 9.1 % RMS")
    assert text.endswith("outputs/student\n")
    counts = {line.count("|") for line in text.splitlines() if line.startswith("| ")}
    assert counts == {11, 7}


def test_markdown_names_do_not_break_the_table() -> None:
    name = "a|b <img src=x> `c` *d* [e](f)\n| g"
    text = markdown(sample(success=[success("student", 1, 0.9, None, name)]))
    assert r"| a\|b &lt;img src=x&gt; \`c\` \*d\* \[e\](f) \| g (500) | student | 1 |" in text


def test_a_verdict_in_the_file_is_shown_as_it_is() -> None:
    assert printed(sample(verdict="All is well.")).startswith("All is well.\n")
    assert " ".join(printed(sample()).split()).startswith(verdict(sample()))


def test_what_was_not_measured_is_left_out() -> None:
    nothing = dataclasses.replace(
        sample(),
        gaps=[],
        success=[],
        curvature=[],
        latency=None,
        held_out=None,
        couplings=None,
        training_s=None,
    )
    assert printed(nothing).split("\n")[2:] == ["teacher  outputs/teacher", "student  outputs/student", ""]
    only_far = sample(
        gaps=[gap("teacher", 1, "converged", 0.2), gap("student", 1, "converged", 0.1)], latency=None
    )
    assert row(printed(only_far), "student", "1")[2:] == ["8.0 %", "1.6 %", "10.0 %", "0.300", "4.10"]
    assert "Floor" not in printed(only_far)
