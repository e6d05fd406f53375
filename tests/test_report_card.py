"""The model card: what the Hub reads of it, how to use the student, how it was made."""

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from chordflow.reporting.card import METHODS, card, hub_id
from chordflow.results.schema import PolicyInfo
from report_samples import MAKERS, diagnosis, exported, hostile, sample


@pytest.mark.parametrize("kind", MAKERS)
def test_the_hub_reads_the_card(kind: str) -> None:
    results = MAKERS[kind]()
    data = ModelCard(card(results), ignore_metadata_errors=False).data
    assert (data.library_name, data.pipeline_tag) == ("lerobot", "robotics")
    assert {"robotics", "lerobot", "flow-matching"} <= set(data.tags)
    if results.student is not None:
        row = results.success_of("student", results.student_num_steps)
        gap = results.gap("student", results.student_num_steps, "deployed")
        found = {metric.metric_type: metric for metric in data.eval_results}
        assert found["success_rate"].metric_value == pytest.approx(100 * row.rate)
        assert f"{row.episodes} episodes" in found["success_rate"].metric_name
        assert found["action_gap"].metric_value == pytest.approx(100 * gap.rms)
        # The Hub puts metrics of one type of dataset under one name.
        assert found["action_gap"].dataset_type != found["success_rate"].dataset_type == "simulation"


def test_the_card_links_what_the_hub_has() -> None:
    results = sample(teacher="lerobot/smolvla_base", settings={"dataset": {"repo_id": "me/dataset"}})
    data = ModelCard(card(results)).data
    assert (data.base_model, data.datasets) == ("lerobot/smolvla_base", ["me/dataset"])
    assert ModelCard(card(sample())).data.base_model is None
    assert ModelCard(card(diagnosis())).data.base_model is None, "a teacher is no base of itself"


def test_hub_ids_and_paths() -> None:
    assert hub_id("lerobot/smolvla_base") == "lerobot/smolvla_base"
    assert not any(
        map(hub_id, ["outputs/teacher", "/data/teacher", "a/b/c", "teacher", "me/double--dash", "me/<x>"])
    )


def test_the_card_bears_the_students_name_and_says_how_to_use_it() -> None:
    body = card(sample(student="outputs/quick arm/checkpoints/last/pretrained_model")).split("---\n", 2)[2]
    assert body.strip().startswith("# quick arm\n\nA student of `outputs/teacher`")
    assert "lerobot-eval --policy.path='outputs/quick arm/" in body
    (python,) = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    tree = ast.parse(python)
    assert len(python.splitlines()) <= 8
    for line in (node for node in tree.body if isinstance(node, ast.ImportFrom)):
        assert all(hasattr(importlib.import_module(line.module or ""), name.name) for name in line.names)
    assert r"| student | 1 | 91.0 \[88.2, 93.2\] | 9.1 % |" in body


def info(**more: Any) -> PolicyInfo:
    return PolicyInfo("student", "student", "smolvla", 1, 1, "0" * 64, **more)


@pytest.mark.parametrize(("changes", "text"), [
    ({"settings": {"method": {"type": "reflow"}}}, "made by reflow (rectified flow"),
    ({"settings": {"method": {"type": "of_somebody_else"}}}, "made by `of_somebody_else`"),
    # An evaluation's settings say nothing: the student's own record does.
    ({"settings": {}, "policies": [info(method="noise_biased")]}, "without a teacher in its loss"),
    ({"policies": [info(saved_num_steps=1)]}, "layout, and acts at one step as saved."),
    ({"policies": [info(saved_num_steps=2)]}, "layout, and acts at two steps as saved, and was measured at one step."),
    ({"policies": [info()]}, "layout; it was measured at one step."),
    ({"policies": [info(step_counts=[1])]}, "**It was trained for one step only**"),
    ({"policies": [info(step_counts=[1, 2])]}, "**It was trained for 1, 2 steps only**"),
])  # fmt: skip
def test_the_card_says_how_a_student_was_made_and_at_which_steps_it_acts(changes: Any, text: str) -> None:
    assert text in card(sample(**changes))


def test_the_card_of_an_exported_folder_is_not_its_checkpoints() -> None:
    found = ModelCard(card(exported()), ignore_metadata_errors=False)
    data, text = found.data, " ".join(found.text.split())
    assert (data.library_name, data.base_model, data.model_name) == ("onnx", "me/checkpoint", "robot")
    assert {metric.metric_value for metric in data.eval_results} == {90, 9.45}
    assert "# robot `me/checkpoint` (smolvla) as a graph" in text
    assert "by onnx in float32; number of adams_bashforth steps: 2, grid power 1.4." in text
    assert "chordflow_runtime.load('outputs/robot')" in text
    assert "lerobot-eval" not in text


def test_the_card_does_not_guess_and_has_words_for_every_method() -> None:
    from chordflow.training.methods import MethodConfig

    assert "made by" not in card(sample(settings={}))
    assert "It was trained for" not in card(sample(policies=[info()]))
    assert set(METHODS) == set(MethodConfig.get_known_choices())


def test_the_card_of_hostile_names_holds_no_markup() -> None:
    body = card(hostile()).split("---\n", 2)[2]
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"```\w+\n.*?\n```", "", body, flags=re.DOTALL))
    assert not re.search("<script|<img", outside)


def test_a_runs_card_bears_its_folders_name_and_finds_its_student_from_where_the_run_was_started() -> None:
    inside = "checkpoints/000010/pretrained_model"
    text = card(sample(kind="reflow", student=inside), folder=Path("outputs/a1"))
    assert "\n# a1\n" in text
    assert f"lerobot-eval --policy.path=outputs/a1/{inside} " in text
    assert f"--policy.path={inside} " in card(
        sample(kind="evaluate", student=inside), folder=Path("outputs/b")
    )
