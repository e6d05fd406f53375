"""`chordflow study rounds` on a small SmolVLA: what it trains, measures and shares, and how it goes on."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import drift_env as drift_env
from builders import parse_reflow
from chordflow.cli.main import main
from chordflow.cli.options import options_of
from chordflow.cli.study_rounds import parse
from chordflow.errors import UserError
from chordflow.evaluation.gap import Modes
from chordflow.evaluation.spread import diversity
from chordflow.experiments import rounds_study as job
from chordflow.experiments.provenance import lineage, weights_sha256
from chordflow.experiments.round_settings import round_seed
from chordflow.experiments.rounds import reflow_rounds
from chordflow.experiments.rounds_study_config import RoundsStudyConfig
from chordflow.experiments.rounds_study_setup import gone_on_with
from chordflow.policies import ChunkSpec
from chordflow.results.rounds_study import RoundArm, RoundsStudy
from test_compare import LITTLE, SMALL

ONE_SEED = "adams_bashforth_real_0.5/seed_5"
QUICK = "--optimizer.type=adamw"


def arguments(checkpoint: Path, root: Path, output: Path, *more: str) -> list[str]:
    return [
        "study", "rounds", f"--teacher.path={checkpoint}", "--dataset.repo_id=test/tiny", f"--dataset.root={root}",
        "--dataset.eval_split=0.4", f"--output_dir={output}", "--device=cpu", "--measure.num_observations=4",
        "--measure.converged_noises=1", "--rounds=2", "--steps=2", "--seeds=[5]", QUICK, *SMALL, *more,
    ]  # fmt: skip


def resume(folder: Path, *more: str) -> list[str]:
    return ["study", "rounds", "--resume=true", f"--config_path={folder / 'rounds.json'}", *more]


@pytest.fixture(scope="module")
def done(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study's folder; not to be written to."""
    output = tmp_path_factory.mktemp("rounds") / "done"
    more = [
        "--solvers=[adams_bashforth]", "--real_data_shares=[0.5]", "--env.type=drift_of_the_tests",
        "--eval.n_episodes=2", "--eval.batch_size=2",
    ]  # fmt: skip
    assert main(arguments(checkpoint, dataset_root, output, *more)) == 0
    return output


def test_every_round_of_every_arm_is_trained_once_and_measured(done: Path) -> None:
    found = RoundsStudy.load(done / "rounds.json")
    assert [arm.name for arm in found.arms] == ["last, real 0.5", "first, real 0.5", "once, real 0.5"]
    folders = [
        f"{ONE_SEED}/{name}" for name in ("round_1_teacher", "round_2_last", "round_2_first", "once_4")
    ]
    assert [run.student for run in found.runs] == [f"{folder}/pretrained_model" for folder in folders]
    assert [run.steps for run in found.runs] == [2, 2, 2, 4]
    last, first = found.arms[:2]
    # The first round is the same whether the second one begins from the last student or from the first teacher.
    assert found.run(last, 1, 5) is found.run(first, 1, 5)
    for run in found.runs:
        assert run.weights_sha256 == weights_sha256(done / run.student)
        assert run.figures is not None
        assert {(row.num_steps, row.reference) for row in run.figures.gaps} == {
            (n, reference) for n in (1, 2, 10) for reference in ("deployed", "converged")
        }
        assert [row.num_steps for row in run.diversity] == [1, 2, 10]
        assert all(row.spread > 0 for row in run.diversity)
        assert run.success[0].episodes == 2
        assert run.success[0].versus_teacher is not None
    assert found.untrained is not None
    deployed = {row.num_steps: row.spread for row in found.diversity}
    assert deployed[10] == 1.0
    assert {row.num_steps for row in found.untrained.success} == {1, 2, 10}
    rows = [line for line in (done / "rounds.md").read_text().splitlines() if line.startswith("| ")]
    assert [tuple(line.split(" | ")[:2]) for line in rows[2:]] == [
        ("| teacher, untrained", "0"), ("| - at two steps", "-"), ("| - deployed, at ten steps", "-"),
        ("| last, real 0.5", "1"), ("| last, real 0.5", "2"), ("| first, real 0.5", "1"), ("| first, real 0.5", "2"),
        ("| once, real 0.5", "1"),
    ]  # fmt: skip
    assert 'id="plot-success"' in (done / "rounds.html").read_text()


def test_a_round_is_taught_by_the_last_student_and_begins_as_its_arm_says(
    done: Path, checkpoint: Path
) -> None:
    teacher, one = weights_sha256(checkpoint), done / ONE_SEED / "round_1_teacher" / "pretrained_model"
    records = {}
    for name in ("round_1_teacher", "round_2_last", "round_2_first", "once_4"):
        folder = done / ONE_SEED / name / "pretrained_model"
        records[name] = json.loads((folder / "reflow_config.json").read_text())
        taught_by = [teacher] if name in ("round_1_teacher", "once_4") else [teacher, weights_sha256(one)]
        assert lineage(folder)[:-1] == taught_by, name
    assert records["round_2_last"]["student"]["init_path"] is None
    assert records["round_2_first"]["student"]["init_path"] == str(checkpoint.resolve())
    # A teacher that is saved with one step is solved as the first one was.
    assert {record["coupling"]["num_steps"] for record in records.values()} == {16}
    assert [records[name]["seed"] for name in ("round_2_last", "round_2_first")] == [round_seed(5, 2)] * 2
    assert {record["method"]["real_data_share"] for record in records.values()} == {0.5}


@pytest.mark.slow
def test_rounds_from_the_last_are_those_of_reflow(
    checkpoint: Path, dataset_root: Path, done: Path, tmp_path: Path
) -> None:
    options = [
        option for option in arguments(checkpoint, dataset_root, tmp_path / "alone", *LITTLE)[2:]
        if not option.startswith(("--seeds", "--measure.num_steps"))
    ]  # fmt: skip
    more = [
        "--seed=5",
        "--method.real_data_share=0.5",
        "--measure.solvers=[euler]",
    ]
    reflow_rounds(parse_reflow([*options, *more])[0], ["chordflow"])
    for number, name in ((1, "round_1_teacher"), (2, "round_2_last")):
        alone = tmp_path / "alone" / f"round_{number}" / "checkpoints" / "last" / "pretrained_model"
        beside = done / ONE_SEED / name / "pretrained_model"
        expected, found = (load_file(folder / "model.safetensors") for folder in (alone, beside))
        assert expected.keys() == found.keys()
        assert all(expected[key].equal(found[key]) for key in expected), name


def test_an_interrupted_study_goes_on_and_can_be_added_to(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output, calls = tmp_path / "new folder", []
    train_student = job.train_student

    def stop_in_the_second(*given: Any, **named: Any) -> Any:
        calls.append(named["label"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_student(*given, **named)

    monkeypatch.setattr(job, "train_student", stop_in_the_second)
    few = ["--starts=[last]", "--solvers=[euler]", "--real_data_shares=[0]"]
    assert main(arguments(checkpoint, dataset_root, output, *few)) == 130
    said = capsys.readouterr().err
    assert f"chordflow study rounds --resume=true --config_path='{output / 'rounds.json'}'" in said
    first = RoundsStudy.load(output / "rounds.json")
    assert [(run.round, run.solver) for run in first.runs] == [(1, "euler")]
    assert "No seed has all its rounds yet." in (output / "rounds.md").read_text()
    euler = json.loads((output / first.runs[0].student / "reflow_config.json").read_text())["coupling"]
    assert (euler["num_steps"], euler["grid_power"]) == (10, 1.0)
    assert main(resume(output, "--starts=[last,fresh]")) == 0
    second = RoundsStudy.load(output / "rounds.json")
    assert second.runs[0] == first.runs[0]
    assert calls[2:] == [
        "last, euler, round 2, seed 5",
        "fresh, euler, round 1, seed 5",
        "fresh, euler, round 2, seed 5",
    ]
    fresh = second.run(RoundArm("fresh", "euler", 0.0), 1, 5)
    assert fresh is not None
    assert (
        json.loads((output / fresh.student / "reflow_config.json").read_text())["student"]["init"]
        == "teacher_vlm"
    )
    # Nothing is done twice.
    assert main(resume(output)) == 0
    assert RoundsStudy.load(output / "rounds.json").runs == second.runs
    assert len(calls) == 5
    # A student that is not what was trained teaches nobody.
    (output / second.runs[0].student / "model.safetensors").write_bytes(b"0")
    assert main(resume(output, "--rounds=2", "--seeds=[5]", "--starts=[last,first]")) == 2
    assert (
        "is not there or not what was trained; restore it, or start a new study." in capsys.readouterr().err
    )


def test_another_study_is_not_gone_on_with(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(resume(done, "--steps=4")) == 2
    assert "steps: the study began with 2 and going on cannot change it" in capsys.readouterr().err
    before = RoundsStudy.load(done / "rounds.json")
    with pytest.raises(UserError, match="its weights are not those that the study began with"):
        gone_on_with(replace(before, teacher_sha256="0"), before)
    (done.parent / "compare.json").write_text('{"kind": "compare", "settings": {}}')
    path = done.parent / "compare.json"
    assert main(["study", "rounds", "--resume=true", f"--config_path={path}"]) == 2
    assert "is no file of chordflow study rounds; give OUTPUT_DIR/rounds.json." in capsys.readouterr().err


# ---- Arms and settings -------------------------------------------------------------------------------------


def settings(*more: str) -> RoundsStudyConfig:
    return parse(["--teacher.path=a", "--dataset.repo_id=b/c", "--output_dir=d", *more])


def test_arms_depart_in_one_thing_or_in_all_combinations() -> None:
    one = [arm.name for arm in settings().arms]
    assert one == ["last", "first", "once", "last, euler", "last, real 0.1"]
    crossed = [arm.name for arm in settings("--crossed").arms]
    assert crossed[:5] == one
    assert len(crossed) == len(set(crossed)) == 12
    assert "once, euler, real 0.1" in crossed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rounds=1"], "rounds=1: give at least 2"),
        (["--steps=0"], "steps=0: give at least 1"),
        (["--least_gain=1"], "least_gain=1.0: give a share from 0 up to but not 1"),
        (["--starts=[second]"], "starts holds 'second'; choose of last, first, fresh, once"),
        (["--solvers=[euler,euler]"], r"solvers=\[euler,euler\]: give at least one, each once"),
        (["--real_data_shares=[1]"], "give shares from 0 up to but not 1"),
        (["--seeds=[]"], "give whole numbers from 0, each once"),
        (["--eval.n_episodes=2"], "eval: these options are about episodes; give --env.type as well"),
        (["--num_workers=-1"], "num_workers=-1: give 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(*more)


FROZEN = Path(__file__).parent / "command_line_options_study_rounds.txt"


def test_the_command_line_has_not_changed_unnoticed() -> None:
    """Users' scripts depend on these names: a change has to be made here as well, on purpose."""
    listed = [option for option in options_of(RoundsStudyConfig, None) if option.name != "env.type"]
    names = "".join(f"--{option.name} ({option.kind})\n" for option in listed)
    assert names == FROZEN.read_text(encoding="utf-8")
    assert all(option.text for option in options_of(RoundsStudyConfig, None))


def test_the_documented_commands_can_be_parsed() -> None:
    text = (Path(__file__).parents[1] / "docs" / "studies.md").read_text(encoding="utf-8")
    found = re.findall(r"^    \S*chordflow study rounds (.*)$", text.replace("\\\n", " "), re.MULTILINE)
    commands = [shlex.split(line) for line in found]
    assert len([parse(options) for options in commands if "--resume=true" not in options]) >= 2


# ---- Diversity ---------------------------------------------------------------------------------------------


def test_diversity_tells_modes_from_their_mean() -> None:
    """One observation with two modes and one with a single mode; 16 noises of each, a chunk of one number."""
    chunk = ChunkSpec(horizon=1, padded_dim=2, action_dim=1, num_executed=1)
    noise = 0.1 * torch.linspace(-1, 1, 16)
    sides = torch.tensor([-1.0, 1.0]).repeat(8)
    real = torch.stack([sides + noise, noise])
    reference = torch.stack([real, torch.randn(2, 16, generator=torch.Generator().manual_seed(0))], -1)[
        :, :, None
    ]
    modes = Modes(reference, chunk)
    assert modes.counts.tolist() == [2, 1]
    same = diversity(reference, reference, modes, 10)
    assert (same.num_steps, same.spread, same.modes_kept, same.several) == (10, 1.0, 1.0, 1)
    # All near the mean of the two: half of them are nearer to either, and yet both modes are gone.
    mean = diversity(reference * torch.tensor([0.01, 5.0]), reference, modes, 1)
    assert mean.spread == pytest.approx(0.01)
    collapsed = reference.clone()
    collapsed[0, :, :, 0] = noise[:, None]
    assert diversity(collapsed, reference, modes, 1).modes_kept == 0.0
    one_sided = reference.clone()
    one_sided[0, :, :, 0] = 1 + noise[:, None]
    assert diversity(one_sided, reference, modes, 1).modes_kept == 0.0
    alone = Modes(reference[1:], chunk)
    assert diversity(reference[1:], reference[1:], alone, 1).modes_kept is None
