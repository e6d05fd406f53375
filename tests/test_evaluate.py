"""`chordflow evaluate`: columns for any number of policies, runs that stop early or go on, what it refuses."""

import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import chordflow
from broken_statistics import AFTER, BEFORE, edit_statistics
from builders import build_checkpoint
from chordflow.cli.main import main
from chordflow.deploy import parity
from chordflow.errors import UserError
from chordflow.experiments import export as export_job
from chordflow.experiments.evaluate import _check_shown, _measured_before
from chordflow.policies import load_flow_policy, save_student
from chordflow.policies.base import Role
from chordflow.results.schema import Results
from chordflow.results.sequential import confidence_sequence
from chordflow.results.statistics import Interval, compare_success
from chordflow.rollouts.store import EpisodeStore
from chordflow_runtime.manifest import content_sha256
from drift_env import DriftEnv
from forked import forked
from small_runs import Break, Capture, Refuse, changed, edit_json, refusal, refused, signal_at

EPISODES, CAMERA = 12, "observation.images.top"


@pytest.fixture(scope="module")
def student(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher with a disturbed action head, saved at one step."""
    policy = load_flow_policy(checkpoint, device="cpu")
    torch.manual_seed(0)
    head = policy.parameters_by_role()[Role.ACTION_HEAD]
    trained = {name: p.detach() + 0.03 * torch.randn_like(p) for name, p in head.items()}
    folder = tmp_path_factory.mktemp("student") / "pretrained_model"
    save_student(policy, checkpoint, folder, trained, num_steps=1)
    return folder


@pytest.fixture(scope="module")
def robot(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the student is exported to."""
    folder = tmp_path_factory.mktemp("exported") / "robot"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_job, "OBSERVATIONS", parity.MODE_OBSERVATIONS)
        chordflow.export(policy=student, output_dir=folder)
    return folder


def sealed(folder: Path, **edit: Any) -> None:
    """Changes the manifest of an exported folder, its own digest included."""
    edit_json(folder / "manifest.json", lambda c: c.update(edit, sha256=content_sha256(c | edit)))


def options(teacher: Path, student: Path | None, output: Path, **others: Any) -> list[str]:
    given = {
        "teacher.path": teacher, **({"student.path": student} if student is not None else {}), "output_dir": output,
        "env.type": "drift_of_the_tests", "eval.n_episodes": EPISODES, "eval.batch_size": 4, "eval.num_clips": 0,
        "device": "cpu", **others,
    }  # fmt: skip
    return ["evaluate", *(f"--{name}={value}" for name, value in given.items())]


def run(arguments: list[str]) -> Results:
    assert main(arguments) == 0
    (output,) = [a.split("=", 1)[1] for a in arguments if a.startswith("--output_dir=")]
    return Results.load(Path(output) / "results.json")


def resume(output: Path, *more: str) -> list[str]:
    return ["evaluate", "--resume=true", f"--config_path={output / 'evaluate_config.json'}", *more]


@pytest.fixture
def refuse(checkpoint: Path, student: Path, tmp_path: Path, capsys: Capture) -> Refuse:
    """Runs with another student or more options; gives the line that it is refused with."""

    def run(other: Path = student, **given: Any) -> str:
        said = refusal(options(checkpoint, other, tmp_path / "out", **given), capsys)
        assert not (tmp_path / "out").exists()
        return said

    return run


def stored(output: Path, arm: str) -> list[dict[str, Any]]:
    files = sorted((output / "episodes" / arm).glob("*.parquet"))
    return sorted((row for f in files for row in pq.read_table(f).to_pylist()), key=lambda row: row["seed"])


@pytest.fixture(scope="module")
def evaluated(
    checkpoint: Path, student: Path, robot: Path, dataset_root: Path, tmp_path_factory: Any
) -> tuple[Path, Results]:
    """One evaluation of everything."""
    output = tmp_path_factory.mktemp("evaluated") / "run"
    arguments = options(
        checkpoint, student, output,
        **{
            "policies": f"[copy={checkpoint},two={student}@2,robot={robot}]", "dataset.repo_id": "test/tiny",
            "dataset.root": dataset_root, "measure.num_observations": 3, "measure.latency_repeats": 2,
            "measure.converged_noises": 2, "measure.num_steps": "[1,2]", "delay.control_steps": "[1]",
            "delay.num_steps": "[1]", "delay.n_episodes": 4, "delay.modes": "[sync,async,rtc]", "eval.num_clips": 2,
        },
    )  # fmt: skip
    return output, run(arguments)


def test_every_policy_is_a_column(evaluated: tuple[Path, Results], checkpoint: Path) -> None:
    _, results = evaluated
    assert [(p.name, p.num_steps) for p in results.policies] == [
        ("teacher", 10), ("student", 1), ("copy", 10), ("two", 2), ("robot", 1),
    ]  # fmt: skip
    rows = [row for row in results.success if row.group == "all"]
    ways = {(row.policy, row.num_steps, row.solver, row.grid_power) for row in rows}
    # What is best at two evaluations was chosen on the dataset.
    best = results.free.best(2)
    assert ways == {
        ("teacher", 10, "euler", 1), ("teacher", 2, "euler", 1), ("teacher", 1, "euler", 1),
        ("teacher", best.num_steps, best.solver, best.grid_power),
        ("student", 1, "euler", 1), ("copy", 10, "euler", 1), ("two", 2, "euler", 1), ("robot", 1, "euler", 1),
    }  # fmt: skip
    beside = {(row.policy, row.num_steps) for row in results.free.others}
    assert beside >= {("teacher", 10), ("student", 1), ("student", 2), ("copy", 10), ("two", 2)}
    assert {row.policy for row in results.curvature} == {"teacher", "student", "copy", "two"}
    assert {row.policy for row in results.gaps} == {"teacher", "student", "copy", "two", "robot"}
    assert all(row.overhead >= 0 and row.total_s > 0 for row in results.timing)


def test_a_copy_of_the_teacher_is_the_teacher(evaluated: tuple[Path, Results]) -> None:
    """Truly paired: the same weights do the same in every episode, step by step."""
    output, results = evaluated
    row = results.success_of("copy", 10)
    assert (row.versus_teacher.only_first, row.versus_teacher.only_second) == (0, 0)
    ours, theirs = (stored(output, f"{name}-10-euler") for name in ("copy", "teacher"))
    assert [(e["seed"], e["actions"]) for e in ours] == [(e["seed"], e["actions"]) for e in theirs]
    assert results.gap("copy", 10, "deployed").rms == 0


def test_an_exported_folder_does_what_its_checkpoint_does(
    evaluated: tuple[Path, Results], student: Path, robot: Path
) -> None:
    output, results = evaluated
    for ours, theirs in zip(stored(output, "robot-1-euler"), stored(output, "student-1-euler"), strict=True):
        for name in ("seed", "success", "length", "side", "chunks", "num_steps"):
            assert ours[name] == theirs[name]
        # Of about ten; rounding grows from chunk to chunk.
        np.testing.assert_allclose(ours["actions"], theirs["actions"], rtol=0, atol=1e-3)
    for reference in ("deployed", "converged"):
        rows = [results.gap(name, 1, reference) for name in ("robot", "student")]
        assert rows[0].rms == pytest.approx(rows[1].rms, rel=1e-4)
        assert rows[0].pairs == rows[1].pairs
    of = {info.name: info for info in results.policies}
    assert of["robot"].exported.checkpoint == str(student)
    for name in ("weights_sha256", "parameters", "saved_num_steps"):
        assert getattr(of["robot"], name) == getattr(of["student"], name)
    assert {name: row.num_steps for name, row in results.latency.exported.items()} == {"robot": 1}
    assert "(exported, onnx float32, of " in (output / "table.md").read_text()


def test_another_solver_that_is_baked_in_is_the_students(
    checkpoint: Path, robot: Path, tmp_path: Path
) -> None:
    """The graph is the same; what the manifest says of it is what rows are called by."""
    other = Path(shutil.copytree(robot, tmp_path / "other"))
    sealed(other, num_steps=2, solver="adams_bashforth", grid_power=1.4)
    results = run(options(checkpoint, other, tmp_path / "out", **{"eval.n_episodes": 2}))
    row = results.success_of("student", 2)
    assert (row.solver, row.grid_power) == ("adams_bashforth", 1.4)
    # The teacher beside it makes as many evaluations.
    assert results.success_of("teacher", 3) is not None
    assert "the student" in results.verdict


@pytest.mark.parametrize("verb", ["diagnose", "reflow", "couple", "export", "evaluate"])
def test_where_velocities_are_needed_an_exported_folder_is_refused(
    verb: str, student: Path, robot: Path, tmp_path: Path, capsys: Capture
) -> None:
    name = "teacher" if verb in ("reflow", "couple", "evaluate") else "policy"
    given = [verb, f"--{name}.path={robot}", f"--output_dir={tmp_path / 'out'}"]
    given += [] if verb == "export" else ["--dataset.repo_id=test/tiny"]
    given += [f"--student.path={robot}"] if verb == "evaluate" else []
    said = refused(given, capsys, tmp_path).strip()
    assert re.search(rf"{name}.path={robot} .* velocities .* give the checkpoint .* {student}\.$", said)


@pytest.mark.parametrize(("edit", "given", "message"), [
    ({"version": 2}, {}, "version 2, and this chordflow_runtime reads up to 1"),
    ({"files": {"policy.onnx": "0" * 64}}, {}, "policy.onnx was changed"),
    ({}, {"student.num_inference_steps": 3}, "num_steps is 3"),
    ({}, {"noise": "lerobot"}, "LeRobot's own rollout cannot run"),
    ({}, {"delay.control_steps": "[1]", "delay.modes": "[rtc]"}, "an exported graph"),
])  # fmt: skip
def test_an_exported_folder_that_cannot_act(
    edit: Any, given: Any, message: str, robot: Path, tmp_path: Path, refuse: Refuse
) -> None:
    other = Path(shutil.copytree(robot, tmp_path / "robot"))
    sealed(other, **edit)
    assert message in refuse(other, **given)


def test_rows_follow_from_the_stored_episodes(evaluated: tuple[Path, Results]) -> None:
    output, results = evaluated
    teacher, student = stored(output, "teacher-10-euler"), stored(output, "student-1-euler")
    assert [row["seed"] for row in teacher] == list(range(1000, 1000 + EPISODES))
    row = results.success_of("student", 1)
    assert (row.successes, row.episodes) == (sum(e["success"] for e in student), EPISODES)
    assert row.versus_teacher == compare_success(*([e["success"] for e in run] for run in (student, teacher)))
    assert row.noninferiority.margin == 0.02
    of = ("student", 1, "path length")
    (motion,) = (m for m in results.motion if (m.policy, m.num_steps, m.measure) == of)
    means = [np.mean([e["path_length"] for e in run]) for run in (student, teacher)]
    assert (motion.mean.value, motion.difference.value) == pytest.approx((means[0], means[0] - means[1]))


def test_delays_stand_beside_the_same_without(evaluated: tuple[Path, Results]) -> None:
    results = evaluated[1]
    rows = {(r.policy, r.mode, r.guidance_weight): r for r in results.delays}
    for policy in ("teacher", "student", "copy", "two"):
        assert rows[policy, "none", None].versus_undelayed is None
        for mode, weight in (("sync", None), ("async", None), ("rtc", 1.0), ("rtc", 10.0)):
            row = rows[policy, mode, weight]
            assert (row.delay, row.num_steps, row.episodes) == (1, 1, 4)
            assert row.versus_undelayed is not None
    assert len(results.delays) == 4 * 5 + 3
    assert {r.mode for r in results.delays if r.policy == "robot"} == {"none", "sync", "async"}
    # Ten times the pull at one step cannot leave motion as it was.
    assert rows["student", "rtc", 10.0].jump != rows["student", "rtc", 1.0].jump


def test_clips_are_drawn_and_named(evaluated: tuple[Path, Results]) -> None:
    output, results = evaluated
    (clip,) = results.clips
    assert (output / clip.path).is_file()
    assert clip.seeds == [1000, 1001]
    assert clip.columns[0] == "teacher, 10 steps"
    assert [len(outcome) for outcome in clip.outcomes] == [len(clip.columns)] * 2
    assert (output / "report.html").is_file()


@pytest.fixture
def moved(evaluated: tuple[Path, Results], tmp_path: Path) -> Path:
    """A copy of the evaluation, to be written to."""
    return Path(shutil.copytree(evaluated[0], tmp_path / "moved"))


def test_a_finished_run_goes_on_with_more_episodes_and_repeats_none(
    evaluated: tuple[Path, Results], moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, before = evaluated
    monkeypatch.setattr(DriftEnv, "steps", 0)
    monkeypatch.setattr("chordflow.reporting.write.page", lambda *_: "")  # made once already, in seconds
    assert main(resume(moved)) == 0
    assert DriftEnv.steps == 0
    again = Results.load(moved / "results.json")
    assert (again.success, again.gaps, again.latency) == (before.success, before.gaps, before.latency)
    assert main(resume(moved, f"--eval.n_episodes={EPISODES + 2}")) == 0
    row = Results.load(moved / "results.json").success_of("student", 1)
    assert row.episodes == EPISODES + 2
    assert stored(moved, "student-1-euler")[:EPISODES] == stored(output, "student-1-euler")


def test_other_weights_are_not_mixed_with_stored_episodes(
    moved: Path, tmp_path: Path, vlm: Path, capsys: Capture
) -> None:
    other = build_checkpoint(tmp_path / "other" / "pretrained_model", vlm, seed=5)
    files = {path: path.stat().st_mtime_ns for path in moved.rglob("*.parquet")}
    more = f"--student.path={other}", "--student.num_inference_steps=1"
    assert "student-1-euler" in refusal(resume(moved, *more), capsys)
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*.parquet")} == files


def test_other_processors_are_measured_anew(moved: Path) -> None:
    now = Results.load(moved / "results.json")
    config: Any = SimpleNamespace(resume=True, output_dir=moved)
    others, older = (
        replace(now, policies=[replace(one, processors_sha256=other) for one in now.policies])
        for other in ("0", None)
    )
    assert _measured_before(config, others) is None
    assert _measured_before(config, older) == now


def test_neither_margin_nor_student_is_another_after_a_look(
    evaluated: tuple[Path, Results], checkpoint: Path, capsys: Capture
) -> None:
    output = evaluated[0]
    assert "margin=30: the run began with 2" in refused(resume(output, "--margin=30"), capsys, output)
    other = resume(output, f"--student.path={checkpoint}", "--student.num_inference_steps=1")
    assert re.search(r"episodes.parquet was run with \w+=", refused(other, capsys, output))


def test_a_sequential_run_stops_when_the_pairs_decide(
    checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    # The pairs of a copy decide at eight, and at no margin before the least number.
    more = {
        "policies": f"[copy={checkpoint}]", "eval.n_episodes": 60, "eval.batch_size": 5, "margin": 50,
        "sequential.enable": "true", "sequential.min_episodes": 23,
    }  # fmt: skip
    results = run(options(checkpoint, None, tmp_path / "out", **more))
    # One bar over all blocks of both, which ends where the run did.
    bars = [line.split(":")[0].strip() for line in capsys.readouterr().out.splitlines() if "100 %" in line]
    assert bars == ["episodes"]
    (row,) = results.sequential
    assert (row.policy, row.decision.decision, row.decision.episodes) == ("copy", "non-inferior", 23)
    assert row.decision.stopped_early
    success = results.success_of("copy", 10)
    # No interval of a fixed number of episodes is shown for a run that could stop at any.
    assert success.noninferiority is None
    expected = Interval(*confidence_sequence(0, success.episodes, 0))
    assert success.versus_teacher.difference.interval == expected
    assert results.findings[0].text.startswith("Yes, copy may replace the teacher at ten steps: success is")
    assert "(non-inferior at a margin of " in results.findings[0].text
    # Whole blocks are run.
    assert success.episodes == 25


@pytest.mark.filterwarnings("ignore:The environment does not have")
def test_lerobots_noise_gives_lerobots_rates(checkpoint: Path, student: Path, tmp_path: Path) -> None:
    with_lerobots = {"noise": "lerobot", "eval.n_episodes": 5, "eval.batch_size": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DriftEnv, "lenient", True)
        results = run(options(checkpoint, student, tmp_path / "out", **with_lerobots))
    assert results.rollouts.noise == "lerobot"
    assert {row.episodes for row in results.success if row.group == "all"} == {5}
    assert "not paired" in results.verdict
    rows = stored(tmp_path / "out", "student-1-euler-lerobot")
    assert [row["seed"] for row in rows] == list(range(1000, 1005))
    assert sum(row["success"] for row in rows) == results.success_of("student", 1).successes
    # A policy that was run to its end is not run again: the environment would complain here.
    assert main(resume(tmp_path / "out")) == 0
    # Nothing is called paired that is not.
    assert all(row.versus_teacher is None for row in results.success)
    assert all(row.difference is None for row in results.motion)


def test_killed_at_any_moment_it_goes_on_to_the_same_episodes(
    checkpoint: Path, student: Path, tmp_path: Path
) -> None:
    """SIGKILL while episodes run; what was stored is not run again."""
    output, step = tmp_path / "killed", DriftEnv.step

    def slow_down() -> None:
        DriftEnv.step = lambda self, action: time.sleep(0.004) or step(self, action)

    with forked(options(checkpoint, student, output), slow_down) as process:
        deadline = time.monotonic() + 120
        while not any((output / "episodes").rglob("*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    done = {path: path.read_bytes() for path in (output / "episodes").rglob("*.parquet")}
    assert done
    assert main(resume(output)) == 0
    run(options(checkpoint, student, tmp_path / "whole"))
    for arm in ("teacher-10-euler", "teacher-1-euler", "student-1-euler"):
        for ours, theirs in zip(stored(output, arm), stored(tmp_path / "whole", arm), strict=True):
            # Who shares a batch differs after an interruption, and with it the rounding of matrix products.
            for name in ("seed", "task", "success", "length", "side", "chunks", "num_steps"):
                assert ours[name] == theirs[name]
            np.testing.assert_allclose(ours["actions"], theirs["actions"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("call", "number"), [(1, signal.SIGINT), (4, signal.SIGTERM)])
def test_stopped_it_says_how_to_resume(
    checkpoint: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture,
    call: int, number: int,
) -> None:  # fmt: skip
    """Before the first episode nothing is left; later, what is stored."""
    output = tmp_path / "new" / "out"
    signal_at(monkeypatch, EpisodeStore, "save", call, number)
    assert main(options(checkpoint, student, output)) == 128 + number
    said = capsys.readouterr().err
    if call == 1:
        assert "nothing was measured yet, so start again" in said
        assert not (tmp_path / "new").exists()
        return
    command = " ".join(resume(output))
    assert said == f"chordflow evaluate: ended by SIGTERM; resume with: chordflow {command}\n"
    assert list((output / "episodes").rglob("*.parquet"))
    monkeypatch.undo()
    assert main(command.split()) == 0


def test_policies_that_cannot_be_compared(vlm: Path, student: Path, tmp_path: Path, refuse: Refuse) -> None:
    wider = build_checkpoint(tmp_path / "wider", vlm, max_action_dim=16)
    assert "max_action_dim is 16, but the teacher's is" in refuse(wider)
    other = Path(shutil.copytree(student, tmp_path / "other"))
    changed("config.json", type="act")(other)
    assert re.search("student.path.*'act'", refuse(other))


def scaled(folder: Path, key: str, to: Path) -> Path:
    """A copy whose statistics of a feature are 20 times as large; weights stay."""
    shutil.copytree(folder, to)
    for pipeline in (BEFORE, AFTER):
        edit_statistics(to, pipeline, lambda h: h.update({k: 20 * h[k] for k in h if k.startswith(key)}))
    return to


def test_actions_in_other_units_are_compared_in_episodes_only(
    checkpoint: Path, student: Path, dataset_root: Path, tmp_path: Path, refuse: Refuse
) -> None:
    other = scaled(student, "action", tmp_path / "other")
    data = {"dataset.repo_id": "x", "dataset.root": dataset_root}
    said = refuse(other, **data)
    assert f"student.path: {other}: its postprocessor has other statistics of action" in said
    assert "episodes only (leave --dataset.* of evaluate out)" in said
    assert "policies=b: " in refuse(**data, policies=f"[b={other}]")
    run(options(checkpoint, other, tmp_path / "out", **{"eval.n_episodes": 2}))


def of_state_1(folder: Path) -> None:
    edit_statistics(folder, BEFORE, lambda h: h.update({k: h[k][:1] for k in h if "state" in k}))


def of_wrist(folder: Path) -> None:
    def move(config: dict[str, Any]) -> None:
        config["input_features"]["observation.images.wrist"] = config["input_features"].pop(CAMERA)

    edit_json(folder / "config.json", move)


@pytest.mark.parametrize(("change", "message"), [
    (of_state_1, r"observation\.state has shape \(3,\), but the checkpoint was trained with \(1,\)"),
    (of_wrist, r"dataset\.repo_id=x lacks the checkpoint's camera\(s\) observation\.images\.wrist"),
])  # fmt: skip
def test_every_policy_has_to_fit_the_dataset(
    change: Break, message: str, student: Path, dataset_root: Path, tmp_path: Path, refuse: Refuse
) -> None:
    other = Path(shutil.copytree(student, tmp_path / "other"))
    change(other)
    said = refuse(other, **{"dataset.repo_id": "x", "dataset.root": dataset_root})
    assert re.search(f"student\\.path: {other}: .*{message}", said), said


def test_policies_that_look_at_other_frames_are_compared_in_episodes_only() -> None:
    policies = [SimpleNamespace(observation_delta_indices=frames) for frames in ([-1, 0], None)]
    other: Any = SimpleNamespace(field="policies=b", path="x", policy=policies[1])
    with pytest.raises(
        UserError, match=r"policies=b: x looks at the frames \[0\].* the teacher at \[-1, 0\]"
    ):
        _check_shown(other, cast(Any, policies[0]), cast(Any, None))


def test_contexts_are_shared_where_the_preprocessor_agrees_too(
    checkpoint: Path, student: Path, tmp_path: Path
) -> None:
    narrow = Path(shutil.copytree(checkpoint, tmp_path / "narrow"))
    changed("config.json", tokenizer_max_length=7)(narrow)
    states = scaled(checkpoint, "observation", tmp_path / "states")
    loaded = [load_flow_policy(path, device="cpu") for path in (checkpoint, student, narrow, states)]
    own, *others = (policy.prefix_hash() for policy in loaded)
    assert [other == own for other in others] == [True, False, False]


@pytest.mark.parametrize(("given", "message"), [
    ({"env.cameras": "[front]"}, "teacher.path=.*env.type=drift_of_the_tests lacks .*camera.*rename_map"),
    ({"noise": "gauss"}, r"noise=gauss: give paired \| lerobot"),
    ({"margin": 0}, "margin=0"),
    ({"policies": "x"}, "write NAME=PATH"),
    ({"policies": "[student=x]"}, "'student' is taken"),
    ({"delay.modes": "[later]", "delay.control_steps": "[1]"}, "delay.modes="),
    ({"noise": "lerobot", "sequential.enable": "true"}, "does not pair"),
    ({"env.type": "nowhere"}, "env.type=nowhere"),
    ({"delay.control_steps": "[99]", "delay.modes": "[async]"}, "delay"),
])  # fmt: skip
def test_options_that_cannot_be_used(given: dict[str, Any], message: str, refuse: Refuse) -> None:
    assert re.search(message, refuse(**given))


def test_nothing_to_measure_on(checkpoint: Path, capsys: Capture) -> None:
    arguments = ["evaluate", f"--teacher.path={checkpoint}", "--output_dir=out"]
    assert "student.path is missing" in refusal(arguments, capsys)
    assert "neither a dataset nor an environment" in refusal([*arguments, "--student.path=x"], capsys)


def test_the_folder_of_another_run_is_left_alone(
    evaluated: tuple[Path, Results], checkpoint: Path, student: Path, capsys: Capture
) -> None:
    assert " ".join(resume(evaluated[0])) in refusal(options(checkpoint, student, evaluated[0]), capsys)
