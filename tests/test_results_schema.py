"""The results file: every value survives, and nothing unreadable passes in silence."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chordflow.errors import UserError
from chordflow.results.schema import SCHEMA_VERSION, GapRow, Latency, Results, SuccessRow
from report_samples import MAKERS
from script_files import ROOT

PUBLISHED = [Results.load(ROOT / "docs" / name / "results.json") for name in ("demo", "evaluate")]


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


def test_every_value_survives_the_file() -> None:
    for value in [*PUBLISHED, *(make() for make in MAKERS.values())]:
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


def test_derived_figures_are_written_for_the_reader() -> None:
    saved = json.loads(_results().to_json())
    assert (saved["latency"]["ceiling"], saved["success"][0]["rate"]) == (pytest.approx(1.9), 0.9)


def test_the_student_steps_are_the_saved_ones_not_the_fewest_measured() -> None:
    assert _results().student_num_steps == 2
    assert _results(latency=None).student_num_steps == 1
    assert _results(latency=None, gaps=[], success=[]).student_num_steps is None
    assert _results(student=None).student_num_steps is None


def _edited(**changes: Any) -> str:
    return json.dumps(json.loads(_results().to_json()) | changes)


def _path(*x: int) -> dict[str, Any]:
    return {"policy": "student", "observation": 0, "x": list(x), "y": [0]}


@pytest.mark.parametrize(("text", "message"), [
    ("", "not valid JSON"),
    (_results().to_json()[:200], "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ("[]", "no schema_version"),
    (_edited(schema_version="1"), "no schema_version"),
    (_edited(schema_version=SCHEMA_VERSION + 1), f"schema_version {SCHEMA_VERSION + 1}.*upgrade chordflow"),
    (_edited(kind="study", schema_version=SCHEMA_VERSION + 1), r"of kind study, .*give (?!.*upgrade)"),
    (_edited(colour="red"), "colour is not a known field"),
    (_edited(teacher_num_steps=2.5), "teacher_num_steps is 2.5: .*valid integer"),
    (_edited(gaps=[1]), r"gaps\[0\] is 1: .*dictionary"),
    (_edited(training_s=True), "training_s is True: .*valid number"),
    (_edited(training_s=10**400), "training_s is 1000"),
    (_edited(training_s=1.0).replace('"training_s": 1.0', '"training_s": NaN'), "training_s is nan"),
    (_edited(training_s=1.0).replace('"training_s": 1.0', '"training_s": 1e999'), "training_s is inf"),
    (_edited(gaps=[{"policy": "student"}]), r"gaps\[0\]\.solver is missing"),
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
