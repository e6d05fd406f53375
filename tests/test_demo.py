"""The demo end to end, shrunken; stock lerobot-eval on its student; what the published results show."""

import json
import os
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from PIL import Image

import chordflow.demo.run as demo
from chordflow.cli.main import main
from chordflow.results.schema import Results, SuccessRow
from chordflow.training.methods import ReflowMethod
from forked import forget_chordflow, forked
from small_runs import signal_at

ROOT = Path(__file__).parent.parent
MEASURED = ROOT / "docs" / "demo" / "results.json"
ANY_WAY = "go any way"
OPTIONS = ("--demonstrations=10", "--steps=3", "--episodes=4")


AS_SHIPPED = {"reflow_options": demo.reflow_options, "CHECKED": demo.CHECKED}


@pytest.fixture(scope="module", autouse=True)
def shrunken() -> Iterator[None]:
    """Few couplings and measurements."""
    options = demo.reflow_options

    def small(*arguments: Any) -> dict[str, Any]:
        small = {"buffer.num_observations": 16, "buffer.start_observations": 16, "buffer.block_size": 16,
                 "buffer.noises_per_observation": 1, "batch_size": 8, "measure.num_observations": 2,
                 "measure.converged_noises": 1, "measure.num_steps": [1, 2], "measure.latency_repeats": 2}  # fmt: skip
        return {**options(*arguments), **small}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "reflow_options", small)
        patch.setattr(demo, "CHECKED", 4)
        yield


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo with few episodes, steps and measurements, on the shipped teacher."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", f"--output_dir={folder}", *OPTIONS]) == 0
    return folder


def test_a_demo_that_is_stopped_before_it_trains_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signal_at(monkeypatch, LeRobotDataset, "save_episode", 1)
    assert main(["demo", f"--output_dir={tmp_path / 'new' / 'out'}", *OPTIONS]) == 130
    assert "start again" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(["demo", f"--output_dir={tmp_path}", "--resume=true"]) == 2
    assert "holds no demo to resume" in capsys.readouterr().err


@pytest.mark.slow
def test_a_demo_that_is_stopped_resumes_to_the_same_student(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it trains, and then while episodes run."""
    folder = tmp_path / "new folder"
    arguments = ["demo", f"--output_dir={folder}", *OPTIONS]
    for where, name in ((ReflowMethod, "loss"), (demo, "run_episodes")):
        with monkeypatch.context() as patch:
            signal_at(patch, where, name, 1)
            assert main(arguments) == 130
        *_, said = capsys.readouterr().err.splitlines()
        command = f"chordflow demo --resume=true '--output_dir={folder}' --steps=3 --episodes=4"
        assert said == f"chordflow demo: interrupted; resume with: {command}"
        arguments = shlex.split(command)[1:]
    assert main([*arguments, "--seed=1"]) == 2
    assert "seed=1: the demo began with 1000" in capsys.readouterr().err
    assert main(arguments) == 0
    file = "student/checkpoints/last/pretrained_model/model.safetensors"
    assert (output / file).read_bytes() == (folder / file).read_bytes()
    first, second = (Results.load(run / "results.json") for run in (output, folder))
    assert [row.successes for row in first.success] == [row.successes for row in second.success]


def success(results: Results, policy: Any, num_steps: int, group: str = "all") -> SuccessRow:
    wanted = (policy, num_steps, group, "euler", 1)
    return next(
        r for r in results.success if (r.policy, r.num_steps, r.group, r.solver, r.grid_power) == wanted
    )


def test_the_demo_leaves_what_it_promises(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = Results.load(output / "results.json")
    for policy, num_steps in (("teacher", 10), ("teacher", 2), ("teacher", 1), ("student", 1)):
        assert success(results, policy, num_steps, ANY_WAY).episodes == 4
    everything = success(results, "student", 1)
    assert everything.episodes == 8
    assert everything.versus_teacher is not None
    checked = {(check.policy, check.num_steps) for check in results.flip_checks}
    assert checked == {("student", 1), ("teacher", 2)}
    figures = sorted(path.name for path in (output / "figures").iterdir())
    assert figures == ["gap.png", "loss.png", "trajectories.png"]
    with Image.open(output / "demo.gif") as picture:
        assert picture.n_frames > 5  # type: ignore[attr-defined]
        assert picture.width > picture.height * 0.8
    assert "go any way" in (output / "table.md").read_text()
    assert main(["demo", f"--output_dir={output}"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_stock_lerobot_eval_runs_a_relocated_student_without_chordflow(output: Path, tmp_path: Path) -> None:
    """Built in one place, relocated to another, evaluated from a third."""
    elsewhere, here = tmp_path / "b b", tmp_path / "c"
    here.mkdir()
    shutil.copytree(output / "student" / "checkpoints" / "last" / "pretrained_model", elsewhere / "student")
    shutil.copytree(output / "vlm", elsewhere / "vlm")
    assert main(["relocate", str(elsewhere / "student")]) == 0
    assert str(elsewhere / "vlm") in (elsewhere / "student" / "config.json").read_text()

    def evaluate_alone() -> None:
        forget_chordflow()
        os.chdir(here)
        sys.argv = [
            "lerobot-eval", f"--policy.path={elsewhere / 'student'}", "--env.type=detour", "--eval.n_episodes=2",
            "--eval.batch_size=2", "--eval.use_async_envs=false", "--output_dir=eval",
        ]  # fmt: skip
        runpy.run_module("lerobot.scripts.lerobot_eval", run_name="__main__")
        raise SystemExit

    with forked([], evaluate_alone) as process:
        process.join(120)
    assert process.exitcode == 0
    info = json.loads((here / "eval" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2


def check_bars(results: Results) -> None:
    """What the demo has to show for one saved student, all of it together."""
    deployed = results.teacher_num_steps
    teacher = success(results, "teacher", deployed, ANY_WAY)
    untrained, student = success(results, "teacher", 1, ANY_WAY), success(results, "student", 1, ANY_WAY)
    assert teacher.episodes == student.episodes == untrained.episodes >= 500
    assert success(results, "teacher", deployed).rate >= 0.90
    assert teacher.rate >= 0.85
    assert teacher.rate - untrained.rate >= 0.20
    assert student.rate - untrained.rate >= 0.20
    assert teacher.rate - student.rate <= 0.08
    before, after = results.gap("teacher", 1, "deployed"), results.gap("student", 1, "deployed")
    assert after.rms <= 0.45 * before.rms
    arc, chord = results.curvature_of("teacher"), results.curvature_of("student")
    assert chord.curvature <= arc.curvature / 3


def test_the_committed_demo_shows_what_it_has_to() -> None:
    check_bars(Results.load(MEASURED))


@pytest.mark.slow
def test_a_fresh_demo_shows_what_it_has_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes on two busy cores: teacher as shipped, everything else anew."""
    for name, value in AS_SHIPPED.items():
        monkeypatch.setattr(demo, name, value)
    assert main(["demo", f"--output_dir={tmp_path / 'demo'}"]) == 0
    check_bars(Results.load(tmp_path / "demo" / "results.json"))
