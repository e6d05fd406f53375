"""Options: LeRobot's way of writing them, defaults named in the help, one sentence for what is wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from builders import parse_evaluate
from chordflow.cli.help import VerbHelp, answer, load
from chordflow.cli.main import VERBS, main
from chordflow.couplings import DatasetConfig
from chordflow.errors import UserError
from chordflow.experiments.config import ReflowJobConfig
from chordflow.options import build, nest, options_of, read_options
from chordflow.policies import Role
from chordflow.refusing import BARE, NONE, TABLE, check
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.objective import BetaTimes, UniformTimes, UShapedTimes
from chordflow.training.optimizers import AdamWConfig, SOAPConfig
from lerobot_env_detour import DetourEnvConfig
from script_files import ROOT, load_script
from small_runs import Capture

REQUIRED = ["--teacher.path=t", "--dataset.repo_id=a/b", "--output_dir=out"]


def parse(*arguments: str) -> ReflowJobConfig:
    return build(ReflowJobConfig, read_options([*REQUIRED, *arguments]))


def test_values_reach_their_fields() -> None:
    config = parse(
        "--steps=7", "--optimizer.lr", "1e-3", "--optimizer.betas=[0.8,0.9]", "--resume", "--measure.num_steps=[1,3]",
        "--student.train=[action_head,prefix_projections]", '--rename_map={"a": "b"}', "--dataset.root=/x y/ü",
    )  # fmt: skip
    assert (config.steps, config.optimizer.lr, config.optimizer.betas) == (7, 1e-3, (0.8, 0.9))
    assert (config.resume, config.measure.num_steps, config.rename_map) == (True, [1, 3], {"a": "b"})
    assert config.student.train == [Role.ACTION_HEAD, Role.PREFIX_PROJECTIONS]
    assert (config.dataset.root, config.output_dir) == ("/x y/ü", Path("out"))


def test_choices_take_their_default_type_unless_told() -> None:
    times = [
        parse("--method.times.at_noise=0.2").method.times,  # type: ignore[attr-defined]
        parse("--method.times.type=u_shaped", "--method.times.a=2").method.times,  # type: ignore[attr-defined]
        parse("--method.type=reflow", "--method.times.type=beta").method.times,  # type: ignore[attr-defined]
    ]
    assert times == [UniformTimes(0.2), UShapedTimes(0.5, 2.0), BetaTimes()]
    assert parse("--optimizer.lr=1e-3").optimizer == SOAPConfig(lr=1e-3)
    assert parse("--optimizer.type=adamw").optimizer == AdamWConfig()


def test_options_override_the_settings_of_a_file() -> None:
    base = {
        "teacher": {"path": "t"}, "dataset": {"repo_id": "a/b"}, "output_dir": "o", "steps": 5, "seed": 3,
        "method": {"type": "reflow", "times": {"type": "u_shaped", "at_noise": 0.1, "a": 9.0}},
    }  # fmt: skip
    config = build(ReflowJobConfig, {"steps": "6", "method.times.at_noise": "0.3"}, base)
    assert (config.steps, config.seed, config.teacher.path) == (6, 3, "t")
    assert config.method == ReflowMethodConfig(times=UShapedTimes(0.3, 9.0))
    other = build(ReflowJobConfig, {"method.times.type": "beta"}, base)
    assert other.method == ReflowMethodConfig(times=BetaTimes())


@pytest.mark.parametrize(("arguments", "message"), [
    ("--nonsense=1", "--nonsense is not an option; see --help"),
    ("--optimizer=1", "--optimizer is a group"),
    ("--lr=1", "did you mean --optimizer.lr?"),
    ("--policy.path=t", "--policy is another name of --teacher"),
    ("--steps=1.5", "steps=1.5: give a whole number"),
    ("--steps=0", "steps=0: give at least 1"),
    ("--steps=", "steps= is empty"),
    ("steps=3", "'steps=3' is not an option"),
    ("--steps=3 --steps=4", "--steps is given twice"),
    ("--batch_size=-4", "batch_size=-4: give at least 1"),
    ("--num_inference_steps=0", "num_inference_steps=0: give at least 1"),
    ("--teacher.num_inference_steps=0", "teacher.num_inference_steps=0: give at least 1"),
    ("--buffer.uses_per_coupling=0", "buffer.uses_per_coupling=0: give at least 1, or null for couplings that"),
    ("--optimizer.type=sgd", "optimizer.type=sgd: choose one of adamw, soap"),
    ("--optimizer.type=muon", "muon: the optimiser muon was removed; choose --optimizer.type=soap or adamw."),
    ("--optimizer.momentum=0.9", "--optimizer.momentum is no option any more"),
    ("--optimizer.lr=0", "optimizer.lr=0"),
    ("--optimizer.betas=[0.9,1.0]", "optimizer.betas=[0.9, 1.0]"),
    ("--optimizer.betas=[0.9]", "optimizer.betas"),
    ("--optimizer.eps=-1", "optimizer.eps=-1"),
    ("--optimizer.weight_decay=-1", "optimizer.weight_decay=-1"),
    ("--optimizer.precondition_frequency=0", "precondition_frequency=0: give at"),
    ("--scheduler.num_warmup_steps=-1", "scheduler.num_warmup_steps=-1"),
    ("--ema.enable=true --ema.decay=1", "ema.decay=1"),
    ("--method.times.a=3", "--method.times.a is not an option"),
    ("--method.times.at_noise=2", "method.times.at_noise=2.0: give"),
    ("--method.times.type=beta --method.times.alpha=-1", "method.times.alpha=-1.0: give a number above 0."),
    ("--method.times.type=u_shaped --method.times.a=501", "a=501.0: give a number above 0 and at most 500"),
    ("--method.times.type=exponential --method.times.ratio=1", "method.times.ratio=1.0: give another"),
    ("--recipe=one_stpe", "recipe=one_stpe: give all_steps | one_step"),
    ("--coupling.solver=rk9", "coupling.solver=rk9: give euler | midpoint"),
    ("--student.init=nobody", "student.init=nobody: give teacher | teacher_vlm | pretrained_vlm | random"),
    ("--student.train=[]", "student.train="),
    ("--dataset.eval_split=1.5", "dataset.eval_split=1.5"),
    ("--measure.noises_per_observation=4", "at least 16"),
    ("--rename_map={", "rename_map={"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(arguments: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parse(*arguments.split())
    assert "\n" not in str(caught.value)


def test_an_option_of_several_choices_is_listed_once_and_says_which() -> None:
    listed = [o for o in options_of(ReflowJobConfig) if o.name.startswith(("method.times", "optimizer"))]
    where = {(option.name, option.default): (option.choice, option.choices) for option in listed}
    assert len(where) == len(listed)
    assert where["method.times.at_noise", "0.5"] == ("method.type", ("noise_biased", "reflow"))
    assert where["method.times.type", "beta"] == ("method.type", ("noise_biased",))
    assert where["method.times.type", "uniform"] == ("method.type", ("reflow",))
    assert where["optimizer.betas", "[0.9,0.95]"] == ("optimizer.type", ("adamw",))
    assert where["optimizer.betas", "[0.95,0.95]"] == ("optimizer.type", ("soap",))
    assert [option.name for option in listed].count("optimizer.lr") == 1


def test_required_options_are_named() -> None:
    with pytest.raises(UserError, match=r"--teacher.path is missing: "):
        build(ReflowJobConfig, read_options(REQUIRED[1:]))
    with pytest.raises(
        UserError, match=r"--output_dir and --teacher.path and --dataset.repo_id are missing: --output_dir, "
    ):
        build(ReflowJobConfig, {})


def table(verb: str) -> VerbHelp:
    known = load(verb)
    assert isinstance(known, VerbHelp)
    return known


@pytest.mark.parametrize("given", [
    "--steps=two", "--steps", "--steps=null", "--rounds=many", "--resume=perhaps", "--recipe=foo", "--rename_map=a",
    "--coupling.solver=foo", "--measure.solvers=[euler,foo]", "--student.train=[vision,foo]", "--buffer.block_size=x",
    "--optimizer.betas=[0.9]", "--dataset.root=[a]", "--method.type=foo", "--env.tpe=detour",
])  # fmt: skip
def test_what_is_wrong_is_refused_before_anything_is_imported_and_in_the_same_words(given: str) -> None:
    with pytest.raises(UserError) as early:
        answer("reflow", ["--teacher.path=t", given])
    with pytest.raises(UserError) as late:
        parse(given)
    assert str(early.value) == str(late.value)
    name, _, value = given.removeprefix("--").partition("=")
    assert str(early.value).startswith((f"{name}={value or 'true' + BARE}: ", f"--{name} is not"))


@pytest.mark.parametrize(
    "verb", [*filter(lambda key: isinstance(load(key), VerbHelp), json.loads(TABLE.read_text()))]
)
def test_every_option_takes_its_default_and_nothing_of_another_kind(verb: str) -> None:
    options = [option for option in table(verb).options if option.name != "env.type"]
    for option in options:
        if option.default is not None:
            default = nest({option.name: option.default.replace(NONE, "null")})
            check(options, default, default, whole=False)
        wrong = nest({option.name: "[[]]"})
        with pytest.raises(UserError, match=rf"^{re.escape(option.name)}=\[\[\]\]: give "):
            check(options, wrong, wrong, whole=False)


@pytest.mark.parametrize(("command", "hint"), [
    ("reflow --optimiser.type=adamw", "did you mean --optimizer.type?"),
    ("reflow --optimiser=adamw", "did you mean --optimizer.type?"),
    ("reflow --polcy.path=x", "did you mean --policy.path?"),
    ("reflow --datset=a/b", "did you mean --dataset.repo_id?"),
    ("reflow --config_path=x --stpes=1", "did you mean --steps?"),
    ("evaluate --env.tpe=detour --help", "did you mean --env.type?"),
    ("evaluate --policy.dtype=x", "--policy.dtype is not an option; see"),
    *((f"{verb} --teacher.{path}=x", "did you mean --teacher.path?") for verb in ("reflow", "evaluate")
      for path in ("pth", "paht")),
    ("diagnose --teacher.path=x", "did you mean --policy.path?"),
    ("reflow --verbose=maybe", "verbose=maybe: give true or false."),
    ("report --help=al", "--help=al is no help; write --help, or --help=all"),
    ("study methds", "did you mean methods?"),
    ("relfow", "did you mean reflow?"),
    ("record", "choose one of diagnose, "),
    ("reflow --policy.type=smolvla", "is not an option; see --help=all."),
    ("reflow --job_name=x", "is not an option; see --help=all."),
    ("reflow --eval_freq=1", "is not an option; see --help=all."),
])  # fmt: skip
def test_a_hint_points_to_what_was_meant_and_to_nothing_else(
    command: str, hint: str, capsys: Capture
) -> None:
    assert main(command.split()) == 2
    assert hint in capsys.readouterr().err


def test_a_file_of_settings_is_checked_before_anything_is_imported(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "teacher: {path: t}\ndataset: {repo_id: a/b}\narms: {a: {}}\nmeasure: {latency_repeats: 2}\n"
    )
    with pytest.raises(UserError, match=r"^--measure\.latency_repeats is not an option"):
        answer("study", [str(file), "--output_dir=out"])
    file.write_text(file.read_text().partition("measure")[0])
    assert not answer("study", [str(file), "--output_dir=out"])
    with pytest.raises(UserError, match=r"^config_path=absent\.json cannot be read"):
        answer("diagnose", ["--config_path=absent.json"])


def test_the_table_of_options_is_that_of_the_configs() -> None:
    """Users' scripts depend on these names; after a change on purpose: python scripts/options_table.py."""
    script = load_script(ROOT / "scripts" / "options_table.py")
    assert TABLE.read_text(encoding="utf-8") == script.document()


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_explains_what_people_set_and_all_of_it_everything(verb: str, capsys: Capture) -> None:
    texts = []
    for asked in ("--help", "--help=all"):
        assert main([verb, asked]) == 0
        texts.append(capsys.readouterr().out)
        assert max(len(line) for line in texts[-1].splitlines()) <= 80
        assert "\n--verbose prints all" in texts[-1]
    if isinstance(load(verb), str):
        return
    short, full = texts
    known = table(verb)
    assert set(known.common) <= {option.name for option in known.options}
    assert len(known.common) <= 14
    headings = [line for line in full.splitlines() if line.endswith("options:")]
    assert len(set(headings)) == len(headings)
    for option in known.options:
        assert option.text, f"--{option.name} is not explained"
        assert full.count(f"  --{option.name}  (") == 1
        assert short.count(f"  --{option.name}  (") == (option.name in known.common)


def test_a_help_lists_the_options_of_an_environment_and_refuses_a_wrong_one(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {verb.split()[0]} " in listed for verb in VERBS)
    assert main(["evaluate", "--env.type=detour", "--help"]) == 0
    text = capsys.readouterr().out
    assert "  --env.image_size  (" in text
    assert "  --teacher.path  (" in text
    for wrong, message in (
        ("reflow --help --stepz=4", "--stepz is not an option; did you mean --steps?"),
        ("evaluate --env.type=nope --help", "env.type=nope: give aloha | "),
        ("evaluate --env.type detour --env.image_sise=9 --help", "did you mean --env.image_size?"),
        ("study --env.type=detour --resume=true", "resume=true needs --config_path"),
    ):
        assert main(wrong.split()) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["reflow", "--help"], ["reflow", "--steps=two"], ["--help"]])
def test_helps_and_refusals_take_less_than_a_second_and_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, time, chordflow; from chordflow.cli.main import main; code = main(sys.argv[1:])\n"
        "try: chordflow.reflow(teacher='x', foo=1)\n"
        "except ValueError as error: assert str(error).startswith('foo is not an option'), error\n"
        "assert not {'torch', 'lerobot', 'transformers', 'numpy'} & set(sys.modules), sys.modules; "
        "assert time.process_time() < 1, time.process_time(); "
        "public = [name for name in dir(chordflow) if name[0] != '_']; "
        "assert public == chordflow.__all__, public; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == (2 if "--steps=two" in arguments else 0), done.stderr


def test_the_reader_of_a_pipe_may_go() -> None:
    """As with `chordflow --help | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from chordflow.cli.main import main; sys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


COMPARED = ["--teacher.path=t", "--student.path=s", "--output_dir=out"]


def test_a_group_may_be_left_out_whole() -> None:
    config = parse_evaluate([*COMPARED, "--env.type=detour", "--env.instruction=go left"])
    assert (config.dataset, config.env) == (None, DetourEnvConfig(instruction="go left"))
    config = parse_evaluate([*COMPARED, "--dataset.repo_id=a/b"])
    assert (config.dataset, config.env) == (DatasetConfig("a/b"), None)


@pytest.mark.parametrize(("given", "message"), [
    (["--dataset.root=x"], "--dataset.repo_id is missing"),
    (["--env.instruction=x"], "--env.type is missing: choose one of"),
    (["--env.type=detour", "--env.image_sise=9"], "did you mean --env.image_size"),
    (["--env.type=detour", "--env.image_size=x"], "env.image_size=x: give a whole number"),
])  # fmt: skip
def test_a_group_is_asked_for_whole(given: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_evaluate([*COMPARED, *given])
