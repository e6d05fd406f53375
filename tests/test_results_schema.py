"""The results file: every value survives, and nothing unreadable passes in silence."""

import dataclasses
import importlib.metadata
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chordflow.errors import UserError
from chordflow.results.actions import ChunkTime
from chordflow.results.schema import (
    SCHEMA_VERSION,
    CouplingSummary,
    CurvatureRow,
    GapRow,
    HeldOut,
    Latency,
    LossCurve,
    Results,
    SuccessRow,
    TrajectoryRow,
    installed_versions,
)
from chordflow.results.statistics import Estimate, Interval, Percentiles, compare_success

finite = st.floats(allow_nan=False, allow_infinity=False)
whole = st.integers(0, 10_000)
words = st.text(max_size=12)
roles = st.sampled_from(["teacher", "student"])
numbers = st.lists(finite, max_size=4)
estimates = st.builds(Estimate, finite, st.none() | st.builds(Interval, finite, finite))
comparisons = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20).map(
    lambda pairs: compare_success(*map(list, zip(*pairs, strict=True)))
)
rows = st.builds(
    GapRow, roles, words, whole, whole, st.sampled_from(["deployed", "converged"]), whole, finite, finite,
    st.none() | finite, finite, finite, whole, whole, st.none() | estimates,
)  # fmt: skip
curvatures = st.builds(
    CurvatureRow, roles, whole, whole, finite, finite, finite, finite, numbers, numbers, numbers
)
successes = st.integers(1, 500).flatmap(
    lambda n: st.builds(
        SuccessRow, roles, words, whole, words, st.integers(0, n), st.just(n), st.none() | comparisons
    )
)
seconds = st.floats(1e-6, 1e3)
latencies = st.builds(Latency, seconds, seconds, whole, whole, st.integers(1, 100), st.integers(1, 100))
losses = st.lists(st.tuples(whole, finite), max_size=5).map(
    lambda p: LossCurve([a for a, _ in p], [b for _, b in p])
)
trajectories = st.lists(st.tuples(finite, finite), min_size=2, max_size=4).flatmap(
    lambda p: st.builds(TrajectoryRow, roles, whole, st.just([a for a, _ in p]), st.just([b for _, b in p]))
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
results = st.builds(
    Results, command=st.lists(words, max_size=3), settings=st.dictionaries(words, json_values, max_size=3),
    versions=st.dictionaries(words, words, max_size=2), device=words,
    seeds=st.dictionaries(words, st.integers(), max_size=2), teacher=words, student=st.none() | words,
    teacher_num_steps=whole,
    held_out=st.none() | st.builds(HeldOut, st.lists(whole, max_size=3), whole, whole, st.booleans()),
    curvature=st.lists(curvatures, max_size=2), gaps=st.lists(rows, max_size=2), latency=st.none() | latencies,
    success=st.lists(successes, max_size=2), trajectories=st.lists(trajectories, max_size=2), trajectory_axes=numbers,
    couplings=st.none()
    | st.builds(CouplingSummary, whole, whole, words, whole, whole, grid_power=st.none() | finite),
    loss=st.none() | losses, training_s=st.none() | finite, verdict=words,
)  # fmt: skip


def _results(**changes: Any) -> Results:
    gap = GapRow("teacher", "euler", 10, 10, "converged", 100, 0.04, 0.03, 0.0, 1.0, 0.1, 200, 800)
    base = Results(
        ["chordflow", "reflow"], {"steps": 600}, {"python": "3.12"}, "a processor", {"training": 0},
        teacher="teacher", student="student", teacher_num_steps=10,
        gaps=[gap, dataclasses.replace(gap, policy="student", num_steps=1, nfe=1, reference="deployed")],
        latency=Latency(0.09, 0.01, 1, 50, 10, 2),
        success=[SuccessRow("student", "euler", 1, "all", 45, 50)],
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


@given(results)
@settings(max_examples=100, deadline=None)
def test_every_value_survives_the_file(value: Results) -> None:
    text = value.to_json()
    assert Results.from_json(text, "f") == value
    assert Results.from_json(text, "f").to_json() == text


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_not_written(bad: float, tmp_path: Path) -> None:
    value = _results()
    gaps = [value.gaps[0], dataclasses.replace(value.gaps[1], rms=bad)]
    with pytest.raises(UserError, match=r"gaps\[1\]\.rms is"):
        dataclasses.replace(value, gaps=gaps).save(tmp_path / "results.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"settings\.lr"):
        _results(settings={"lr": bad}).to_json()


def test_what_could_not_be_read_back_is_not_written() -> None:
    gap = dataclasses.replace(_results().gaps[0], reference="expert")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"gaps\[0\]\.reference is 'expert': .*'deployed' or 'converged'"):
        _results(gaps=[gap]).to_json()
    with pytest.raises(UserError, match=r"settings\.path is a PosixPath"):
        _results(settings={"path": Path("x")}).to_json()


def test_numbers_out_of_arrays_are_written_as_numbers() -> None:
    row = SuccessRow("student", "euler", 1, "all", int(np.int64(4)), 5)
    value = _results(success=[row], settings={"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True)})
    assert Results.from_json(value.to_json(), "f").settings == {"a": 0.5, "b": 3, "c": True}


def test_derived_figures() -> None:
    value = _results()
    assert value.latency is not None
    assert (value.latency.ceiling, value.latency.speedup) == pytest.approx((1.9, 0.19 / 0.11))
    assert value.success[0].rate == 0.9
    assert value.success[0].interval.low == pytest.approx(0.786, abs=1e-3)
    saved = json.loads(value.to_json())
    assert (saved["latency"]["ceiling"], saved["success"][0]["rate"]) == (pytest.approx(1.9), 0.9)


def test_rows_are_found_by_what_they_measure() -> None:
    value = _results()
    assert value.floor is value.gaps[0]
    assert value.gap("student", 1, "deployed") is value.gaps[1]
    assert value.gap("student", 2, "deployed") is None
    assert value.gap("teacher", 10, "converged", solver="heun") is None
    assert value.success_of("student", 1) is value.success[0]
    assert value.success_of("student", 1, group="go left") is None
    assert value.curvature_of("teacher") is None


def test_the_student_steps_are_the_saved_ones_not_the_fewest_measured() -> None:
    assert _results().student_num_steps == 2
    assert _results(latency=None).student_num_steps == 1
    assert _results(latency=None, gaps=[], success=[]).student_num_steps is None
    assert _results(student=None).student_num_steps is None


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "dossier été 结果" / "results.json"
    path.parent.mkdir()
    value = _results(command=["chordflow", "--path=bad\udc80name"])
    value.save(path)
    _results(verdict="second").save(path)
    value.save(path)
    assert Results.load(path) == value
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_a_failed_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    _results(verdict="first").save(path)

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"results\.json cannot be written \(No space left on device\)"):
        _results(verdict="second").save(path)
    assert Results.load(path).verdict == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_saving_into_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose a folder that exists"):
        _results().save(tmp_path / "none" / "results.json")


def _edited(**changes: Any) -> str:
    return json.dumps(json.loads(_results().to_json()) | changes)


def _without_rms() -> str:
    data = json.loads(_results().to_json())
    del data["gaps"][0]["rms"]
    return json.dumps(data)


def _path(*x: int) -> dict[str, Any]:
    return {"policy": "student", "observation": 0, "x": list(x), "y": [0]}


@pytest.mark.parametrize(("text", "message"), [
    ("", "not valid JSON"),
    (_results().to_json()[:200], "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ("[]", "no schema_version"),
    ("{}", "no schema_version"),
    (_edited(schema_version="1"), "no schema_version"),
    (_edited(schema_version=SCHEMA_VERSION + 1), f"schema_version {SCHEMA_VERSION + 1}.*upgrade chordflow"),
    (_edited(colour="red"), "colour is not a known field"),
    (_edited(teacher_num_steps=2.5), "teacher_num_steps is 2.5: .*valid integer"),
    (_edited(gaps=[1]), r"gaps\[0\] is 1: .*dictionary"),
    (_edited(gaps="none"), "gaps is 'none'"),
    (_edited(training_s=True), "training_s is True: .*valid number"),
    (_edited(training_s=10**400), "training_s is 1000"),
    (_edited(training_s=1.0).replace('"training_s": 1.0', '"training_s": NaN'), "training_s is nan"),
    (_edited(training_s=1.0).replace('"training_s": 1.0', '"training_s": 1e999'), "training_s is inf"),
    (_without_rms(), r"gaps\[0\]\.rms is missing"),
    (_edited(loss={"steps": [1], "losses": []}), "1 steps and 0 losses"),
    (_edited(trajectories=[_path(0, 1)]), r"trajectories\[0\]: x has 2 states and y 1"),
    (_edited(trajectories=[_path(0)]), "both need the same two or more"),
    (_results().to_json().replace('"successes": 45', '"successes": 450'), "450 successes in 50"),
])  # fmt: skip
def test_files_that_cannot_be_read_say_why(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "my results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        Results.load(path)
    assert str(path) in str(caught.value)


def test_missing_and_binary_files_say_why(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name, why in (("none.json", "cannot be read"), (".", "cannot be read"), ("binary.json", "not text")):
        with pytest.raises(UserError, match=why):
            Results.load(tmp_path / name)


def test_versions_of_the_installed_distributions() -> None:
    found = installed_versions()
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["python"].startswith("3.")
    assert "lerobot" in found


def test_the_speed_up_is_that_of_whole_chunks_where_they_were_timed() -> None:
    def chunk(num_steps: int, seconds: float) -> ChunkTime:
        return ChunkTime(num_steps, Percentiles(seconds, seconds, seconds, seconds))

    summed = Latency(0.006, 0.001, 1, 30, 10, 1)
    assert (summed.speedup, summed.ceiling) == pytest.approx((16 / 7, 16 / 7))
    timed = dataclasses.replace(summed, chunks=[chunk(1, 0.008), chunk(10, 0.016)])
    assert timed.speedup == pytest.approx(2.0)
    # The ceiling is of the parts, whatever whole chunks take.
    assert (timed.ceiling, timed.reliable) == (summed.ceiling, True)
    assert dataclasses.replace(summed, chunks=[chunk(1, 0.008)]).speedup == summed.speedup
