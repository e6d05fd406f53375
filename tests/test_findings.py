"""Findings and studies: the documents show what the result files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chordflow.report.init_study_table import markdown as init_markdown
from chordflow.report.rounds_table import markdown as rounds_markdown
from chordflow.results.init_study import InitStudy
from chordflow.results.rounds_study import RoundsStudy
from script_files import ROOT, load_script


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script(ROOT / "scripts" / "findings_tables.py")


def between(document: Path, name: str) -> str:
    _, _, rest = document.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    text, end, _ = rest.partition(f"\n<!-- /{name} -->")
    assert end, f"{document.name} has no place for {name}"
    return text


def test_documents_show_the_studies(script: Any) -> None:
    init = InitStudy.load(script.STUDIES / "init.json")
    rounds = RoundsStudy.load(script.STUDIES / "rounds.json")
    assert between(script.DOCUMENT, "init") == init_markdown(init).rstrip()
    assert between(script.DOCUMENT, "rounds") == rounds_markdown(rounds).rstrip()
    for document in script.FINDINGS:
        assert between(document, "beginnings") == script.beginnings(init)
        assert between(document, "rounds") == script.rounds(rounds)


def test_documents_show_the_benchmark(script: Any) -> None:
    results = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(script.METAWORLD.glob("*.json"))
    ]
    for document in script.FINDINGS:
        shown = between(document, "metaworld").splitlines()
        assert shown == script.metaworld(results).splitlines()
        tasks = {task for result in results for task in result["settings"]["tasks"]}
        assert {line.split(" | ")[1] for line in shown[2:]} == tasks


def test_what_is_measured_has_at_least_three_seeds(script: Any) -> None:
    init = InitStudy.load(script.STUDIES / "init.json")
    rounds = RoundsStudy.load(script.STUDIES / "rounds.json")
    assert len(init.seeds) >= 3
    assert len(rounds.seeds) >= 3
    for arm in init.arms:
        assert {run.seed for run in init.runs_of(arm.name)} == set(init.seeds)


def test_no_path_of_a_machine_is_published(script: Any) -> None:
    for file in (
        *script.STUDIES.glob("*.json"),
        *script.METAWORLD.glob("*.json"),
        *(ROOT / "docs/compare").glob("*.json"),
    ):
        text = file.read_text(encoding="utf-8")
        assert "/tmp/" not in text, file.name
        assert "/home/" not in text, file.name
