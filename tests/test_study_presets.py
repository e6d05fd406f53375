"""What the options of `chordflow study` mean, without any training."""

import json
from pathlib import Path
from typing import Any

import pytest

import drift_env as drift_env
from chordflow.cli.jobs import study_settings as parse
from chordflow.cli.main import main
from chordflow.errors import UserError
from chordflow.experiments.config import RECIPES, ReflowJobConfig
from chordflow.experiments.study.config import ArmSettings, StudyConfig
from chordflow.experiments.study.plan import SHARED, begun, job_of, make_plan, resumed
from chordflow.experiments.study.presets import BEGINNINGS, STUDIES
from chordflow.options import build, read_options
from chordflow.policies import FlowPolicy, load_flow_policy
from chordflow.policies.base import Role
from chordflow.results.study import LeftOut, Study
from chordflow.training.methods import MethodConfig
from chordflow.training.methods.coupled import EndpointMethodConfig
from chordflow.training.optimizers import AdamWConfig, SOAPConfig
from chordflow.training.student import StudentInit
from test_study import SMALL, resume

BASE = ["--teacher.path=t", "--dataset.repo_id=a/b", "--output_dir=o"]
FOLDER = Path("t")


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> FlowPolicy:
    """A teacher whose VLM folder holds no weights; not to be changed."""
    return load_flow_policy(checkpoint, device="cpu")


def arms_of(config: StudyConfig, policy: Any) -> tuple[list[ArmSettings], list[LeftOut]]:
    """The arms of a study, and those that are left out."""
    found = list(config.arms_for(policy, FOLDER))
    return [a for a in found if isinstance(a, ArmSettings)], [a for a in found if isinstance(a, LeftOut)]


def jobs(policy: Any, preset: str, *more: str) -> dict[str, ReflowJobConfig]:
    config = parse(preset, [*BASE, *more])
    return {arm.name: job_of(config, arm) for arm in arms_of(config, policy)[0]}


def test_by_default_every_method_is_trained_by() -> None:
    own = '--recipes={"mine": {"method.path_share": 0.5, "method": {"type": "endpoint"}}}'
    found = jobs(None, "methods", own, "--steps=7")
    # Of the method types one is what a recipe is.
    types = [name for name in MethodConfig.get_known_choices() if name != "reflow"]
    assert list(found) == ["mine", *RECIPES, *types]
    assert found["all_steps"].method == jobs(None, "methods", "--methods=[reflow]")["reflow"].method
    assert found["mine"].method == EndpointMethodConfig(path_share=0.5)
    assert all(job.steps == 7 for job in found.values())
    # As the student's own record will say.
    assert [job.recipe for job in found.values()] == [name if name in RECIPES else None for name in found]


def test_shared_settings_are_those_of_reflow_unless_given() -> None:
    alone = build(ReflowJobConfig, read_options(BASE))
    config = parse("methods", BASE)
    assert config.steps == 2000
    for name in SHARED:
        assert getattr(config, name) == getattr(alone, name), name
    own = {"mine": {"optimizer": {"type": "adamw", "lr": 1e-4}, "student": {"train": ["action_head"]}}}
    found = jobs(
        None, "methods", "--seconds=9", "--optimizer.max_precondition_dim=99", "--optimizer.lr=3e-3", "--batch_size=5",
        "--buffer.block_size=8", f"--recipes={json.dumps(own)}", "--methods=[snapflow,mine]",
    )  # fmt: skip
    assert list(found) == ["snapflow", "mine"]
    assert found["snapflow"].optimizer == SOAPConfig(lr=3e-3, max_precondition_dim=99)
    # Another type's settings are not laid over.
    assert found["mine"].optimizer == AdamWConfig(lr=1e-4)
    assert found["mine"].student.train == [Role.ACTION_HEAD]
    assert all((job.batch_size, job.buffer.block_size) == (5, 8) for job in found.values())


def test_observations_are_collected_where_episodes_are_run_unless_an_arm_says_otherwise() -> None:
    own = {"here": {"observations": "rollout"},
           "there": {"observations": "rollout", "env": {"type": "drift_of_the_tests", "state_dim": 4}}}  # fmt: skip
    found = jobs(None, "methods", f"--recipes={json.dumps(own)}", "--env.type=drift_of_the_tests")
    assert found["here"].env == drift_env.DriftEnvConfig()
    assert found["there"].env == drift_env.DriftEnvConfig(state_dim=4)
    assert found["all_steps"].env is None


def test_an_arm_with_another_solver_is_resumed(checkpoint: Path, dataset_root: Path, tmp_path: Path) -> None:
    given = [f"--teacher.path={checkpoint}", f"--dataset.root={dataset_root}", f"--output_dir={tmp_path}"]
    own = json.dumps({"ten": {"coupling": {"solver": "euler"}}})
    config = parse("methods", [*given, *SMALL, "--methods=[reflow,ten]", f"--recipes={own}", "--steps=2"])
    before = begun(config, make_plan(config), [])
    before.save(tmp_path / "study.json")
    added = json.dumps({name: {"coupling": {"solver": "euler"}} for name in ("ten", "also")})
    config = parse(None, resume(tmp_path, "--methods=[reflow,ten,also]", f"--recipes={added}")[1:])
    after = resumed(begun(config, make_plan(config), []), before)
    assert [arm.settings["coupling"]["num_steps"] for arm in after.arms] == [16, 10, 10]


def test_by_default_beginnings_that_the_teacher_has_are_trained_at_both_rates(policy: FlowPolicy) -> None:
    arms, left_out = arms_of(parse("beginnings", BASE), policy)
    names, rates = ["teacher", "teacher_full", "teacher_vlm", "random", "random_full"], ("0.0001", "2e-05")
    assert [arm.name for arm in arms] == [f"{name}_lr_{rate}" for name in names for rate in rates]
    assert [arm.settings["optimizer"]["lr"] for arm in arms] == [1e-4, 2e-5] * 5
    assert [arm.name for arm in left_out] == ["pretrained_vlm"]
    assert "is a model without weights" in left_out[0].reason
    with pytest.raises(UserError, match=r"arms: pretrained_vlm: vlm_model_name=.* without weights"):
        arms_of(parse("beginnings", [*BASE, "--arms=[teacher,pretrained_vlm]"]), policy)
    everything = {name for name, (_, everything) in BEGINNINGS.items() if everything}
    assert everything == {f"{init}_full" for init in StudentInit}


def test_a_beginning_that_is_another_is_left_out(policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(policy), "default_train_roles", tuple(Role))
    one_rate = [*BASE, "--learning_rates=[1]"]
    arms, left_out = arms_of(parse("beginnings", one_rate), policy)
    assert [arm.way for arm in arms] == ["teacher", "teacher_vlm", "random"]
    assert "so this is teacher" in left_out[0].reason
    with pytest.raises(UserError, match=r"arms: random_full: .* so this is random"):
        arms_of(parse("beginnings", [*one_rate, "--arms=[random,random_full]"]), policy)


def test_looks_are_by_default_parts_of_the_budget() -> None:
    assert parse("beginnings", BASE).looks == [0, 250, 500, 1000, 2000]
    assert parse("beginnings", [*BASE, "--steps=3"]).looks == [0, 1, 3]
    assert parse("beginnings", [*BASE, "--seconds=8"]).looks == [0, 1, 2, 4, 8]
    assert parse("methods", [*BASE, "--steps=3"]).looks == [3]


def ways(*more: str) -> list[str]:
    return list(dict.fromkeys(arm.way for arm in arms_of(parse("rounds", [*BASE, *more]), None)[0]))


def test_ways_depart_in_one_thing_or_in_all_combinations() -> None:
    one = ways()
    assert one == ["last", "first", "once", "last, euler", "last, real 0.1"]
    crossed = ways("--crossed")
    assert crossed[:5] == one
    assert len(crossed) == len(set(crossed)) == 12
    assert "once, euler, real 0.1" in crossed


def test_rounds_are_chains_that_share_the_first() -> None:
    config = parse(
        "rounds", [*BASE, "--starts=[last,fresh,first,once]", "--solvers=[euler]", "--real_data_shares=[0]"]
    )
    arms = {arm.name: arm for arm in arms_of(config, None)[0]}
    assert {name: arm.teacher for name, arm in arms.items()} == {
        "euler_round_1": None, "euler_last_2": "euler_round_1", "euler_last_3": "euler_last_2",
        "euler_fresh_1": None, "euler_fresh_2": "euler_fresh_1", "euler_fresh_3": "euler_fresh_2",
        "euler_first_2": "euler_round_1", "euler_first_3": "euler_first_2", "euler_once_6000": None,
    }  # fmt: skip
    found = {name: job_of(config, arm) for name, arm in arms.items()}
    assert {job.coupling.grid_power for job in found.values()} == {1.0}
    assert found["euler_fresh_2"].student.init == StudentInit.TEACHER_VLM
    assert found["euler_first_3"].student.init_path == str(FOLDER.resolve())
    assert found["euler_once_6000"].steps == 6000
    # How a student begins is for the first round alone, as in reflow.
    config = parse("rounds", [*BASE, "--student.init=random", "--starts=[last]"])
    first, second, *_ = (job_of(config, arm) for arm in arms_of(config, None)[0])
    assert (first.student.init, second.student.init) == (StudentInit.RANDOM, StudentInit.TEACHER)


def test_reuse_combines_uses_and_noises() -> None:
    found = jobs(None, "reuse", "--uses=[2,null]", "--noises=[1,4]")
    pairs = [(job.buffer.uses_per_coupling, job.buffer.noises_per_observation) for job in found.values()]
    assert pairs == [(2, 1), (2, 4), (None, 1), (None, 4)]
    assert list(found) == ["uses_2_noises_1", "uses_2_noises_4", "uses_all_noises_1", "uses_all_noises_4"]


WRONG: list[tuple[str, list[str], str]] = [
    ("methods", ["--steps=2", "--seconds=3"], "steps=2 and seconds=3.0: give one of the two"),
    ("methods", ["--seeds=[1,1]"], "seeds=[1, 1]: give at least one, each once"),
    ("methods", ["--methods=[endpoint,endpoint]"], "methods=[endpoint,endpoint]: give at least one, each once"),
    ("methods", ["--methods=[reflo]"], "methods=[reflo]: choose all_steps, one_step, "),
    ("methods", ['--recipes={"reflow": {}}'], "recipes holds the name 'reflow', which is taken"),
    ("methods", ['--recipes={"a/b": {}}'], "recipes holds the name 'a/b', which is taken or no name"),
    ("methods", ['--recipes={"Study.md": {}}'], "recipes holds the name 'Study.md', which is taken"),
    ("methods", ['--recipes={"a": {"seed": 3}}'], "recipes: 'a' sets seed, which all arms"),
    ("methods", ["--eval.n_episodes=4"], "eval: these options are about episodes; give --env.type as well"),
    ("methods", ["--steps=5", "--looks=[0,4]"], "looks=[0.0, 4.0]: give them rising, the last of them the budget, 5"),
    ("methods", ["--resume=true"], "resume=true needs --config_path=OUTPUT_DIR/study.json"),
    ("beginnings", ["--optimizer.lr=1e-3"], "optimizer.lr=0.001: give --learning_rates='[0.001]' instead"),
    ("beginnings", ["--method.type=noise_biased"], "method.type=noise_biased: the method does not look at couplings"),
    ("rounds", ["--rounds=1"], "rounds=1: give at least 2"),
    ("rounds", ["--seconds=3"], "starts holds once, which has a number of steps"),
    ("file", [], "arms=[]: give at least one, each once, as in arms: {"),
    ("file", ['--arms={"a": {"teacher": "b"}}'], "arms: 'a': teacher=b: there is no other arm; leave it"),
    ("file", ['--arms={"a": {"teacher": "z"}, "b": null}'], "arms: 'a': teacher=z: choose b."),
    ("file", ['--arms={"a": {"steps": "abc"}}'], "arms: 'a': steps=abc: give a whole number, at least 1."),
    ("file", ['--arms={"a": {"steps": 2}}', "--seconds=9"], "arms: 'a': steps=2: the budget of this study is in sec"),
    ("file", ["--arms=[a,b]"], "give a JSON object or YAML mapping"),
    ("file", ['--arms={"a": {"teacher": "b"}, "b": {"teacher": "a"}}'], ": an arm cannot teach itself"),
    ("file", ['--arms={"a": {"teacher.path": "x"}}'], "arms: 'a' sets teacher.path, which all arms of a study"),
    ("file", ['--arms={"a": {"steps": 0}}'], "arms: 'a': steps=0: give a whole number, at least 1"),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "more", "words"), WRONG)
def test_what_is_wrong_is_said_in_one_sentence(preset: str, more: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(preset, [*BASE, *more])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_student_that_cannot_teach_is_refused(checkpoint: Path, dataset_root: Path, tmp_path: Path) -> None:
    given = [f"--teacher.path={checkpoint}", f"--dataset.root={dataset_root}", f"--output_dir={tmp_path}"]
    arms = {"a": {"method": {"type": "endpoint"}}, "b": {"teacher": "a"}}
    with pytest.raises(UserError, match=r"arms: 'b': teacher=a: .* is trained for one step alone"):
        make_plan(parse("file", [*given, *SMALL, f"--arms={json.dumps(arms)}"]))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["study", *arguments]) == 2
    return capsys.readouterr().err


def test_what_is_no_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "say which study" in refused(capsys)
    assert "say which study" in refused(capsys, "--steps=3")
    assert "'method' is no study and no file; did you mean methods?" in refused(capsys, "method")
    assert "'arms.yaml' is no study and no file" in refused(capsys, "arms.yaml")
    assert "name the studies' files" in refused(capsys, "table")
    assert "/study.json cannot be read" in refused(capsys, "table", str(tmp_path))
    assert main(["study", "--help"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert {*STUDIES} - {"file"} <= {line.split()[0] for line in said if line.startswith("  ")}


def test_a_file_that_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "arms.yaml"
    for text, words in [
        ("arms: [", "is neither JSON nor YAML"),
        ("- 1", "holds no settings"),
        ("teacher: {path: t}\ndataset: {repo_id: a/b}\narms: {a: {}}", "--output_dir is missing"),
        ("arms: {a: {}, b: {}, a: {steps: 3}}", "holds a twice"),
        ("teacher: {path: t}\ndataset: {repo_id: a/b}\noutput_dir: o\narms: {a: 3}", "arms: 'a' is 3"),
    ]:
        file.write_text(text)
        assert words in refused(capsys, str(file))
    assert "give one of the two; a study that is resumed takes another arm as --arms.NAME" in refused(
        capsys, str(file), "--resume=true", "--config_path=study.json"
    )
    assert "--armz is not an option; did you mean --arms" in refused(capsys, str(file), "--armz={}")


def test_another_file_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study.json"
    for kind, said in (
        ("reflow", "is of kind reflow"),
        ("study", "is no readable result of chordflow study"),
    ):
        path.write_text(json.dumps({"kind": kind, "schema_version": 1, "preset": "methods", "settings": {}}))
        assert said in refused(capsys, *resume(tmp_path)[1:])
    Study("methods", [], {"steps": 2}, {}, "cpu", "a/b", "0", [], [0], 2, None, [2.0]).save(path)
    assert "holds settings that cannot be used (--" in refused(capsys, *resume(tmp_path)[1:])
    assert "steps=8: the study began with 2, and another" in refused(
        capsys, *resume(tmp_path, "--steps=8")[1:]
    )
    said = refused(capsys, "rounds", *resume(tmp_path)[1:])
    assert "is a study of methods; write: chordflow study methods" in said


def test_older_names_say_what_they_are_called_now(capsys: pytest.CaptureFixture[str]) -> None:
    for old, new, options, words in (
        ("compare", "methods", ["--steps=0"], "steps=0: give at least 1"),
        ("study init", "beginnings", ["--steps=2", "--checkpoints=[3]"], "looks=[3.0]: give them rising"),
    ):
        assert main([*old.split(), *BASE, *options]) == 2
        said = capsys.readouterr()
        assert f"chordflow study {new}" in said.out + said.err
        assert words in said.err


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "2"), ("ACCELERATE_USE_FSDP", "true")])
def test_several_processes_are_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert f"{name}={value}: a study trains in one process" in refused(capsys, "methods", *BASE)


@pytest.mark.parametrize("kind", ["compare", "study init", "study rounds"])
def test_a_file_of_an_older_layout_is_refused_with_its_converter(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"kind": kind, "settings": {}}))
    for given in (["methods"], ["--resume=true"], ["rounds", "--resume=true"]):
        said = refused(capsys, *given, f"--config_path={path}")
        assert f"python scripts/convert_study.py {path}" in said
