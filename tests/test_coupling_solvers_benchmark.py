"""The benchmark of coupling solvers: its document shows its results, and they say what the document says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from script_files import load_script

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "training" / "coupling_solvers.py"


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def result(script: Any) -> dict[str, Any]:
    return json.loads(script.FILE.read_text(encoding="utf-8"))


def test_the_results_are_of_the_ways_in_the_script(script: Any, result: dict[str, Any]) -> None:
    found = [(row["solver"], row["num_steps"], row["grid_power"], row["nfe"]) for row in result["rows"]]
    assert found == [(way.solver, way.num_steps, way.grid_power, way.nfe) for way in script.WAYS]


@pytest.mark.docs
def test_the_document_shows_the_results(script: Any, result: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    shown = text.split("<!-- coupling_solvers -->\n")[1].split("\n<!-- /coupling_solvers -->")[0]
    assert shown == script.table(result)


def test_the_document_says_what_the_results_say(result: dict[str, Any]) -> None:
    rms = {(row["solver"], row["num_steps"], row["grid_power"]): row["rms"] for row in result["rows"]}
    default, sixteen = rms["euler", 10, 1.0], rms["adams_bashforth", 16, 1.4]
    assert 3.5 < default / rms["adams_bashforth", 9, 1.4] < 4.0
    assert default / sixteen > 7
    assert sixteen < min(rms["midpoint", 10, 1.0], rms["midpoint", 10, 1.4])
    assert 0.85 * default < rms["adams_bashforth", 9, 1.0] < default
    assert rms["heun", 10, 1.0] > rms["midpoint", 10, 1.0]
