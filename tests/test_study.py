"""`chordflow study` on a small SmolVLA: what it trains and measures, how it resumes, what it refuses on the way."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import drift_env as drift_env
from builders import build_checkpoint, build_vlm
from chordflow.cli.main import main
from chordflow.couplings import DatasetConfig, open_split
from chordflow.errors import UserError
from chordflow.evaluation.measure import measure
from chordflow.experiments.collect import EPISODES_OF_A_SEED
from chordflow.experiments.provenance import lineage
from chordflow.experiments.rounds import round_seed
from chordflow.experiments.study import run as job
from chordflow.experiments.study.plan import resumed
from chordflow.policies import load_flow_policy
from chordflow.policies.base import Role
from chordflow.policies.sampling import Sampler
from chordflow.results.study import Study
from chordflow.training.steps import Training
from small_jobs import FewSteps

SMALL = [
    "--batch_size=4", "--buffer.num_observations=8", "--buffer.noises_per_observation=2", "--buffer.block_size=4",
    "--num_workers=0", "--device=cpu", "--dataset.repo_id=test/tiny", "--dataset.eval_split=0.4", "--seeds=[5]",
    "--measure.num_observations=4",
]  # fmt: skip
QUICK = ["--optimizer.type=adamw", "--measure.converged_noises=1"]
ACTING = ["--env.type=drift_of_the_tests", "--eval.n_episodes=4", "--eval.batch_size=2"]
OWN = json.dumps({
    "shown": {"method": {"type": "noise_biased"}, "ema": {"enable": True}, "batch_size": 2},
    "acted": {"observations": "rollout", "collect": {"num_observations": 4, "batch_size": 2}},
})  # fmt: skip

Run = Callable[..., int]


@pytest.fixture(scope="module")
def with_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose config names a VLM with weights, which are not its own."""
    folder = tmp_path_factory.mktemp("with_vlm")
    vlm = build_vlm(folder / "vlm", seed=3)
    return build_checkpoint(folder / "pretrained_model", vlm, load_vlm_weights=False)


@pytest.fixture(scope="module")
def study(checkpoint: Path, dataset_root: Path) -> Run:
    """Runs a study with a folder and options; returns the exit code."""

    def run(preset: str, output: Path, *more: str, teacher: Path = checkpoint) -> int:
        given = [f"--teacher.path={teacher}", f"--dataset.root={dataset_root}", f"--output_dir={output}"]
        return main(["study", preset, *given, *SMALL, *more])

    return run


def resume(folder: Path, *more: str) -> list[str]:
    return ["study", "--resume=true", f"--config_path={folder / 'study.json'}", *more]


@pytest.fixture(scope="module")
def methods(study: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study of methods; not to be written to."""
    output = tmp_path_factory.mktemp("methods") / "done"
    given = ["--methods=[one_step,shown,acted]", f"--recipes={OWN}", "--steps=3", "--optimizer.lr=1e-3"]
    assert study("methods", output, *given, *QUICK, *ACTING) == 0
    return output


@pytest.fixture(scope="module")
def beginnings(study: Run, with_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study of beginnings; not to be written to."""
    output = tmp_path_factory.mktemp("beginnings") / "done"
    given = ["--arms=[teacher,pretrained_vlm,random_full]", "--learning_rates=[1e-3]", "--log_freq=2"]
    given += ["--steps=3", "--looks=[0,3]", "--level=9", "--measure.converged_noises=1"]
    assert study("beginnings", output, *given, teacher=with_vlm) == 0
    return output


@pytest.fixture(scope="module")
def rounds(study: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study of rounds; not to be written to."""
    output = tmp_path_factory.mktemp("rounds") / "done"
    given = ["--rounds=2", "--steps=2", "--solvers=[adams_bashforth]", "--real_data_shares=[0.5]", *QUICK]
    assert study("rounds", output, *given) == 0
    return output


def test_every_method_is_trained_measured_and_run(methods: Path) -> None:
    found = Study.load(methods / "study.json")
    assert (found.preset, found.steps, found.looks) == ("methods", 3, [3])
    assert [(arm.name, arm.method) for arm in found.arms] == [
        ("one_step", "endpoint"), ("shown", "noise_biased"), ("acted", "reflow"),
    ]  # fmt: skip
    assert [arm.step_counts for arm in found.arms] == [[1], None, None]
    assert [(trial.arm, trial.seed, trial.steps, trial.samples) for trial in found.trials] == [
        ("one_step", 5, 3, 12), ("shown", 5, 3, 6), ("acted", 5, 3, 12),
    ]  # fmt: skip
    assert found.arms[1].settings["ema"]["enable"] is True
    assert found.arms[1].settings["optimizer"]["lr"] == 1e-3
    assert [trial.rollouts is not None for trial in found.trials] == [False, False, True]
    # Every seed collects in episodes of its own.
    collections = methods / "acted" / "seed_5" / "observations"
    about = json.loads((collections / "collection_000000" / "collection.json").read_text())
    assert 0 < about["next_seed"] - (10**9 + 5 * EPISODES_OF_A_SEED) < EPISODES_OF_A_SEED
    assert {row.num_steps for row in found.untrained.success} == {1, 2, 10}
    for figures in (found.untrained.figures, *(trial.last.figures for trial in found.trials)):
        assert {(row.num_steps, row.reference) for row in figures.gaps} == {
            (n, reference) for n in (1, 2, 10) for reference in ("deployed", "converged")
        }
        assert [row.num_steps for row in figures.diversity] == [1, 2, 10]
    for trial in found.trials:
        assert trial.training_s > (trial.ready_s or 0) > 0
        row = trial.last.success[0]
        assert row.versus_teacher.episodes == row.episodes == 4
        stored = pq.read_table(methods / trial.arm / "seed_5" / "episodes" / "episodes.parquet")
        assert sum(stored["success"].to_pylist()) == row.successes
        assert set(stored["num_steps"].to_pylist()) == {1}
    assert "one\\_step" in (methods / "study.md").read_text()
    assert (methods / "study.html").is_file()


def test_figures_are_those_of_the_checkpoint_on_disk(
    checkpoint: Path, dataset_root: Path, methods: Path
) -> None:
    found = Study.load(methods / "study.json")
    look = found.trials[0].last
    teacher, student = (load_flow_policy(at, device="cpu") for at in (checkpoint, methods / look.student))
    split = open_split(DatasetConfig("test/tiny", root=str(dataset_root), eval_split=0.4), teacher)
    config = FewSteps(4, num_steps=[1, 2, 10], solvers=["euler"], converged_noises=1, latency_repeats=1)
    samplers = {"teacher": Sampler(teacher, 10), "student": Sampler(student, 1)}
    measures = measure(samplers, split.held_out, config)
    for figures, name in ((found.untrained.figures, "teacher"), (look.figures, "student")):
        (curvature,) = (row for row in measures.curvature if row.policy == name)
        assert (figures.s, figures.curvature) == (curvature.s, curvature.curvature)
        expected = [replace(row, ratio_to_untrained=None) for row in measures.gaps if row.policy == name]
        assert sorted(map(repr, figures.gaps)) == sorted(map(repr, expected))


def reflow(output: Path, checkpoint: Path, root: Path, *more: str) -> None:
    given = [f"--teacher.path={checkpoint}", f"--dataset.root={root}", f"--output_dir={output}", "--seed=5"]
    little = ["--measure.noises_per_observation=16", "--measure.num_steps=[1]", "--measure.latency_repeats=1"]
    taken = {"--seeds", *(option.partition("=")[0] for option in more)}
    small = [option for option in SMALL if option.partition("=")[0] not in taken]
    assert main(["reflow", *given, *small, *little, *more]) == 0


def same_weights(one: Path, other: Path) -> None:
    expected, found = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected)


def test_a_student_of_so_many_steps_is_that_of_reflow(
    checkpoint: Path, dataset_root: Path, methods: Path, tmp_path: Path
) -> None:
    # In a study a recipe lies over the shared settings, in a job of its own under the options.
    recipe = ["--recipe=one_step", "--buffer.noises_per_observation=6", "--steps=3", "--optimizer.lr=1e-3"]
    reflow(tmp_path / "alone", checkpoint, dataset_root, *recipe, *QUICK)
    alone = tmp_path / "alone" / "checkpoints" / "last" / "pretrained_model"
    beside = methods / "one_step" / "seed_5" / "pretrained_model"
    same_weights(alone, beside)
    records = [json.loads((folder / "reflow_config.json").read_text()) for folder in (alone, beside)]
    names = ("recipe", "method", "optimizer", "buffer", "coupling", "student", "seed", "steps", "step_counts")
    for name in names:
        assert records[0][name] == records[1][name], name


@pytest.mark.slow
def test_rounds_are_those_of_reflow(
    checkpoint: Path, dataset_root: Path, rounds: Path, tmp_path: Path
) -> None:
    more = ["--rounds=2", "--steps=2", "--method.real_data_share=0.5", *QUICK]
    reflow(tmp_path / "alone", checkpoint, dataset_root, *more)
    for number, arm in ((1, "real_0.5_round_1"), (2, "real_0.5_last_2")):
        alone = tmp_path / "alone" / f"round_{number}" / "checkpoints" / "last" / "pretrained_model"
        same_weights(alone, rounds / arm / "seed_5" / "pretrained_model")


def test_every_beginning_is_looked_at_on_the_way(beginnings: Path) -> None:
    found = Study.load(beginnings / "study.json")
    names = ["teacher_lr_0.001", "pretrained_vlm_lr_0.001", "random_full_lr_0.001"]
    assert [arm.name for arm in found.arms] == [trial.arm for trial in found.trials] == names
    assert [arm.way for arm in found.arms] == ["teacher", "pretrained_vlm", "random_full"]
    heads = [arm.settings["student"]["train"] for arm in found.arms]
    assert heads == [["action_head"], ["action_head"], [role.value for role in Role]]
    for trial in found.trials:
        assert (trial.samples, [(look.mark, look.step) for look in trial.looks]) == (12, [(0, 0), (3, 3)])
        assert trial.losses.steps == [1, 2, 3]
        assert all(look.figures is not None for look in trial.looks)
    teacher, vlm, everything = found.trials
    # Before any step the student from the teacher is the teacher, and the others are far from it.
    for num_steps in (1, 2, 10):
        own = found.untrained.figures.gap(num_steps)
        assert teacher.looks[0].rms(num_steps) == pytest.approx(own.rms, rel=1e-5)
    firsts = [trial.losses.losses[0] for trial in (teacher, vlm, everything) if trial.losses is not None]
    assert firsts[0] < min(firsts[1:])
    assert teacher.looks[0].rms(1) != teacher.looks[1].rms(1)
    # All are trained on the same couplings, also those that encode for themselves.
    assert len({trial.couplings_sha256 for trial in found.trials}) == 1
    # Students on the way are not kept, nor is an empty folder.
    assert [path.name for path in (beginnings / names[0] / "seed_5").iterdir()] == ["pretrained_model"]
    later = replace(found, env="drift", settings={**found.settings, "env": {}})
    with pytest.raises(UserError, match="env: the study began without one"):
        resumed(later, found)


def test_students_are_checkpoints_of_what_their_arm_says(beginnings: Path, with_vlm: Path) -> None:
    original = load_file(with_vlm / "model.safetensors")
    policy = load_flow_policy(with_vlm, device="cpu")
    named = {key: policy.role_of(policy.parameter_name(key)) for key in original}
    before = torch.random.get_rng_state()
    given = policy.pretrained_vlm()
    assert torch.random.get_rng_state().equal(before)
    assert {named[key] for key in given if key in named} == {Role.VISION, Role.LANGUAGE}

    def weights(arm: str) -> dict[str, torch.Tensor]:
        return load_file(beginnings / f"{arm}_lr_0.001/seed_5/pretrained_model/model.safetensors")

    teacher, vlm, everything = (weights(arm) for arm in ("teacher", "pretrained_vlm", "random_full"))
    assert teacher.keys() == vlm.keys() == everything.keys() == original.keys()
    for key, role in named.items():
        frozen = role != Role.ACTION_HEAD
        assert not frozen or teacher[key].equal(original[key])
        if frozen and key in given:
            assert vlm[key].equal(given[key].to(vlm[key].dtype)), key
    changed = {role for key, role in named.items() if not everything[key].equal(original[key])}
    assert changed == set(Role)


def test_a_vlm_with_a_part_of_its_weights_is_refused(with_vlm: Path, tmp_path: Path) -> None:
    teacher = load_flow_policy(with_vlm, device="cpu")
    folder = shutil.copytree(teacher.config.vlm_model_name, tmp_path / "vlm")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    gone = next(key for key in sorted(tensors) if "text_model.layers.0" in key and key.endswith("weight"))
    save_file({key: tensor for key, tensor in tensors.items() if key != gone}, file, {"format": "pt"})
    teacher.config.vlm_model_name = str(folder)
    with pytest.raises(UserError, match=rf"has no weights for 1 of its tensors, such as {gone}"):
        teacher.pretrained_vlm()


def test_episodes_are_run_at_every_look(study: Run, with_vlm: Path, tmp_path: Path) -> None:
    output = tmp_path / "acted"
    more = ["--arms=[teacher]", "--learning_rates=[1e-3]", "--seconds=0.3", "--looks=[0,0.3]", "--keep_looks"]
    assert study("beginnings", output, *more, *QUICK, *ACTING, teacher=with_vlm) == 0
    found = Study.load(output / "study.json")
    (trial,) = found.trials
    assert trial.training_s >= 0.3
    assert [(look.mark, look.success[0].episodes) for look in trial.looks] == [(0, 4), (0.3, 4)]
    assert all(look.success[0].versus_teacher is not None for look in trial.looks)
    at_one = next(row for row in found.untrained.success if row.num_steps == 1)
    assert trial.looks[0].success[0].successes == at_one.successes
    assert all((output / look.student).is_dir() for look in trial.looks)


def test_a_round_is_taught_by_the_last_student_and_begins_as_its_arm_says(
    rounds: Path, checkpoint: Path
) -> None:
    found = Study.load(rounds / "study.json")
    ways = [([arm.name for arm in chain], chain[-1].way) for chain in found.chains]
    assert ways == [
        (["real_0.5_round_1", "real_0.5_last_2"], "last, real 0.5"),
        (["real_0.5_round_1", "real_0.5_first_2"], "first, real 0.5"),
        (["real_0.5_once_4"], "once, real 0.5"),
    ]
    assert [trial.steps for trial in found.trials] == [2, 2, 2, 4]
    (teacher,) = {sha for trial in found.trials for sha in lineage(rounds / trial.last.student)[:1]}
    assert teacher == found.teacher_sha256
    records = {}
    for trial in found.trials:
        folder = rounds / trial.last.student
        records[trial.arm.removeprefix("real_0.5_")] = json.loads((folder / "reflow_config.json").read_text())
        taught_by = [teacher, found.trials[0].last.weights_sha256] if trial.arm.endswith("_2") else [teacher]
        assert lineage(folder)[:-1] == taught_by, trial.arm
    assert records["last_2"]["student"]["init_path"] is None
    assert records["first_2"]["student"]["init_path"] == str(checkpoint.resolve())
    # A teacher that is saved with one step is solved as the first one was.
    assert {record["coupling"]["num_steps"] for record in records.values()} == {16}
    assert [records[name]["seed"] for name in ("last_2", "first_2")] == [round_seed(5, 2)] * 2
    assert {record["method"]["real_data_share"] for record in records.values()} == {0.5}


def test_a_file_of_arms_is_run_and_added_to(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, file = tmp_path / "out", tmp_path / "arms.yaml"
    file.write_text(f"""
teacher: {{path: {checkpoint}}}
dataset: {{repo_id: test/tiny, root: {dataset_root}}}
output_dir: {output}
steps: 1
arms:
  second: {{teacher: plain, coupling.solver: euler}}
  plain: {{}}
""")
    assert main(["study", str(file), *SMALL, *QUICK]) == 0
    first = Study.load(output / "study.json")
    assert [(arm.name, arm.teacher, arm.differs) for arm in first.arms] == [
        ("plain", None, {}), ("second", "plain", {"coupling.solver": "euler"}),
    ]  # fmt: skip
    assert lineage(output / first.trials[1].last.student)[1] == first.trials[0].last.weights_sha256
    arms = {"plain": {}, "longer": {"teacher": "plain", "steps": 2}}
    assert main(resume(output, f"--arms={json.dumps(arms)}")) == 0
    second = Study.load(output / "study.json")
    assert second.trials[:2] == first.trials
    assert [(trial.arm, trial.steps) for trial in second.trials[2:]] == [("longer", 2)]
    assert [trial.steps for trial in first.trials] == [1, 1]
    # A student that is not what was trained teaches nobody.
    (output / first.trials[0].last.student / "model.safetensors").write_bytes(b"0")
    arms["third"] = {"teacher": "plain"}
    assert main(resume(output, f"--arms={json.dumps(arms)}")) == 2
    assert "is not there or not what was trained" in capsys.readouterr().err


def test_an_interrupted_study_resumes_in_the_same_bits(
    beginnings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new folder"
    shutil.copytree(beginnings, output)
    study = Study.load(output / "study.json")
    first, second, third = study.trials
    # As it stood after one trial and a half, the second having been trained and not measured at its end.
    half = replace(second, looks=[second.looks[0], replace(second.looks[1], figures=None)])
    replace(study, trials=[first, half]).save(output / "study.json")
    train_student, trained = job.train_student, []

    def stop(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "train_student", stop)
    assert main(resume(output)) == 130
    said = capsys.readouterr().err
    assert f"chordflow study --resume=true --config_path='{output / 'study.json'}'" in said
    assert Study.load(output / "study.json").trials == [first, second]

    def note(*given: Any, **named: Any) -> Any:
        trained.append(given[1:3])
        return train_student(*given, **named)

    monkeypatch.setattr(job, "train_student", note)
    assert main(resume(output)) == 0
    assert trained == [("random_full_lr_0.001", 5)]
    again = Study.load(output / "study.json").trials[2]
    assert (again.losses, again.couplings_sha256) == (third.losses, third.couplings_sha256)
    seconds = [look.seconds for look in third.looks]
    assert [replace(look, seconds=s) for look, s in zip(again.looks, seconds, strict=True)] == third.looks
    assert main(resume(output, "--steps=4", "--looks=[4]")) == 2
    assert "steps=4: the study began with 3" in capsys.readouterr().err


def test_a_trial_that_fails_can_be_left_out_and_seeds_be_added(
    study: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    own = json.dumps({"wild": {"optimizer": {"type": "adamw", "lr": 1e30}}})
    given = ["--methods=[wild,reflow]", f"--recipes={own}", "--steps=1", *QUICK]
    assert study("methods", output, *given) == 2
    said = " ".join(capsys.readouterr().err.split())
    for words in ("wild, seed 5", "the loss is not finite at step", "--methods='[reflow]'"):
        assert words in said
    assert Study.load(output / "study.json").trials == []
    assert not (output / "wild" / "seed_5" / "pretrained_model").exists()
    # One whose loss is finite can still be no student.
    monkeypatch.setattr(Training, "check", lambda *given: None)
    assert main(resume(output)) == 2
    assert "end in NaN or infinite actions" in " ".join(capsys.readouterr().err.split())
    monkeypatch.undo()
    assert main(resume(output, "--methods=[reflow]", "--seeds=[5,6]")) == 0
    found = Study.load(output / "study.json")
    assert [trial.seed for trial in found.trials if trial.arm == "reflow"] == [5, 6]
    # The command is the one that made the table: going on adds nothing to it.
    assert main(resume(output, "--methods=[reflow]", "--seeds=[5,6]")) == 0
    assert Study.load(output / "study.json").command == found.command


def test_another_study_is_not_resumed(methods: Path) -> None:
    before = Study.load(methods / "study.json")
    other = [replace(before.arms[0], settings={}), *before.arms[1:]]
    env = {"settings": {**before.settings, "eval": {}}}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"arms": other}, "arms: 'one_step' had other settings"),
        ({"device": "another machine"}, "the study began on"),
        ({"teacher_processors_sha256": "0"}, "its weights or its processors' statistics are"),
        ({"teacher_sha256": "0"}, "its processors' statistics are not those that the study began with"),
        (env, "eval: the study began with"),
    ]
    for change, words in changes:
        with pytest.raises(UserError, match=words):
            resumed(replace(before, **change), before)
    # An environment can be added where there was none.
    without = replace(before, settings={**before.settings, "env": None}, trials=[])
    assert resumed(replace(before, **env), without).trials == []


def test_a_folder_that_is_there_is_not_written_to(
    study: Run, methods: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study("methods", methods) == 2
    assert "or resume with: chordflow study --resume=true" in capsys.readouterr().err


@pytest.mark.parametrize(("recipe", "more", "words"), [
    ({"batch_size": 64}, ["--steps=2"], "arms: 'own': batch_size=64"),
    ({"scheduler": {"num_warmup_steps": 5}}, ["--seconds=2"], "scheduler.num_warmup_steps=5: the budget is in"),
    ({"method": {"type": "endpoint"}, "buffer.path_points": 2}, [], "arms: 'own': buffer.path_points=2: with"),
    ({}, ["--buffer.path_points=2"], "arms: 'reflow': buffer.path_points=2: with"),
    ({"optimizer": {"lrr": 3}}, [], "arms: 'own': --optimizer.lrr is not an option; did you mean --optimizer.lr"),
    ({"observations": "rollout"}, [], "arms: 'own': observations=rollout needs"),
])  # fmt: skip
def test_an_unfit_arm_is_named_before_anything_is_trained(
    study: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    recipe: dict[str, Any], more: list[str], words: str,
) -> None:  # fmt: skip
    own = json.dumps({"own": recipe})
    assert study("methods", tmp_path / "out", "--methods=[reflow,own]", f"--recipes={own}", *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
