"""The main job end to end on a real, shrunken policy: train, save, resume, measure, load with stock LeRobot."""

import fcntl
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from safetensors.torch import load_file

from builders import build_checkpoint, build_vlm
from chordflow import disk
from chordflow.cli.main import main
from chordflow.experiments import run_folder
from chordflow.policies import Role, load_flow_policy
from chordflow.results.schema import Results
from chordflow.training import checkpoints
from chordflow.training.loop import read_metrics
from small_jobs import drawn, measured_in_full
from small_runs import Capture, cut_back, options, refusal, resume, student_of


@pytest.fixture(scope="module")
def run(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run by the default solver and optimiser, with EMA and loader workers, and letters in its name."""
    output = tmp_path_factory.mktemp("runs") / "läuft gut 你好"
    more = ("--ema.enable=true", "--num_workers=2")
    with measured_in_full(), drawn():
        assert main(options(checkpoint, dataset_root, output, *more, optimizer="")) == 0
    return output


def test_a_run_is_laid_out_as_lerobots_and_stock_tools_read_it(run: Path) -> None:
    folder = run / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["000003", "000006", "last"]
    assert os.readlink(folder / "last") == "000006"
    files = {path.name for path in student_of(run).iterdir()}
    assert {"config.json", "model.safetensors", "train_config.json", "policy_preprocessor.json",
            "policy_postprocessor.json", "reflow_config.json"} <= files  # fmt: skip
    state = {path.name for path in (folder / "last" / "training_state").iterdir()}
    assert {"optimizer_state.safetensors", "training_step.json", "rng_state.safetensors", "scheduler_state.json",
            "master_weights.safetensors", "ema_weights.safetensors"} <= state  # fmt: skip
    suffixes = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jsonl", ".png", ".html", ".md"}
    assert {path.name for path in run.iterdir()} >= {"report.html", "table.md", "model_card.md"}
    assert sorted(p.name for p in (run / "figures").iterdir()) == ["gap.png", "loss.png", "trajectories.png"]
    stock = TrainPipelineConfig.from_pretrained(student_of(run))
    assert (stock.steps, stock.batch_size, stock.seed) == (6, 8, 5)
    assert stock.policy.num_steps == 1  # type: ignore[attr-defined]
    assert stock.optimizer.lr == 1e-3


def test_the_student_is_measured_beside_its_teacher(run: Path) -> None:
    results = Results.load(run / "results.json")
    assert {(row.policy, row.num_steps) for row in results.curvature} == {("teacher", 100), ("student", 100)}
    assert results.floor is not None
    for reference in ("deployed", "converged"):
        for num_steps in (1, 2):
            row = results.gap("student", num_steps, reference)
            assert row.ratio_to_untrained is not None
            assert results.gap("teacher", num_steps, reference) is not None
    deployed = results.gap("teacher", 10, "deployed")
    assert deployed.rms == 0
    assert min(results.latency.ceiling, results.latency.speedup) > 1
    assert results.loss.steps == [2, 4, 6]
    made = results.couplings
    assert (made.solver, made.num_steps, made.grid_power) == ("adams_bashforth", 2, 1.4)


@pytest.mark.usefixtures("full_measures")
def test_a_resumed_run_ends_in_the_same_bits(run: Path, tmp_path: Path) -> None:
    cut = tmp_path / "moved elsewhere"
    cut_back(Path(shutil.copytree(run, cut, symlinks=True)), 3)
    # With a half-written checkpoint behind it.
    (cut / "checkpoints" / ".000006.tmp").mkdir()
    (cut / "results.json").unlink()
    # Workers read ahead and change nothing: the run had two.
    assert main(resume(cut, 3, "--num_workers=0")) == 0
    ends = [path / "checkpoints" / "000006" for path in (run, cut)]
    for name in ("pretrained_model/model.safetensors", "training_state/master_weights.safetensors",
                 "training_state/ema_weights.safetensors", "training_state/optimizer_state.safetensors"):  # fmt: skip
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes(), name
    a, b = (read_metrics(path / "metrics.jsonl") for path in (run, cut))
    assert [line["step"] for line in a] == [line["step"] for line in b] == [2, 4, 6]
    assert a[-1]["loss"] == b[-1]["loss"]
    gaps = [[row.rms for row in Results.load(path / "results.json").gaps] for path in (run, cut)]
    assert gaps[0] == gaps[1]
    assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == ["000003", "000006", "last"]


@pytest.mark.parametrize(("more", "expected"), [
    ("--student.train=[action_head,prefix_projections]", {Role.ACTION_HEAD, Role.PREFIX_PROJECTIONS}),
    ("--student.train=[action_head,language] --optimizer.type=soap", {Role.ACTION_HEAD, Role.LANGUAGE}),
    ("--num_inference_steps=2 --coupling.solver=midpoint --method.times.type=u_shaped", {Role.ACTION_HEAD}),
])  # fmt: skip
def test_a_run_trains_what_it_is_told_and_nothing_else(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, more: str, expected: set[Role]
) -> None:
    output = tmp_path / "out"
    assert main(options(checkpoint, dataset_root, output, "--steps=2", *more.split())) == 0
    student, teacher = (load_file(p / "model.safetensors") for p in (student_of(output), checkpoint))
    assert student.keys() == teacher.keys()
    policy = load_flow_policy(student_of(output), device="cpu")
    changed = {
        role
        for role, named in policy.parameters_by_role().items()
        if any(name in student and not torch.equal(student[name], teacher[name]) for name in named)
    }
    assert changed == expected
    assert policy.default_num_steps == (2 if "--num_inference_steps=2" in more else 1)


def test_a_bfloat16_teacher_is_trained_in_float32(dataset_root: Path, tmp_path: Path) -> None:
    """In bfloat16 most updates at this rate would round away."""
    # Only with weights in the VLM's folder does LeRobot make the VLM bfloat16, and the expert with it.
    folder = build_checkpoint(tmp_path / "low", build_vlm(tmp_path / "vlm", seed=0), load_vlm_weights=True)
    more = ["--steps=2", "--optimizer.lr=2e-5"]
    assert main(options(folder, dataset_root, tmp_path / "out", *more)) == 0
    last = student_of(tmp_path / "out")
    teacher, student = (load_file(at / "model.safetensors") for at in (folder, last))
    masters = load_file(last.parent / "training_state" / "master_weights.safetensors")
    assert {tensor.dtype for tensor in masters.values()} == {torch.float32}
    assert all(torch.equal(student[name], masters[name].to(teacher[name].dtype)) for name in masters)
    low = [masters[name] for name in masters if teacher[name].dtype == torch.bfloat16]
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in low)


CALLS = 7
"""Of what writes and renames, for one checkpoint."""


@pytest.mark.parametrize(
    ("whole", "fails_at"), [(1, 1), (1, 4), (1, CALLS - 1), (1, CALLS), (0, 1), (0, CALLS)]
)
def test_a_write_that_fails_leaves_the_last_good_checkpoint(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture,
    whole: int, fails_at: int,
) -> None:  # fmt: skip
    calls: list[int] = []
    output = tmp_path / "out"
    last = output / "checkpoints" / "last"

    def counted(function: object) -> object:
        def call(*arguments: object, **named: object) -> object:
            calls.append(int(last.exists()))
            if calls.count(whole) == fails_at:
                raise OSError(28, "No space left on device")
            return function(*arguments, **named)  # type: ignore[operator]

        return call

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(checkpoints, "save_file", counted(checkpoints.save_file))
    monkeypatch.setattr(checkpoints, "save_training_state", counted(checkpoints.save_training_state))
    message = refusal(options(checkpoint, dataset_root, output), capsys)
    assert "No space left" in message
    assert f"checkpoint 00000{3 + 3 * whole} cannot be written" in message
    if not whole:
        assert "no checkpoint was written yet" in message
        assert not output.exists()
        return
    # The last call points `last` to what is whole by then.
    left = ["000003", "000006", "last"] if fails_at == CALLS else ["000003", "last"]
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == left
    assert f"the last good checkpoint is {last.resolve()}" in message
    assert os.readlink(last) == "000003"
    assert calls.count(0) == CALLS
    SmolVLAPolicy.from_pretrained(student_of(output))


@pytest.mark.parametrize("more", [
    "--student.init=random", "--seed=9", "--batch_size=4", "--coupling.num_steps=1", "--num_inference_steps=2",
    "--ema.enable=true", "--output_dir=elsewhere", "--buffer.block_size=2", "--student.train=[language]",
    "--method.times.at_noise=0.1", "--method.type=snapflow", "--optimizer.type=adamw",
])  # fmt: skip
def test_what_would_make_it_another_run_is_refused(run: Path, more: str, capsys: Capture) -> None:
    before = (run / "metrics.jsonl").read_text()
    given = "--ema.enable=false" if more == "--ema.enable=true" else more
    assert "resuming cannot change it" in refusal(resume(run, 3, given), capsys)
    assert (run / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("steps", [1, 6])
def test_weights_that_an_update_destroyed_are_not_kept(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: Capture, steps: int
) -> None:
    output = tmp_path / "out"
    more = ["--optimizer.lr=1e30", f"--steps={steps}", "--log_freq=1", "--scheduler.num_warmup_steps=0"]
    message = refusal(options(checkpoint, dataset_root, output, *more), capsys)
    assert "not finite at step" in message
    assert "start again with a lower --optimizer.lr" in message
    # Nothing to go on from is left, so the same command may be given again.
    assert not output.exists()


def test_a_run_goes_on_elsewhere_at_another_rate_and_in_one_process_alone(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "teacher").symlink_to(checkpoint)
    (tmp_path / "data").symlink_to(dataset_root)
    monkeypatch.chdir(tmp_path)
    more = ["--steps=4", "--save_freq=2", "--log_freq=1"]
    assert main(options(Path("teacher"), Path("data"), Path("out"), *more)) == 0
    output = tmp_path / "out"
    before = read_metrics(output / "metrics.jsonl")
    monkeypatch.chdir(tmp_path.parent)
    again = resume(output, 2, "--optimizer.lr=1e-5")
    monkeypatch.setattr(disk, "LET_GO_S", 0.0)
    handle = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert main(again) == 2
    finally:
        os.close(handle)
    assert "another process works" in capsys.readouterr().err
    # One that is about to end is waited for.
    monkeypatch.setattr(disk, "LET_GO_S", 60.0)
    handle = os.open(output, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: os.close(handle))
    monkeypatch.setattr(run_folder, "time", clock)
    assert main(again) == 0
    after = read_metrics(output / "metrics.jsonl")
    assert [line["step"] for line in after] == [1, 2, 3, 4]
    assert before[:2] == after[:2]
    for old, new in zip(before[2:], after[2:], strict=True):
        assert new["lr"] == pytest.approx(old["lr"] / 100)
    stock = TrainPipelineConfig.from_pretrained(student_of(output))
    assert stock.optimizer.lr == 1e-5
