"""A student's folder, field by field: the teacher's, but for what makes it a student."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lerobot.configs import PreTrainedConfig
from lerobot.configs.train import TrainPipelineConfig

from broken_statistics import BEFORE, edit_steps
from builders import parse_reflow as parse
from chordflow.experiments.provenance import write_configs
from chordflow.policies import Role, load_flow_policy, save_student
from families import CASES
from small_policies import Folders
from small_runs import edit_json, options

# What a machine without the teacher's, or LeRobot's parser, would put other values for.
ELSEWHERE = {
    "device": "cuda", "use_amp": True, "private": True, "tags": ["robot"], "license": "mit", "repo_id": "me/teacher",
    "push_to_hub": True, "pretrained_path": "/somewhere/base", "pretrained_revision": "main", "use_peft": True,
}  # fmt: skip


def student_of(teacher: Path, folder: Path) -> Path:
    policy = load_flow_policy(teacher, device="cpu")
    save_student(policy, teacher, folder, policy.train_roles([Role.ACTION_HEAD]), 1)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The fields that differ or are in one of the two alone, and what they are afterwards."""
    same = {key for key in before.keys() & after.keys() if before[key] == after[key]}
    return {key: after.get(key) for key in (before.keys() | after.keys()) - same}


@pytest.mark.parametrize("family", CASES)
def test_the_config_is_the_teachers(family: str, family_folder: Folders, tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(family_folder(family), tmp_path / "teacher"))
    edit_json(teacher / "config.json", lambda c: c.update(ELSEWHERE))
    edit_steps(teacher, BEFORE, lambda step: "device" in str(step) and step["config"].update(device="cuda"))
    student = student_of(teacher, tmp_path / "student")
    before, after = config_of(teacher), config_of(student)
    steps_field = load_flow_policy(teacher, device="cpu").steps_field  # type: ignore[attr-defined]
    cleared = {"repo_id": None, "push_to_hub": False, "use_peft": False}
    assert changed(before, after) == {steps_field: 1, **cleared}
    names = {file.name for file in teacher.iterdir() if file.name.startswith("policy_")}
    assert {file.name for file in student.iterdir()} == {"config.json", "model.safetensors", *names}
    for name in names:
        assert (student / name).read_bytes() == (teacher / name).read_bytes()
    # LeRobot reads it, and keeps it from the teacher's place on the Hub.
    stock = PreTrainedConfig.from_pretrained(student)
    assert getattr(stock, steps_field) == 1
    assert not stock.push_to_hub


def test_what_is_written_beside_it(checkpoint: Path, dataset_root: Path, tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(checkpoint, tmp_path / "teacher"))
    edit_json(teacher / "config.json", lambda c: c.update(ELSEWHERE))
    student = student_of(teacher, tmp_path / "student")
    config, _ = parse(options(teacher, dataset_root, tmp_path / "out")[1:])
    write_configs(config, teacher, student)
    policy = json.loads((student / "train_config.json").read_text())["policy"]
    assert changed(config_of(student), policy) == {"pretrained_path": str(teacher)}
    stock = TrainPipelineConfig.from_pretrained(student)
    assert stock.policy.num_steps == 1  # type: ignore[attr-defined]
    assert stock.peft is None
