"""Verdict and findings of students say what the rules say, at their borders too, and nothing that was not measured."""

import dataclasses
from typing import Any

import pytest

from chordflow.results.actions import CurvatureRow, FreeWays, GapRow, Latency
from chordflow.results.findings import findings, next_commands, verdict
from chordflow.results.schema import PolicyInfo, Results
from chordflow.results.statistics import Estimate, Interval, NonInferiority
from chordflow.results.wording import amount, number, percent, points, steps
from report_samples import curvature, gap, ratio, sample, success


def _with_gap(results: Results, wanted: GapRow) -> Results:
    """The results with one gap row put in the place of the one for the same way to act."""

    def key(row: GapRow) -> tuple[Any, ...]:
        return (row.policy, row.solver, row.num_steps, row.reference)

    kept = [row for row in results.gaps if key(row) != key(wanted)]
    assert len(kept) == len(results.gaps) - 1
    return dataclasses.replace(results, gaps=[*kept, wanted])


def _alone(*, latency: Latency | None = None, **changes: Any) -> Results:
    """Results with nothing but what is given."""
    return sample(**({"curvature": [], "gaps": [], "success": [], "latency": latency} | changes))


def told(results: Results) -> str:
    """The verdict and all findings."""
    return " ".join([verdict(results), *(found.text for found in findings(results))])


ONE = Latency(0.009, 0.004, 1, 50, 10, 1)


def _bent(policy: str, value: float, half: float) -> CurvatureRow:
    return dataclasses.replace(curvature(policy, value), interval=Interval(value - half, value + half))


def test_a_good_student() -> None:
    known = sample(curvature=[_bent("teacher", 0.15, 0.01), _bent("student", 0.045, 0.01)])
    assert verdict(known) == (
        "Whether the student may replace the teacher at one step is undecided: success is 91.0 % against the teacher's "
        "92.2 % (not distinguishable: -3.0 to +0.6 points in 500 paired episodes)."
    )
    said = {found.rule: found.text for found in findings(known)}
    assert said["student_gap"] == (
        "At one step the student's action gap to the deployed teacher is 9.1 % RMS, 0.39 (0.33 to 0.45) of the "
        "untrained teacher's, mostly from few pairs (median 4.3 %, flips 1.6 %)."
    )
    assert said["curvature_of_the_student"] == "Curvature falls from 15 % to 4.5 %."
    assert said["success_beside_untrained"] == "Untrained, the teacher at one step has a success of 71.2 %."
    faster = "Chunks come 3.8 times as fast (the ceiling: encoding is 69 % of each)."
    assert said["chunks_come_faster"] == faster


@pytest.mark.parametrize(("decision", "begins", "ends"), [
    ("non-inferior", "Yes, the student may replace the teacher at one step: success is 91.0 %", "episodes)."),
    ("inferior", "No, the student should not replace the teacher at one step: success is 91.0 %", "episodes)."),
    ("undecided", "Whether the student may", "(at a margin of 2: -3.0 to +0.6 points in 500 paired "
     "episodes); about 1 234 episodes would decide."),
])  # fmt: skip
def test_the_decision_at_the_margin_is_the_answer(decision: Any, begins: str, ends: str) -> None:
    found = NonInferiority(0.02, decision, -0.03, 0.006, 500, 1234 if decision == "undecided" else None)
    row = success("student", 1, 0.91, (-0.012, -0.03, 0.006))
    text = verdict(sample(success=[dataclasses.replace(row, noninferiority=found)]))
    assert text.startswith(begins)
    assert text.endswith(ends)


def test_without_episodes_the_actions_are_compared_and_success_is_not_claimed() -> None:
    text = verdict(sample(success=[]))
    assert text.startswith("At one step the student's action gap to the deployed teacher is 9.1 % RMS, 0.39")
    assert text.endswith(" Success was not tested.")


@pytest.mark.parametrize(("estimate", "expected", "forbidden"), [
    (ratio(0.9, 0.8, 0.999), "0.90 (0.80 to 1.00) of the untrained teacher's", "no better"),
    (ratio(0.9, 0.8, 1.0), "the student is no better than the untrained teacher (", "worse"),
    (ratio(1.1, 1.0, 1.2), "the student is no better than the untrained teacher (", "worse"),
    (ratio(1.1, 1.001, 1.2), "the student is worse than the untrained teacher (", "no better"),
    (Estimate(0.5, None), "0.50 of the untrained teacher's on too few episodes to tell", "better"),
    (None, "not compared with the untrained teacher's", "better"),
])  # fmt: skip
def test_a_gain_needs_the_whole_interval(estimate: Estimate | None, expected: str, forbidden: str) -> None:
    text = told(_with_gap(sample(), gap("student", 1, "deployed", 0.091, ratio_to_untrained=estimate)))
    assert expected in text
    assert forbidden not in text


def test_without_a_ratio_to_the_deployed_teacher_the_converged_one_serves() -> None:
    far = gap("student", 1, "converged", 0.09, ratio_to_untrained=ratio(0.5, 0.4, 0.6))
    rows = [gap("student", 1, "deployed", 0.05), far]
    assert "to the converged ODE is 9.0 % RMS, 0.50 (0.40 to 0.60)" in verdict(_alone(gaps=rows, latency=ONE))


@pytest.mark.parametrize(("rms", "rows", "enough"), [
    (0.043, [success("teacher", 2, 0.9, (-0.01, -0.02, 0.0))], True),
    (0.0431, [], False),
    (0.04, [success("teacher", 2, 0.8, (-0.1, -0.2, -0.001))], False),
])  # fmt: skip
def test_two_untrained_steps_within_the_floor_come_first(rms: float, rows: list[Any], enough: bool) -> None:
    results = _with_gap(sample(success=rows), gap("teacher", 2, "converged", rms))
    assert ("enough" in told(results)) is enough
    assert not enough or verdict(results).startswith(
        "Two untrained steps are enough: they lie within the floor (4.3 % against 4.3 % RMS to the converged ODE); set "
        "the number of steps to 2, without training. At one step the student"
    )


def test_other_solvers_count_by_their_evaluations() -> None:
    free = "One untrained midpoint step (two evaluations) is enough: it lies within the floor"
    row = gap("teacher", 1, "converged", 0.02, solver="midpoint", nfe=2)
    assert verdict(_with_gap(sample(), row)).startswith(free)
    more = _with_gap(sample(), dataclasses.replace(row, nfe=3))
    assert "enough" not in told(more)
    three = dataclasses.replace(more, latency=Latency(0.009, 0.004, 1, 50, 10, 3))
    assert verdict(three).startswith(free.replace("two", "three"))


@pytest.mark.parametrize(("rms", "rate", "expected"), [
    (0.099, 0.70, "Two untrained steps lie at least as near to the converged ODE as the student."),
    (0.0991, 0.90, "Two untrained steps cannot be distinguished from the student by success."),
    (0.099, 0.90, "Two untrained steps are at least as good as the student by gap and success."),
    (0.0991, 0.70, "Whether the student may replace the teacher at one step is undecided: success is 90.0 %"),
])  # fmt: skip
def test_two_untrained_steps_are_compared_with_the_student(rms: float, rate: float, expected: str) -> None:
    rows = [success("teacher", 2, rate, (-0.2, -0.3, -0.1)), success("student", 1, 0.9, None)]
    results = _with_gap(sample(success=rows), gap("teacher", 2, "converged", rms))
    assert verdict(results).startswith(expected)


def test_success_is_told_apart_down_to_the_lower_end_of_the_students_interval() -> None:
    student = success("student", 1, 0.5, (0.0, -0.1, 0.1), episodes=100)
    assert 0.40 < student.interval.low < 0.41
    for rate, found in ((0.41, True), (0.40, False)):
        rows = [student, success("teacher", 1, rate, (-0.1, -0.2, -0.05), episodes=100)]
        assert ("so the student shows no clear gain" in told(_alone(success=rows, latency=ONE))) is found


@pytest.mark.parametrize(("versus", "answer", "finding"), [
    ((-0.03, -0.06, 0.0), "Whether", "not distinguishable: -6.0 to 0.0"),
    ((0.03, 0.0, 0.06), "Whether", "not distinguishable: 0.0 to +6.0"),
    ((-0.03, -0.06, -0.001), "No, the student should not", "lower: -6.0 to -0.1"),
    ((0.03, 0.001, 0.06), "Yes, the student may", "higher: +0.1 to +6.0"),
])  # fmt: skip
def test_success_is_distinguishable_only_if_the_interval_leaves_zero_out(
    versus: tuple[float, float, float], answer: str, finding: str
) -> None:
    text = verdict(_alone(success=[success("student", 1, 0.9, versus)], latency=ONE))
    rates = f"success is 90.0 % against the teacher's {percent(0.9 - versus[0], 1)}"
    assert f"{rates} ({finding} points in 500 paired episodes)" in text
    assert text.startswith(answer)


def test_what_was_not_measured_is_not_claimed() -> None:
    unpaired = sample(success=[success("student", 1, 0.9, None)])
    elsewhere = sample(success=[success("student", 2, 0.9, (0.0, -0.1, 0.1))])
    group = sample(success=[success("student", 1, 0.9, (0.0, -0.1, 0.1), "go left")])
    for results in (sample(success=[]), elsewhere, group):
        assert "success is" not in told(results)
        assert verdict(results).endswith("Success was not tested.") is not results.success
    # Rates alone, and nothing of lower or higher.
    assert "is undecided: success is 90.0 % in 500 episodes each, not paired." in verdict(unpaired)
    assert "fast" not in told(sample(latency=None))
    assert "urvature" not in told(sample(curvature=[curvature("student", 0.04)]))
    assert verdict(_alone()) == "The student's actions were not measured, so there is no verdict."
    assert verdict(_alone(student=None)) == "Nothing was measured."


@pytest.mark.parametrize(("median", "flips", "words"), [
    (0.06, 0.02, "mostly from few pairs (median 6.0 %, flips 2.0 %)"), (0.0601, 0.02, None),
    (0.03, None, "mostly from few pairs (median 3.0 %)"), (0.03, 0.0, "mostly from few pairs (median 3.0 %)"),
])  # fmt: skip
def test_few_pairs_are_named_where_they_decide(median: float, flips: float | None, words: str | None) -> None:
    rows = [gap("student", 1, "deployed", 0.09, median, flip_rate=flips)]
    results = _alone(gaps=rows, latency=ONE)
    assert words in verdict(results) if words else "mostly from few pairs" not in told(results)


@pytest.mark.parametrize(("student", "half", "expected"), [
    (0.14, 0.004, "Curvature falls from 15 % to 14 %"),
    (0.14, 0.006, "Curvature is 14 % beside 15 %"),
    (0.149, 0.006, "Curvature is 15 % as before"),
    (0.16, 0.006, "Curvature is 16 % beside 15 %"),
    (0.16, 0.004, "Curvature rises from 15 % to 16 %"),
])  # fmt: skip
def test_curvature_changes_beyond_its_intervals_alone(student: float, half: float, expected: str) -> None:
    rows = [_bent("teacher", 0.15, half), _bent("student", student, half)]
    assert f"{expected}." in told(_alone(curvature=rows, latency=ONE))
    rows[1] = dataclasses.replace(rows[1], interval=None)
    assert "from" not in told(_alone(curvature=rows, latency=ONE))


def test_nothing_is_said_of_the_curvature_of_a_student_for_few_steps() -> None:
    known = {"curvature": [_bent("teacher", 0.15, 0.001), _bent("student", 0.01, 0.001)], "latency": None}
    assert "urvature" not in told(sample(policies=[_info("student", 1, [1])], **known))
    assert "Curvature falls" in told(sample(policies=[_info("student", 1)], **known))


def test_a_teacher_alone() -> None:
    rows = [success("teacher", 2, 0.9, (-0.05, -0.1, -0.01)), success("teacher", 10, 0.95, None)]
    assert verdict(_alone(student=None, success=rows)) == (
        "The teacher's success is 90.0 % at two steps and 95.0 % at ten steps."
    )
    text = told(sample(student=None))
    assert "One untrained step loses 23 % RMS against the deployed policy's ten steps" in text
    assert "Two lose 13 %; distillation can make a chunk at most 3.8 times as fast here." in text
    free = _with_gap(sample(student=None, success=[]), gap("teacher", 2, "converged", 0.04))
    assert verdict(free).startswith("Two untrained steps are enough: they lie within the floor (4.0 %")


def _info(name: str, num_steps: int, counts: list[int] | None = None) -> PolicyInfo:
    return PolicyInfo(name, name, "smolvla", num_steps, 1, "0" * 64, counts)


def test_policies_without_a_student_are_told_of() -> None:
    infos = [_info("teacher", 10), _info("quick", 2, [1]), _info("other", 1)]
    rows = [success("teacher", 10, 0.95, None), success("quick", 2, 0.85, (-0.1, -0.14, -0.06)),
            success("other", 1, 0.94, (-0.01, -0.03, 0.01))]  # fmt: skip
    results = _alone(student=None, policies=infos, success=rows, gaps=[gap("quick", 2, "deployed", 0.2)])
    assert verdict(results) == (
        "No, quick should not replace the teacher at two steps: success is 85.0 % against the teacher's 95.0 % (lower: "
        "-14.0 to -6.0 points in 500 paired episodes). Whether other may replace the teacher at one step is undecided: "
        "success is 94.0 % against the teacher's 95.0 % (not distinguishable: -3.0 to +1.0 points in 500 paired "
        "episodes)."
    )
    said = {found.rule: found.text for found in findings(results)}
    assert said["trained_for_other_steps"].startswith("Quick was trained for one step only")
    others = "The action gap to the deployed teacher is 20 % RMS with quick at two steps."
    assert said["gaps_of_others"] == others


def test_what_to_type_next_has_the_users_own_paths() -> None:
    def typed(*parts: str) -> str:
        return " \\\n    ".join(parts)

    command = ["chordflow", "diagnose", "--policy.path=my teacher", "--policy.revision=v2", "--dataset.root=here",
               "--measure.noises=4"]  # fmt: skip
    stored = {"dataset": {"repo_id": "me/data", "root": "here"}}
    known: dict[str, Any] = {"command": command, "settings": stored}
    data = ("--dataset.repo_id=me/data", "--dataset.root=here")
    gaps = [gap("teacher", 1, "deployed", 0.2), gap("teacher", 10, "converged", 0.05)]
    before = _alone(kind="diagnose", student=None, teacher="my teacher", gaps=gaps, **known)
    reflow = typed("chordflow reflow", "'--teacher.path=my teacher'", "--teacher.revision=v2", *data,
                   "--output_dir=outputs/student")  # fmt: skip
    evaluate = typed("chordflow evaluate", "--teacher.path=outputs/teacher", "--student.path=outputs/student", *data,
                     "--env.type=YOURS", "--output_dir=outputs/evaluation")  # fmt: skip
    assert next_commands(before) == [("Next", reflow)]
    free = dataclasses.replace(before, gaps=[*gaps, gap("teacher", 2, "converged", 0.04)])
    assert next_commands(free) == [("To train all the same", reflow)]
    assert next_commands(dataclasses.replace(before, gaps=[])) == []
    assert next_commands(sample(success=[], **known)) == [("Next", evaluate)]
    assert next_commands(sample()) == []


@pytest.mark.parametrize(("nfe", "enough", "firsts"), [
    (4, 0.04, ["reflow", "export"]),
    (4, 0.06, ["reflow"]),
    # As few evaluations as make training needless.
    (2, 0.04, ["export", "reflow"]),
])  # fmt: skip
def test_an_untrained_way_that_lerobot_does_not_run_is_to_be_exported(
    nfe: int, enough: float, firsts: list[str]
) -> None:
    command = ["chordflow", "diagnose", "--policy.path=t", "--policy.revision=v2", "--policy.num_inference_steps=8",
               "--device=cuda", "--dataset.repo_id=me/data"]  # fmt: skip
    way = dataclasses.replace(
        gap("teacher", 3, "converged", enough), solver="adams_bashforth", nfe=nfe, grid_power=1.4
    )
    gaps = [gap("teacher", 1, "deployed", 0.2), gap("teacher", 10, "converged", 0.05)]
    info = dataclasses.replace(_info("teacher", 10), graph_obstacle="")
    results = _alone(
        kind="diagnose", student=None, teacher="t", gaps=gaps, command=command, policies=[info],
        free=FreeWays([0], [1], [way], [gaps[1]]),
    )  # fmt: skip
    found = next_commands(results)
    assert [text.split()[1] for _, text in found] == firsts
    if "export" in firsts:
        what, text = found[firsts.index("export")]
        assert what == ("Next" if firsts[0] == "export" else "Without training")
        assert text.replace(" \\\n   ", "") == (
            "chordflow export --policy.path=t --policy.revision=v2 --dataset.repo_id=me/data --num_steps=3 "
            "--solver=adams_bashforth --grid_power=1.4 --output_dir=outputs/robot"
        )
    # Of a family that no graph can hold, or a file that does not say.
    for obstacle in ("why", None):
        other = dataclasses.replace(results, policies=[dataclasses.replace(info, graph_obstacle=obstacle)])
        assert [text.split()[1] for _, text in next_commands(other)] == ["reflow"]


def test_numbers_as_a_person_reads_them() -> None:
    fractions = {
        0.0: "0 %", 0.091: "9.1 %", 0.0996: "10 %", 0.231: "23 %", 1.0: "100 %", 2.5: "250 %", 0.0043: "0.43 %",
        0.00012: "0.01 %", 0.00001: "<0.01 %", -0.031: "-3.1 %",
    }  # fmt: skip
    assert {x: percent(x) for x in fractions} == fractions
    assert (percent(0.9966, 1), percent(0.0001, 1)) == ("99.7 %", "<0.1 %")
    assert [points(x) for x in (0.012, -0.0301, 0.0, -0.0004)] == ["+1.2", "-3.0", "0.0", "0.0"]
    shown = {0.0: "0", 0.01234: "0.0123", 12.34: "12.3", 1234.0: "1234", 1e-6: "1.00e-06"}
    assert {x: amount(x) for x in shown} == shown
    assert (number(2), number(11)) == ("two", "11")
    assert (steps(1), steps(2, "untrained")) == ("one step", "two untrained steps")
