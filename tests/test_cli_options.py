"""Options: LeRobot's way of writing them, defaults named in the help, one sentence for what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import draccus
import pytest
from lerobot.envs.configs import EnvConfig

from chordflow.cli.options import build, help_text, options_of, read_options
from chordflow.couplings import DatasetConfig
from chordflow.errors import UserError
from chordflow.experiments.config import ReflowJobConfig
from chordflow.policies import Role
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.optimizers import AdamWConfig, SOAPConfig
from chordflow.training.times import BetaTimes, UniformTimes, UShapedTimes
from lerobot_env_detour import DetourEnvConfig

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
    assert parse().method == ReflowMethodConfig()


def test_an_optimizer_is_chosen_by_its_type() -> None:
    assert parse().optimizer == SOAPConfig()
    assert parse("--optimizer.type=adamw").optimizer == AdamWConfig()
    assert parse("--optimizer.lr=1e-3").optimizer == SOAPConfig(lr=1e-3)
    soap = parse("--optimizer.type=soap", "--optimizer.precondition_frequency=5").optimizer
    assert soap == SOAPConfig(precondition_frequency=5)
    # A file that names no type.
    base = {
        "teacher": {"path": "t"},
        "dataset": {"repo_id": "a/b"},
        "output_dir": "o",
        "optimizer": {"lr": 3e-4},
    }
    assert build(ReflowJobConfig, {}, base).optimizer == SOAPConfig(lr=3e-4)


def test_a_choice_with_a_default_of_its_own_says_so() -> None:
    options = [o for o in options_of(ReflowJobConfig, None) if o.name == "optimizer.betas"]
    assert [(o.default, o.only_for) for o in options] == [
        ((0.9, 0.95), ""), ((0.95, 0.95), "--optimizer.type=soap"),
    ]  # fmt: skip
    assert [o.name for o in options_of(ReflowJobConfig, None)].count("optimizer.lr") == 1


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense=1"], "--nonsense is not an option; see --help"),
        (["--step=1"], "--step is not an option; did you mean --steps"),
        (["--optimiser.lr=1"], "did you mean --optimizer.lr"),
        (["--optimizer=1"], "--optimizer is a group"),
        (["--steps=many"], "steps=many: give whole number"),
        (["--steps=0"], "steps=0: give at least 1"),
        (["--batch_size=-4"], "batch_size=-4: give at least 1"),
        (["--optimizer.lr=-1"], "optimizer.lr=-1"),
        (["--steps="], "steps= is empty"),
        (["steps=3"], "'steps=3' is not an option"),
        (["--steps=3", "--steps=4"], "--steps is given twice"),
        (["--optimizer.type=sgd"], "optimizer.type=sgd: choose one of adamw, soap"),
        (["--optimizer.momentum=0.9"], "--optimizer.momentum is not an option"),
        (["--optimizer.type=muon"], "optimizer.type=muon: choose one of adamw, soap"),
        (
            ["--optimizer.type=soap", "--optimizer.precondition_frequency=0"],
            "precondition_frequency=0: give at",
        ),
        (["--method.times.a=3"], "--method.times.a is not an option"),
        (["--method.times.type=nonsense"], "method.times.type=nonsense: choose one of uniform"),
        (["--method.times.at_noise=2"], "method.times.at_noise=2.0: give"),
        (
            ["--method.times.type=beta", "--method.times.alpha=-1"],
            "method.times.alpha=-1.0: give a finite number above 0.",
        ),
        (["--method.times.type=u_shaped", "--method.times.a=nan"], "method.times.a=nan: give"),
        (["--method.times.type=u_shaped", "--method.times.a=501"], "method.times.a=501.0: give at most 500"),
        (
            ["--method.times.type=exponential", "--method.times.ratio=1"],
            "method.times.ratio=1.0: give another",
        ),
        (["--coupling.solver=rk9"], "coupling.solver=rk9: choose one of euler"),
        (
            ["--student.init=nobody"],
            "student.init=nobody: give teacher | teacher_vlm | pretrained_vlm | random",
        ),
        (["--student.train=[]"], "student.train="),
        (["--dataset.eval_split=1.5"], "dataset.eval_split=1.5"),
        (["--measure.noises_per_observation=4"], "at least 16"),
        (["--rename_map={"], "rename_map={"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_option_of_several_choices_is_listed_once_and_says_which() -> None:
    listed = [
        option for option in options_of(ReflowJobConfig, None) if option.name.startswith("method.times")
    ]
    where = {(option.name, option.default): option.only_for for option in listed}
    assert len(where) == len(listed)
    assert where["method.times.at_noise", 0.5] == "--method.type=noise_biased or reflow"
    assert where["method.times.type", "beta"] == "--method.type=noise_biased"
    assert where["method.times.type", "uniform"] == "--method.type=reflow"


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_required_options_are_named(missing: int) -> None:
    given = [argument for i, argument in enumerate(REQUIRED) if i != missing]
    name = REQUIRED[missing].split("=")[0]
    with pytest.raises(UserError, match=f"{name} is missing: "):
        build(ReflowJobConfig, read_options(given))


def test_the_help_explains_every_option_with_its_default() -> None:
    text = help_text(ReflowJobConfig, "title", "usage")
    options = options_of(ReflowJobConfig, None)
    assert len(options) > 40
    for option in options:
        assert option.text, f"--{option.name} is not explained"
        assert f"--{option.name}  (" in text
    assert "default: 2e-05" in text
    assert "with --method.times.type=u_shaped; default: 4.0" in " ".join(text.split())
    assert max(len(line) for line in text.splitlines()) <= 110


FROZEN = Path(__file__).parent / "command_line_options.txt"


def test_the_command_line_has_not_changed_unnoticed() -> None:
    """Users' scripts depend on these names: a change has to be made here as well, on purpose."""
    names = "".join(
        f"--{option.name} ({option.kind})\n"
        for option in options_of(ReflowJobConfig, None)
        if option.name != "env.type"  # whatever is installed
    )
    assert names == FROZEN.read_text(encoding="utf-8")


def test_everything_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(
        UserError, match=r"--output_dir and --teacher.path and --dataset.repo_id are missing: "
    ):
        build(ReflowJobConfig, {})


@dataclass
class WithGroups:
    """Groups that may be left out whole.

    Attributes:
        dataset: data.
        env: environment.
    """

    dataset: DatasetConfig | None = None
    env: EnvConfig | None = None


def test_a_group_may_be_left_out_whole_and_is_asked_for_whole() -> None:
    assert build(WithGroups, {}) == WithGroups()
    config = build(WithGroups, {"dataset.repo_id": "a/b", "env.type": "detour", "env.instruction": "go left"})
    assert config.dataset == DatasetConfig("a/b")
    assert config.env == DetourEnvConfig(instruction="go left")
    assert build(WithGroups, {}, draccus.encode(config)) == config
    assert "required with --dataset.*" in " ".join(help_text(WithGroups, "t", "u").split())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset.root": "x"}, "--dataset.repo_id is missing"),
        ({"env.instruction": "x"}, "--env.type is missing: choose one of"),
        ({"env.type": "nowhere"}, "env.type=nowhere: choose one of"),
        ({"env.type": "detour", "env.image_sise": "9"}, "did you mean --env.image_size"),
        ({"env.type": "detour", "env.image_size": "x"}, "env.image_size=x: give whole number"),
    ],
)
def test_what_is_wrong_in_such_a_group(values: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(WithGroups, values)
    assert message in str(caught.value)
