"""Rules of the findings: when they speak, when they keep silent, and what they say."""

import dataclasses
from typing import Any

import pytest
from scipy.stats import binom

from chordflow.results.actions import (
    ChunkTime,
    CurvatureRow,
    GapRow,
    HeldOut,
    Latency,
    Memory,
    ObservationSpread,
)
from chordflow.results.episodes import DelayRow, SequentialRow, SuccessRow
from chordflow.results.findings import findings, unseen_share, verdict
from chordflow.results.schema import PolicyInfo, Results
from chordflow.results.sequential import SequentialTest
from chordflow.results.statistics import Estimate, Interval, Percentiles, compare_success, non_inferiority


def gap(rms: float, steps: int, reference: Any = "converged", solver: str = "euler") -> GapRow:
    nfe = steps * (1 if solver == "euler" else 2)
    return GapRow("teacher", solver, steps, nfe, reference, 100, rms, 0.8 * rms, 0.012, 1.0, 0.1, 200, 3200)


def latency(encode: float = 0.006, step: float = 0.002, **changes: Any) -> Latency:
    return dataclasses.replace(Latency(encode, step, 1, 100, 10, 1), **changes)


def diagnosis(**changes: Any) -> Results:
    base = Results([], {}, {}, "cpu", {}, "t", None, 10, kind="diagnose")
    return dataclasses.replace(base, **changes)


def said(results: Results | None = None, **changes: Any) -> dict[str, str]:
    """The findings of results, or of a diagnosis with these changes, by rule."""
    return {finding.rule: finding.text for finding in findings(results or diagnosis(**changes))}


def bend(by_time: list[float], by_dim: list[float]) -> CurvatureRow:
    """A row over ten steps whose bend is the product of the two."""
    times = [1 - i / 10 for i in range(10)]
    grid = [[t * d for d in by_dim] for t in by_time]
    return CurvatureRow(
        "teacher", 10, 800, 1.0, 0.19, 1.0, 0.3, times, [sum(row) for row in grid],
        [sum(column) / 10 for column in zip(*grid, strict=True)], grid, Interval(0.18, 0.2),
    )  # fmt: skip


def spread(index: int, modes: int, width: float = 0.5) -> ObservationSpread:
    return ObservationSpread(index, 40 + index, 7, "go any way", width, modes, [1 / modes] * modes)


HELD_OUT = HeldOut([40, 41], 20, 16, maybe_seen_by_teacher=False)
FLOOR = gap(0.05, 10)


def test_nothing_measured_is_nothing_said() -> None:
    assert findings(diagnosis()) == []
    assert verdict(diagnosis()) == "Nothing was measured."


def test_more_steps_within_the_floor_are_offered_with_their_gain() -> None:
    found = said(gaps=[gap(0.2, 2), gap(0.06, 4), gap(0.05, 8), FLOOR], latency=latency())
    text = found["fewer_steps_are_free"]
    # (6 + 20) / (6 + 16)
    assert text.startswith("Eight untrained steps lie within the floor")
    assert text.endswith(
        "set the number of steps to 8, which makes a chunk 1.18 times as fast without training."
    )
    assert "fewer_steps_are_free" not in said(gaps=[gap(0.2, 2), gap(0.06, 8), FLOOR])
    assert "fewer_steps_are_free" not in said(gaps=[gap(0.04, 2), gap(0.03, 8), FLOOR])


def test_the_loss_of_one_step_is_told_with_what_can_be_gained() -> None:
    one = dataclasses.replace(gap(0.25, 1, "deployed"), interval=Interval(0.2, 0.31))
    results = diagnosis(gaps=[one, gap(0.12, 2, "deployed")], latency=latency())
    assert said(results)["one_step_loses"] == (
        "One untrained step loses 25 % RMS (20 % to 31 %) against the deployed policy's ten steps. Two lose 12 %; "
        "distillation can make a chunk at most 3.2 times as fast here."
    )
    assert verdict(results) == "Yes: one" + said(results)["one_step_loses"].removeprefix("One")


@pytest.mark.parametrize(("encode", "rule", "part"), [
    (0.001, None, ""),
    (0.048, "encoding_limits", "takes 96 % of a one-step chunk: fewer steps can give 1.36 times at most"),
    (0.2, "speed_is_not_in_the_steps", "Training for speed is not worth it on this device: one step"),
])  # fmt: skip
def test_what_encoding_leaves_to_gain(encode: float, rule: str | None, part: str) -> None:
    results = diagnosis(latency=latency(encode))
    found = {name: text for name, text in said(results).items() if name.startswith(("encoding", "speed"))}
    assert list(found) == ([rule] if rule else [])
    assert part in found.get(rule or "", "")
    assert verdict(results).startswith("No: ") is (rule == "speed_is_not_in_the_steps")


def test_a_policy_of_one_step_has_nothing_to_gain() -> None:
    gaps = [gap(0.0, 1, "deployed"), gap(0.2, 1)]
    results = diagnosis(teacher_num_steps=1, gaps=gaps, latency=latency(teacher_num_steps=1))
    assert findings(results)[0].rule == "acts_in_one_step"
    assert verdict(results).startswith("No: the policy acts in one step already")
    assert not {"one_step_loses", "encoding_limits", "speed_is_not_in_the_steps"} & set(said(results))


def test_two_sidedness_names_share_place_and_what_may_go_unseen() -> None:
    rows = [spread(i, 2 if i < 6 else 1, 0.9 + 0.01 * i) for i in range(20)]
    text = said(spreads=rows, held_out=HELD_OUT)["two_sided"]
    assert text == (
        "At 30 % of observations the policy has two or more modes, and an averaged action would be wrong there, "
        "the most at frame 7 of episode 45 (with 16 noises each, a mode that fewer than 26 % of noises choose may go "
        "unseen)."
    )
    one = said(spreads=[spread(i, 1) for i in range(20)], held_out=HELD_OUT)["two_sided"]
    assert one.startswith("At no observation more than one mode is seen")
    assert "may go unseen" in one


@pytest.mark.parametrize(("noises", "least"), [(16, 2), (32, 2), (64, 4)])
def test_the_unseen_share_is_the_binomial_one(noises: int, least: int) -> None:
    share = unseen_share(noises)
    assert binom.sf(least - 1, noises, share) == pytest.approx(0.95, abs=1e-4)


def test_a_student_that_is_more_exact_than_its_teacher_is_named_where_the_interval_says_so() -> None:
    def beside(high: float) -> str | None:
        more: dict[str, Any] = {"policy": "student", "ratio_to_floor": Estimate(0.7, Interval(0.6, high))}
        row = dataclasses.replace(gap(0.035, 1), nearer_than_deployed=0.96, **more)
        return said(gaps=[FLOOR, row], student="student").get("student_beside_the_floor")

    assert "at ten steps: 0.70 (0.60 to 0.90) of its RMS gap, nearer on 96 % of pairs" in (beside(0.9) or "")
    assert beside(0.999) is not None
    assert beside(1.0) is None


def test_the_floor_is_named_and_a_coarse_one_is_warned_of() -> None:
    assert said(gaps=[FLOOR])["the_floor"].endswith("a gap below that means little.")
    assert "see whether more of them act better" in said(gaps=[gap(0.1, 10)])["the_floor"]


@pytest.mark.parametrize(("by_time", "where"), [
    ([4, 4, 1, 1, 1, 1, 1, 1, 1, 1], "50 % of the bend lies at t > 0.8, near the noise."),
    ([1, 1, 1, 1, 1, 1, 1, 1, 4, 4], "50 % of the bend lies at t < 0.2, near the action."),
    ([1, 1, 4, 4, 1, 1, 1, 1, 1, 1], "50 % of the bend lies at t from 0.6 to 0.8."),
    ([1] * 10, ", at all times much alike."),
])  # fmt: skip
def test_where_in_time_the_paths_bend(by_time: list[float], where: str) -> None:
    text = said(curvature=[bend(by_time, [1.0, 1.0])])["bend_in_time"]
    assert text.startswith("Paths bend by 19 % (18 % to 20 %) of their chord")
    assert text.endswith(where)


@pytest.mark.parametrize(("by_dim", "text"), [
    ([1.0, 4.0, 1.0], "Action dimension 1, counted from 0, has 67 % of the bend of 3."),
    ([1.0, 1.2, 1.0], None), ([1.0], None),
])  # fmt: skip
def test_the_dimension_that_bends_most_is_named_only_if_it_stands_out(by_dim: Any, text: str | None) -> None:
    assert said(curvature=[bend([1] * 10, by_dim)]).get("bent_dimension") == text


def test_tails_processors_and_memory() -> None:
    slow = latency(
        chunks=[ChunkTime(10, Percentiles(0.026, 0.03, 0.04, 0.052))], processors_s=0.005,
        memory=Memory(2_000_000, 1_500_000_000, "process"),
    )  # fmt: skip
    found = said(latency=slow)
    assert "2.0 times the median or longer: plan for 52.0 ms rather than 26.0 ms" in found["long_tail"]
    assert "processors take 62 % of a one-step chunk" in found["processors_cost"]
    assert found["memory"] == "The weights take 2 MB, and at most 1.5 GB of the whole process were in use."
    quick = latency(chunks=[ChunkTime(10, Percentiles(0.02, 0.02, 0.02, 0.021))], processors_s=0.0001)
    assert not {"long_tail", "processors_cost", "memory"} & set(said(latency=quick))


def test_that_the_policy_may_have_seen_the_data_is_said_last() -> None:
    seen = dataclasses.replace(HELD_OUT, maybe_seen_by_teacher=True)
    assert list(said(held_out=seen, gaps=[FLOOR]))[-1] == "teacher_may_have_seen"
    assert "teacher_may_have_seen" not in said(held_out=HELD_OUT)


def test_without_an_answer_the_verdict_is_the_three_most_important_findings() -> None:
    results = diagnosis(gaps=[FLOOR], latency=latency(0.048), curvature=[bend([1] * 10, [1.0, 4.0, 1.0])])
    texts = [finding.text for finding in findings(results)]
    assert len(texts) > 3
    assert verdict(results) == " ".join(texts[:3])


def info(name: str, steps: int) -> PolicyInfo:
    return PolicyInfo(name, name, "smolvla", steps, 1, "0" * 64)


def paired_row(name: str, steps: int, first: int, second: int, episodes: int = 200) -> SuccessRow:
    """A run of which `first` episodes only this policy solved, `second` only the teacher, all others both."""
    rest = [True] * (episodes - first - second)
    paired = compare_success(
        [True] * first + [False] * second + rest, [False] * first + [True] * second + rest
    )
    decided = non_inferiority(paired, 0.02)
    return SuccessRow(name, "euler", steps, "all", episodes - second, episodes, paired, decided)


def test_after_early_looks_the_sequential_test_has_the_word() -> None:
    decision = SequentialTest(0.02, min_episodes=10).update([True] * 400, [True] * 400)
    assert decision.decision == "non-inferior"
    results = diagnosis(
        policies=[info("teacher", 10), info("student", 1)],
        success=[paired_row("student", 1, 0, 3)],
        sequential=[SequentialRow("student", 1, decision)],
    )
    text = said(results)["may_replace_the_teacher"]
    assert text.startswith("Yes, the student may")
    assert f"in {decision.episodes} paired episodes" in text


def delayed(weight: float, lost: int, steps: int = 1) -> DelayRow:
    row = paired_row("student", steps, 0, lost)
    return DelayRow("student", steps, "rtc", 2, weight, row.successes, row.episodes, row.versus_teacher)


def test_a_guidance_weight_that_costs_success_is_named() -> None:
    text = said(delays=[delayed(10.0, 40), delayed(1.0, 1)])["guidance_weight_matters"]
    assert text == (
        "Real-time chunking at one step: with a guidance weight of 10 the student solves 80.0 %, with 1, which fits, "
        "99.5 %: set max_guidance_weight to the number of steps."
    )
    for harmless in ([delayed(10.0, 1), delayed(1.0, 1)], [delayed(10.0, 40), delayed(1.0, 40)]):
        assert "guidance_weight_matters" not in said(delays=harmless)


@pytest.mark.parametrize(("counts", "who"), [
    ({"teacher": None, "student": [1]}, "The student was trained for one step only"),
    ({"teacher": [1], "student": [1], "other": [1]},
     "The teacher was trained for one step only; the student was trained for one step only; other was trained"),
    ({"student": [2, 4]}, "The student was trained for 2 and 4 steps only:"),
    ({"teacher": None, "student": [1, 2], "other": None}, None),
])  # fmt: skip
def test_who_is_run_at_steps_that_it_was_not_trained_for_is_named(
    counts: dict[str, Any], who: str | None
) -> None:
    infos = [dataclasses.replace(info(name, 1), step_counts=steps) for name, steps in counts.items()]
    text = said(policies=infos).get("trained_for_other_steps")
    assert (text is None) is (who is None)
    assert (text or "").startswith(who or "")
