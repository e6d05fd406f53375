"""`chordflow study init` on a small SmolVLA: its arms, what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import drift_env as drift_env
from builders import SIZE, TASKS, build_checkpoint
from chordflow.cli.main import main
from chordflow.cli.options import options_of
from chordflow.cli.study_init import parse
from chordflow.demo.tiny_vlm import build_tiny_vlm
from chordflow.errors import UserError
from chordflow.experiments import init_study as job
from chordflow.experiments.init_study_config import ARMS, InitStudyConfig
from chordflow.experiments.init_study_setup import arms_of, gone_on_with
from chordflow.policies import FlowPolicy, load_flow_policy
from chordflow.policies.base import Role
from chordflow.results.init_study import InitStudy
from chordflow.training.student import StudentInit, make_student
from chordflow.training.timed import Passed

SMALL = [
    "--batch_size=4", "--buffer.num_observations=8", "--buffer.noises_per_observation=2", "--buffer.block_size=4",
    "--num_workers=0", "--measure.num_observations=3", "--learning_rates=[1e-3]", "--device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def with_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose config names a VLM with weights, which are not its own."""
    folder = tmp_path_factory.mktemp("with_vlm")
    return build_checkpoint(
        folder / "pretrained_model",
        build_tiny_vlm(folder / "vlm", TASKS, SIZE, seed=3),
        load_vlm_weights=False,
    )


def arguments(teacher: Path, root: Path, output: Path, *more: str) -> list[str]:
    return [
        "study", "init", f"--teacher.path={teacher}", "--dataset.repo_id=test/tiny", f"--dataset.root={root}",
        "--dataset.eval_split=0.4", f"--output_dir={output}", *SMALL, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(with_vlm: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study's folder; not to be written to."""
    output = tmp_path_factory.mktemp("study") / "done"
    more = ["--arms=[teacher,pretrained_vlm,random_full]", "--steps=3", "--checkpoints=[0,3]", "--seeds=[5]"]
    more += ["--log_freq=2", "--level=9"]
    assert main(arguments(with_vlm, dataset_root, output, *more)) == 0
    return output


def weights(study: Path, arm: str) -> dict[str, torch.Tensor]:
    return load_file(
        study / "students" / arm / "lr_0.001" / "seed_5" / "pretrained_model" / "model.safetensors"
    )


def test_every_arm_is_looked_at_on_the_way(done: Path) -> None:
    found = InitStudy.load(done / "study.json")
    assert [(arm.name, arm.init) for arm in found.arms] == [
        ("teacher, lr 0.001", "teacher"),
        ("pretrained_vlm, lr 0.001", "pretrained_vlm"),
        ("random_full, lr 0.001", "random"),
    ]
    assert [arm.train for arm in found.arms] == [["action_head"], ["action_head"], list(Role)]
    assert found.untrained is not None
    for run in found.runs:
        assert run.samples == 12
        assert run.training_s > 0
        assert run.loss.steps == [1, 2, 3]
        assert [checkpoint.step for checkpoint in run.checkpoints] == [0, 3]
        for checkpoint in run.checkpoints:
            assert checkpoint.figures is not None
            assert {row.num_steps for row in checkpoint.figures.gaps} == {1, 2, 10}
    teacher, vlm, everything = found.runs
    # Before any step the student from the teacher is the teacher, and the others are far from it.
    assert teacher.checkpoints[0].figures is not None
    for num_steps in (1, 2, 10):
        own = found.untrained.figures.gap(num_steps)
        assert own is not None
        assert teacher.checkpoints[0].rms(num_steps) == pytest.approx(own.rms, rel=1e-5)
    assert teacher.loss.losses[0] < min(vlm.loss.losses[0], everything.loss.losses[0])
    assert teacher.checkpoints[0].rms(1) != teacher.checkpoints[1].rms(1)


def test_all_arms_are_trained_on_the_same_couplings(done: Path) -> None:
    """Also those that encode for themselves, once or at every step."""
    found = InitStudy.load(done / "study.json")
    assert len({run.couplings_sha256 for run in found.runs}) == 1
    assert "couplings: the same to the bit for all arms of a seed" in (done / "study.md").read_text()


def test_students_are_checkpoints_of_what_their_arm_says(done: Path, with_vlm: Path) -> None:
    original = load_file(with_vlm / "model.safetensors")
    policy = load_flow_policy(with_vlm, device="cpu")
    named = {key: policy.role_of(policy.parameter_name(key)) for key in original}
    given = policy.pretrained_vlm()
    assert {named[key] for key in given if key in named} == {Role.VISION, Role.LANGUAGE}
    teacher, vlm, everything = (weights(done, a) for a in ("teacher", "pretrained_vlm", "random_full"))
    assert teacher.keys() == vlm.keys() == everything.keys() == original.keys()
    for key, role in named.items():
        frozen = role != Role.ACTION_HEAD
        assert not frozen or teacher[key].equal(original[key])
        if frozen and key in given:
            assert vlm[key].equal(given[key].to(vlm[key].dtype)), key
    changed = {role for key, role in named.items() if not everything[key].equal(original[key])}
    assert changed == set(Role)


def test_checkpoints_on_the_way_are_kept_only_if_asked_for(done: Path) -> None:
    # Nor is an empty folder.
    assert [path.name for path in (done / "students/teacher/lr_0.001/seed_5").iterdir()] == [
        "pretrained_model"
    ]
    before = InitStudy.load(done / "study.json")
    later = replace(before, env="drift")
    with pytest.raises(UserError, match="env: the study began without one, and of its students the last"):
        gone_on_with(replace(later, settings={**before.settings, "env": {}}), before)


def resume(folder: Path, *more: str) -> list[str]:
    return ["study", "init", "--resume=true", f"--config_path={folder / 'study.json'}", *more]


def test_an_interrupted_study_goes_on_to_the_same_bits(
    done: Path, with_vlm: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "new folder"
    shutil.copytree(done, output)
    study = InitStudy.load(output / "study.json")
    first, second, third = study.runs
    # As it stood after one run and a half, the second having been trained and not measured at its end.
    half = replace(second, checkpoints=[second.checkpoints[0], replace(second.checkpoints[1], figures=None)])
    replace(study, runs=[first, half]).save(output / "study.json")
    trained: list[str] = []
    train_student = job.train_student

    def stop(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "train_student", stop)
    assert main(resume(output)) == 130
    said = capsys.readouterr().err
    assert f"chordflow study init --resume=true --config_path='{output / 'study.json'}'" in said
    assert InitStudy.load(output / "study.json").runs == [first, second]

    def note(*given: Any, **named: Any) -> Any:
        trained.append(named["label"])
        return train_student(*given, **named)

    monkeypatch.setattr(job, "train_student", note)
    assert main(resume(output)) == 0
    assert trained == ["random_full, lr 0.001, seed 5"]
    again = InitStudy.load(output / "study.json").runs[2]
    assert [c.weights_sha256 for c in again.checkpoints] == [c.weights_sha256 for c in third.checkpoints]
    assert (again.loss, again.couplings_sha256) == (third.loss, third.couplings_sha256)
    assert [c.figures for c in again.checkpoints] == [c.figures for c in third.checkpoints]
    assert main(resume(output, "--steps=4", "--checkpoints=[4]")) == 2
    assert "the study began with" in capsys.readouterr().err


def test_episodes_are_run_at_every_checkpoint(
    with_vlm: Path, dataset_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "acted"
    more = ["--arms=[teacher]", "--steps=1", "--checkpoints=[0,1]", "--seeds=[5]", "--keep_checkpoints=true"]
    more += ["--env.type=drift_of_the_tests", "--eval.n_episodes=3", "--eval.batch_size=3"]
    assert main(arguments(with_vlm, dataset_root, output, *more)) == 0
    found = InitStudy.load(output / "study.json")
    (run,) = found.runs
    assert [checkpoint.success[0].episodes for checkpoint in run.checkpoints] == [3, 3]
    assert all(c.success[0].versus_teacher is not None for c in run.checkpoints)
    assert found.untrained is not None
    at_one = next(row for row in found.untrained.success if row.num_steps == 1)
    assert run.checkpoints[0].success[0].successes == at_one.successes
    assert all((output / checkpoint.student).is_dir() for checkpoint in run.checkpoints)
    assert "Success at one step by optimiser steps" in (output / "study.md").read_text()
    assert 'id="plot-success"' in (output / "study.html").read_text()


# What the arms are

BASE = ["--teacher.path=t", "--dataset.repo_id=a/b", "--output_dir=o"]


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> FlowPolicy:
    """A teacher whose VLM folder holds no weights; not to be changed."""
    return load_flow_policy(checkpoint, device="cpu")


def test_by_default_what_the_teacher_has_is_trained_at_both_rates(policy: FlowPolicy) -> None:
    arms, left_out = arms_of(parse(BASE), policy)
    assert [arm.beginning for arm in arms[::2]] == [
        "teacher",
        "teacher_full",
        "teacher_vlm",
        "random",
        "random_full",
    ]
    assert [arm.learning_rate for arm in arms] == [1e-4, 2e-5] * 5
    assert [arm.beginning for arm in left_out] == ["pretrained_vlm"]
    assert "is a model without weights" in left_out[0].reason
    with pytest.raises(
        UserError, match=r"arms: pretrained_vlm: vlm_model_name=.* is a model without weights"
    ):
        arms_of(parse([*BASE, "--arms=[teacher,pretrained_vlm]"]), policy)
    assert {name for name, arm in ARMS.items() if arm.everything} == {f"{init}_full" for init in StudentInit}


def test_an_arm_that_is_another_is_left_out(policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(policy), "default_train_roles", tuple(Role))
    arms, left_out = arms_of(parse(BASE), policy)
    assert [arm.beginning for arm in arms[::2]] == ["teacher", "teacher_vlm", "random"]
    assert "smolvla trains everything by default, so this is teacher" in left_out[0].reason
    with pytest.raises(UserError, match=r"arms: random_full: .* so this is random"):
        arms_of(parse([*BASE, "--arms=[random,random_full]"]), policy)


def test_a_student_begins_with_the_vlm_that_the_config_names(with_vlm: Path) -> None:
    teacher = load_flow_policy(with_vlm, device="cpu")
    before = torch.random.get_rng_state()
    given = teacher.pretrained_vlm()
    assert torch.random.get_rng_state().equal(before)
    one, other = (
        make_student(teacher, with_vlm, StudentInit.PRETRAINED_VLM, [Role.ACTION_HEAD], seed=seed)
        for seed in (0, 1)
    )
    own, theirs = (dict(s.policy.module.named_parameters()) for s in (one, other))
    originals = dict(teacher.module.named_parameters())
    for name, tensor in given.items():
        assert own[name].equal(tensor.to(own[name].dtype))
        assert name in one.fresh
    assert any(not own[name].equal(originals[name]) for name in given)
    fresh = [name for name in own if name not in given and own[name].dim() == 2]
    assert all(not own[name].equal(theirs[name]) for name in fresh)


def test_a_vlm_with_a_part_of_its_weights_is_refused(with_vlm: Path, tmp_path: Path) -> None:
    """Transformers goes on with random ones in their place."""
    teacher = load_flow_policy(with_vlm, device="cpu")
    folder = shutil.copytree(teacher.config.vlm_model_name, tmp_path / "vlm")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    gone = next(key for key in sorted(tensors) if "text_model.layers.0" in key and key.endswith("weight"))
    save_file({key: tensor for key, tensor in tensors.items() if key != gone}, file, {"format": "pt"})
    teacher.config.vlm_model_name = str(folder)
    with pytest.raises(UserError, match=rf"has no weights for 1 of its tensors, such as {gone}"):
        teacher.pretrained_vlm()


def test_the_loss_is_logged_by_step() -> None:
    log = job.LossLog(every=3, last=8)
    for step, loss in enumerate([None, 9.0, 1.0, 3.0, 4.0, 6.0, 8.0, 5.0, 7.0]):
        for _ in range(2):
            log.add(Passed(0.0, 0.0, step, step, None, loss))
    assert (log.curve.steps, log.curve.losses) == ([1, 3, 6, 8], [9.0, 2.0, 6.0, 6.0])


# What the options mean


def test_checkpoints_are_by_default_parts_of_the_steps() -> None:
    assert parse(BASE).checkpoints == [0, 250, 500, 1000, 2000]
    assert parse([*BASE, "--steps=3"]).checkpoints == [0, 1, 3]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--steps=0"], "steps=0: give at least 1"),
        (["--arms=[]"], "arms=[]: give at least one"),
        (["--arms=[random,random]"], "arms=[random,random]: give at least one, each once"),
        (["--arms=[teacher_vml]"], "arms holds 'teacher_vml', which is no arm; did you mean teacher_vlm"),
        (["--arms=[zzz]"], "choose of teacher, teacher_full, "),
        (["--learning_rates=[]"], "learning_rates=[]: give numbers above 0"),
        (["--learning_rates=[1e-4,0]"], "give numbers above 0"),
        (["--optimizer.lr=1e-3"], "optimizer.lr=0.001: give --learning_rates='[0.001]' instead"),
        (["--seeds=[1,1]"], "seeds=[1, 1]: give whole numbers from 0, each once"),
        (["--steps=5", "--checkpoints=[0,4]"], "checkpoints=[0, 4]: give steps in rising order, the last of them"),
        (["--steps=5", "--checkpoints=[-1,5]"], "checkpoints=[-1, 5]: give steps from 0"),
        (["--steps=5", "--checkpoints=[3,0,5]"], "give steps in rising order"),
        (["--level=0"], "level=0: give a share above 0"),
        (["--log_freq=0"], "log_freq=0: give at least 1"),
        (["--num_workers=-1"], "num_workers=-1: give 0 or more"),
        (["--method.type=noise_biased"], "method.type=noise_biased: the method does not look at couplings"),
        (["--eval.n_episodes=3"], "eval: these options are about episodes; give --env.type"),
        (["--resume=true"], "resume=true needs --config_path=OUTPUT_DIR/study.json"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(more: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse([*BASE, *more])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_file_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"kind": "compare", "settings": {}}))
    with pytest.raises(UserError, match=r"is no file of chordflow study init; give OUTPUT_DIR/study\.json"):
        parse(["--resume=true", f"--config_path={tmp_path / 'study.json'}"])


def test_a_folder_that_is_there_is_not_written_to(
    done: Path, with_vlm: Path, dataset_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(with_vlm, dataset_root, done)) == 2
    assert "go on with: chordflow study init --resume=true" in capsys.readouterr().err


FROZEN = Path(__file__).parent / "command_line_options_study_init.txt"


def test_the_command_line_has_not_changed_unnoticed() -> None:
    """Users' scripts depend on these names: a change has to be made here as well, on purpose."""
    listed = [option for option in options_of(InitStudyConfig, None) if option.name != "env.type"]
    names = "".join(f"--{option.name} ({option.kind})\n" for option in listed)
    assert names == FROZEN.read_text(encoding="utf-8")
    assert all(option.text for option in options_of(InitStudyConfig, None))
