"""Findings and studies: the documents show what the result files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chordflow.results.init_study import InitStudy
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
    found = script.studies()
    assert {"init", "rounds"} <= set(found)
    for name, study in found.items():
        assert between(script.DOCUMENT, name) == script.whole(study)
        for document in script.FINDINGS:
            assert between(document, name) == script.told(study)


def test_documents_show_the_benchmark(script: Any) -> None:
    results = script.read(script.METAWORLD.glob("*.json"))
    walls = script.read(script.METAWORLD.glob("round_wall/*.json"))
    more = script.read(script.METAWORLD.glob("more_episodes/*.json"))
    runs = {
        str(file.parent.relative_to(script.METAWORLD)) for file in script.METAWORLD.glob("**/small*.json")
    }
    assert runs - {"goal_height"} == set(script.RECORDINGS)
    assert {wall["settings"]["eval"]["n_action_steps"] for wall in walls} == {None, 8}
    for document in script.FINDINGS:
        shown = between(document, "metaworld").splitlines()
        assert shown == script.metaworld(results).splitlines()
        tasks = {task for result in results for task in result["settings"]["tasks"]}
        assert {line.split(" | ")[1] for line in shown[2:]} == tasks
        assert between(document, "round_wall") == script.round_wall(walls)
        assert between(document, "more_episodes") == script.more_episodes(more)
        assert between(document, "recordings") == script.recordings(script.METAWORLD)


def test_what_is_measured_has_at_least_three_seeds(script: Any) -> None:
    for name, study in script.studies().items():
        assert len(study.seeds) >= 3, name
        for arm in study.arms:
            if isinstance(study, InitStudy):
                assert {run.seed for run in study.runs_of(arm.name)} == set(study.seeds), name
            else:
                for number in range(1, arm.rounds_of(study.rounds) + 1):
                    assert {run.seed for run in study.runs_of(arm, number)} == set(study.seeds), name


def test_no_path_of_a_machine_is_published(script: Any) -> None:
    for file in (
        *script.STUDIES.glob("*.json"),
        *script.METAWORLD.rglob("*.json"),
        *(ROOT / "docs/compare").glob("*.json"),
    ):
        text = file.read_text(encoding="utf-8")
        assert "/tmp/" not in text, file.name
        assert "/home/" not in text, file.name
