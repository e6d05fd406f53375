"""Training on devices that this machine lacks: on a Mac, and on the second GPU."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chordflow.cli.main import main
from chordflow.couplings.memory import free_memory
from chordflow.errors import UserError
from chordflow.evaluation.paired import MeasureConfig
from chordflow.policies import load_flow_policy
from chordflow.results.schema import Results
from chordflow.training.distributed import Processes, Wrapped
from chordflow.training.loop import read_metrics
from pretended_device import FREE, WrongDevice, pretended
from small_runs import cut_back, options, resume, student_of

QUICK = [
    "--steps=2", "--save_freq=1", "--log_freq=1", "--batch_size=4", "--teacher.num_inference_steps=2",
    "--measure.num_observations=1", "--measure.latency_repeats=1", "--measure.converged_num_steps=4",
    "--measure.converged_noises=2", "--measure.num_steps=[1]", "--measure.solvers=[euler]",
    "--buffer.num_observations=4", "--buffer.noises_per_observation=4", "--ema.enable=true",
    "--student.init=teacher_vlm", "--optimizer.precondition_frequency=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def run_on(
    checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Runs `chordflow reflow` on a device, or on the CPU once for all; gives the run's folder."""

    @functools.cache
    def run(name: str) -> Path:
        output = tmp_path_factory.mktemp("run") / name.replace(":", "-")
        with pytest.MonkeyPatch.context() as patch:
            # A hundred steps are the fewest for a figure, and here none is read.
            patch.setattr(MeasureConfig, "__post_init__", lambda self: None)
            assert (
                main(options(checkpoint, dataset_root, output, *QUICK, f"--device={name}", optimizer="")) == 0
            )
        return output

    return run


@pytest.mark.parametrize("name", ["mps", "cuda:1", pytest.param("cuda", marks=pytest.mark.slow)])
def test_a_student_is_trained_and_measured_on_another_device_as_on_the_cpu(
    name: str, run_on: Callable[[str], Path]
) -> None:
    expected = run_on("cpu")
    with pretended(name) as device:
        found = run_on(name)
    assert str(device) in (name, f"{name}:0")
    losses = [[line["loss"] for line in read_metrics(run / "metrics.jsonl")] for run in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    gaps = [[row.rms for row in Results.load(run / "results.json").gaps] for run in (found, expected)]
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-2)
    assert load_flow_policy(student_of(found), device="cpu").family == "smolvla"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mps", "cuda:1"])
def test_a_run_on_another_device_is_resumed_there(
    name: str, run_on: Callable[[str], Path], tmp_path: Path
) -> None:
    with pretended(name):
        cut = cut_back(Path(shutil.copytree(run_on(name), tmp_path / "cut", symlinks=True)), 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MeasureConfig, "__post_init__", lambda self: None)
            assert main(resume(cut, 1)) == 0
    losses = [read_metrics(run / "metrics.jsonl")[-1]["loss"] for run in (cut, run_on(name))]
    assert losses[0] == losses[1]


def test_the_pretended_device_refuses_what_a_real_one_does() -> None:
    with pretended("cuda:1") as device:
        here, there, cpu = torch.ones(2, device=device), torch.ones(2).to("cuda"), torch.ones(2)
        assert [str(x.device) for x in (here, there, cpu)] == ["cuda:1", "cuda:0", "cpu"]
        drawn = functools.partial(torch.rand, 2, device=device, generator=torch.Generator())
        for refused in (lambda: here + cpu, lambda: here + there, lambda: cpu[here.long()], drawn):
            with pytest.raises(WrongDevice):
                refused()
        with pytest.raises(TypeError, match="numpy"):
            here.numpy()
    with pretended("mps"), pytest.raises(TypeError, match="float64"):
        torch.ones(2, device="mps").double()
    assert not torch.cuda.is_available()


@pytest.mark.parametrize(("machine", "asked"), [("cuda", "cuda:2"), ("cuda", "mps"), ("mps", "cuda:0")])
def test_a_device_that_is_not_there_is_named(machine: str, asked: str, checkpoint: Path) -> None:
    with pretended(machine), pytest.raises(UserError, match=f"device={asked}") as error:
        load_flow_policy(checkpoint, device=asked)
    assert asked != "cuda:2" or "give cuda:0 to cuda:1" in str(error.value)


def test_lerobot_is_given_the_name_that_it_knows(checkpoint: Path) -> None:
    policy = load_flow_policy(checkpoint, device=torch.device("cpu", 0))
    assert policy.config.device == "cpu"
    assert policy.device == torch.device("cpu")


def test_what_torch_has_cached_is_free() -> None:
    with pretended("cuda:1") as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.memory_reserved", lambda of: 13 * 2**30 if of == device else 0)
        patch.setattr("torch.cuda.memory_allocated", lambda of: 2 * 2**30 if of == device else 0)
        assert free_memory(device) == FREE + 11 * 2**30


def test_processes_that_share_a_gpu_by_its_number_are_told_to_leave_it_out(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretended("cuda:1"):
        policy = load_flow_policy(checkpoint, device="cuda:1")
        monkeypatch.setattr("chordflow.training.distributed.current", lambda: Processes(0, 2))
        with pytest.raises(UserError, match=r"device=cuda:1.*--device=cuda[.]"):
            Wrapped(policy, {})
