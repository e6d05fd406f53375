"""Several processes: two train as one on what they draw, under DDP and FSDP2, and end together."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from safetensors.torch import load_file
from torch import Tensor

from chordflow.cli.main import main
from chordflow.couplings.store import shard_name
from chordflow.errors import UserError
from chordflow.training.checkpoints import check_same_size
from chordflow.training.distributed import Wrapped
from chordflow.training.loop import read_metrics
from coupling_stores import command as couple
from distributed_worker import REFLOW, SOAP, STEPS, AsOne, copy_until, reflow, train_gaussian
from gaussian_setup import AffineStudent, make_policy

TESTS = Path(__file__).parent
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))},
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])),
}


def start(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)], env=ENVIRONMENT, cwd=TESTS, capture_output=True, text=True, timeout=800
    )  # fmt: skip


Faults = tuple[Path, dict[str, SimpleNamespace]]


@pytest.fixture(scope="module")
def faults(checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Faults:
    """How two processes end: where they train as they should ("work"), and by what goes wrong in one of them."""
    folder = tmp_path_factory.mktemp("faults")
    done = start("distributed_faults.py", folder, checkpoint, dataset_root)
    assert done.returncode == 0, done.stderr
    ended = json.loads((folder / "ended.json").read_text())
    return folder, {name: SimpleNamespace(**values) for name, values in ended.items()}


@pytest.fixture(scope="module")
def two(faults: Faults) -> Path:
    """What two processes left behind."""
    folder, ended = faults
    work = ended["work"]
    assert work.codes == [0, 0], work.out + work.said
    # One process talks, and none has anything to complain of.
    assert [out.count("Teacher:") for out in work.out] == [out.count("Done in") for out in work.out] == [2, 0]
    assert not any("Warning" in said for said in work.said)
    return folder / "work"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process left behind that drew what two do."""
    folder = tmp_path_factory.mktemp("one")
    train_gaussian(folder / "run", batch_size=8, parts=2, as_two=True)
    return folder / "run"


@pytest.fixture
def as_two(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has one process train on what two with `--batch_size=4` draw."""
    monkeypatch.setattr("chordflow.experiments.train.CouplingBuffer", AsOne)
    return ["--batch_size=4", "--gradient_accumulation_steps=2"]


MASTERS = "training_state/master_weights.safetensors"


def weights(run: Path, file: str = MASTERS) -> Any:
    return load_file(run / "checkpoints" / f"{STEPS:06d}" / file)


def gradients(run: Path) -> list[dict[str, Tensor]]:
    return [load_file(run / f"gradients-{rank}.safetensors") for rank in (0, 1)]


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=name)


def assert_same_saved(a: Path, b: Path, tolerance: float) -> None:
    more = ("training_state/ema_weights", "training_state/optimizer_state", "pretrained_model/student")
    for file in (MASTERS, *(f"{name}.safetensors" for name in more)):
        assert_same(weights(a, file), weights(b, file), tolerance)


@pytest.mark.parametrize("run", ["ddp", "parts", "fsdp", "fsdp-resumed"])
def test_two_processes_train_as_one_on_the_same_couplings(two: Path, one: Path, run: str) -> None:
    assert_same_saved(two / run, one, 1e-5)


def test_the_weights_have_moved_by_far_more_than_they_differ(one: Path) -> None:
    fresh = dict(AffineStudent(make_policy().config).module.named_parameters())
    for name, tensor in weights(one).items():
        assert float((tensor - fresh[name].detach()).abs().max()) > 5e-3, name


def test_two_processes_make_the_store_that_one_makes(
    two: Path, checkpoint: Path, dataset_root: Path, tmp_path: Path
) -> None:
    assert main(couple(checkpoint, dataset_root, tmp_path / "store")) == 0
    for number in range(6):
        of_two, of_one = (folder / "store" / shard_name(number) for folder in (two, tmp_path))
        assert of_two.read_bytes() == of_one.read_bytes()


@pytest.mark.parametrize("run", ["ddp", "parts", "fsdp"])
def test_both_processes_have_the_same_gradients(two: Path, one: Path, run: str) -> None:
    first, second = gradients(two / run)
    assert len(first) == STEPS * 6
    assert_same(first, second, 0.0)
    assert_same(first, load_file(one / "gradients-0.safetensors"), 1e-5)


def test_both_processes_step_alike_by_the_default_optimiser(two: Path, tmp_path: Path) -> None:
    """Rounding is scaled up where there is hardly a gradient, so they are held to each other and not to one process."""
    for run in ("ddp", "parts", "soap", "soap-resumed"):
        first, second = (load_file(two / run / f"weights-{rank}.safetensors") for rank in (0, 1))
        assert_same(first, second, 0.0)
    assert_same_saved(two / "soap-resumed", two / "soap", 0.0)
    train_gaussian(tmp_path, batch_size=8, parts=2, as_two=True, optimizer=SOAP)
    of_two, of_one = (read_metrics(run / "metrics.jsonl") for run in (two / "soap", tmp_path))
    losses = [[line["loss"] for line in lines] for lines in (of_two, of_one)]
    # The first step looks on; until the second has been made, both are what they were.
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_what_is_logged_is_of_all_processes(two: Path, one: Path) -> None:
    for run in ("ddp", "fsdp"):
        lines, expected = read_metrics(two / run / "metrics.jsonl"), read_metrics(one / "metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        for line, of_one in zip(lines, expected, strict=True):
            for name in ("loss", "grad_norm", "lr"):
                assert line[name] == pytest.approx(of_one[name], rel=1e-5)
            assert line["samples_per_s"] > 0


def test_checkpoints_say_how_many_processes_wrote_them(two: Path, one: Path) -> None:
    for run, processes, batch in ((two / "ddp", 2, 8), (two / "parts", 2, 8), (one, 1, 16)):
        file = run / "checkpoints" / "000005" / "training_state" / "training_step.json"
        state = json.loads(file.read_text())
        assert (state["num_processes"], state["batch_size"]) == (processes, batch)


def test_a_run_of_two_processes_goes_on_in_one_by_steps_of_the_same_size(
    two: Path, one: Path, tmp_path: Path
) -> None:
    resume_from = copy_until(two / "fsdp", 3, tmp_path / "run")
    check_same_size(resume_from, 16, "")
    refused = r"batch_size=8 make 8 couplings a step, but the run began with 16 \(2 pro"
    with pytest.raises(UserError, match=refused):
        check_same_size(resume_from, 8, "batch_size=8")
    train_gaussian(tmp_path / "run", batch_size=8, parts=2, as_two=True, resume_from=resume_from)
    assert_same_saved(tmp_path / "run", one, 1e-5)


def test_a_student_that_fsdp_trained_is_a_stock_checkpoint(
    two: Path, checkpoint: Path, dataset_root: Path, tmp_path: Path, as_two: list[str]
) -> None:
    reflow(tmp_path / "one", checkpoint, dataset_root, *as_two)
    folder = "checkpoints/last/pretrained_model"
    student = SmolVLAPolicy.from_pretrained(two / "smolvla-fsdp" / folder)
    of_one = SmolVLAPolicy.from_pretrained(tmp_path / "one" / folder)
    assert student.config.num_steps == 1
    assert_same(student.state_dict(), of_one.state_dict(), 1e-5)
    before = SmolVLAPolicy.from_pretrained(checkpoint).state_dict()
    moved = [name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(moved) == 27
    runs = (two / "smolvla-fsdp", tmp_path / "one")
    rms = [[row["rms"] for row in json.loads((run / "results.json").read_text())["gaps"]] for run in runs]
    assert rms[0] == pytest.approx(rms[1], rel=1e-3)


FSDP2 = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_machines: 1
num_processes: 2
mixed_precision: "no"
fsdp_config:
  fsdp_version: 2
"""


@pytest.mark.slow
@pytest.mark.usefixtures("full_measures")
def test_accelerate_launch_switches_fsdp2_on_and_both_processes_stop_after_the_same_round(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, as_two: list[str]
) -> None:
    """`--rounds=auto`: the first process measures, and both go on or stop."""
    config, one, two = tmp_path / "fsdp2.yaml", tmp_path / "one", tmp_path / "two"
    config.write_text(FSDP2)
    options = [
        f"--teacher.path={checkpoint}", "--dataset.repo_id=test/tiny", f"--dataset.root={dataset_root}", *REFLOW,
        "--device=cpu", "--rounds=auto", "--auto_rounds.most=2", "--auto_rounds.least_gain=0",
    ]  # fmt: skip
    done = start(
        "-m", "accelerate.commands.launch", f"--config_file={config}", "--main_process_port=0", "-m", "chordflow",
        "reflow", f"--output_dir={two}", "--batch_size=4", *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # Said only where every trained parameter is sharded.
    assert "5 steps of 4 in each of 2 processes with FSDP2" in done.stdout
    assert main(["reflow", f"--output_dir={one}", *as_two, *options]) == 0
    assert len(list(two.glob("round_*"))) == len(list(one.glob("round_*"))) >= 1
    assert os.readlink(two / "checkpoints") == os.readlink(one / "checkpoints")
    assert_same(weights(two), weights(one), 1e-5)


# Gradient accumulation


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_one_batch(tmp_path: Path, parts: int) -> None:
    one, run = tmp_path / "one", tmp_path / "run"
    train_gaussian(one, batch_size=16)
    train_gaussian(run, batch_size=16 // parts, parts=parts)
    assert_same(*(load_file(folder / "gradients-0.safetensors") for folder in (run, one)), 1e-6)
    assert_same_saved(run, one, 1e-6)


# What the launcher asks for


@pytest.mark.parametrize(("environment", "message"), [
    ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version=1: only FSDP2 is supported"),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP2 is requested, but there is one process"),
    ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "give chordflow --gradient_accumulation_steps=4"),
])  # fmt: skip
def test_what_cannot_be_had_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    student = AffineStudent(make_policy().config)
    with pytest.raises(UserError, match=message):
        Wrapped(student, dict(student.module.named_parameters()))


def test_with_fsdp2_the_default_optimiser_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match=r"optimizer.type=soap: .*choose adamw"):
        reflow(tmp_path / "run", tmp_path / "no teacher", tmp_path / "no data", "--optimizer.type=soap")
    with pytest.raises(UserError, match=r"teacher.path=.*no teacher"):
        reflow(tmp_path / "run", tmp_path / "no teacher", tmp_path / "no data")


# Faults


LEFT = {"stopped": ["000002", "last"], "dies": []}
"""Checkpoints."""


@pytest.mark.parametrize(("name", "codes", "teller", "sentence"), [
    ("dies", [2, -9], 0, "another of the 2 processes of this run has ended without an error of its own"),
    ("nan", [2, 2], None, "the loss is not finite at step 3 (loss nan"),
    ("no_memory", [2, 2], 1, "give --batch_size=4 --gradient_accumulation_steps=2, which trains the same."),
    ("disk", [2, 2], 0, "checkpoint 000003 cannot be written ([Errno 28] No space left on device)"),
    ("early", [2, 2], 1, "teacher.path=x: no such folder on this machine"),
    ("interrupted", [2, 130], 1, "interrupted; what was saved stands; give the same command again."),
    # One is asked: both save the same step and leave.
    ("stopped", [143, 143], None, "ended by SIGTERM (as a launcher does, too, where one of 2 processes is gone);"),
])  # fmt: skip
def test_a_fault_in_one_process_is_told_once_and_ends_both(
    faults: Faults, name: str, codes: list[int], teller: int | None, sentence: str
) -> None:
    folder, all_ended = faults
    ended = all_ended[name]
    assert ended.codes == codes, ended.said
    assert ended.seconds < 30
    if name in LEFT:
        saved = folder / name / "checkpoints"
        assert (sorted(path.name for path in saved.iterdir()) if saved.exists() else []) == LEFT[name]
    said = [re.sub("Stopping as soon as .*\n", "", text) for text in ended.said]
    (told,) = (rank for rank in (0, 1) if said[rank])
    assert teller in (None, told)
    (line,) = said[told].splitlines()
    assert line.startswith("chordflow faulty: ")
    assert sentence in line
    assert not list(folder.glob(f"{name}/checkpoints/.*"))


def test_a_fault_of_chordflows_own_keeps_its_traceback(faults: Faults) -> None:
    ended = faults[1]["own_fault"]
    assert ended.codes == [2, 1]
    assert not ended.said[0]
    assert "KeyError" in ended.said[1]
