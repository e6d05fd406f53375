"""Several processes: two train as one on what they draw, under DDP and FSDP2, and end together."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from safetensors.torch import load_file
from torch import Tensor

from chordflow.cli.main import main
from chordflow.couplings import BufferConfig, CouplingBatch, CouplingBuffer, CouplingConfig, Share
from chordflow.couplings.making import BlockMaker
from chordflow.couplings.memory import enough_memory
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.training.checkpoints import check_same_size
from chordflow.training.distributed import Wrapped, current
from chordflow.training.loop import read_metrics
from chordflow.training.methods import ConsistencyMethodConfig
from chordflow.training.optimizers import SOAPConfig
from chordflow.training.steps import enough_memory_to_step
from distributed_worker import REFLOW, SOAP, STEPS, AsOne, copy_until, reflow, train_gaussian
from gaussian_policy import GaussianFlowPolicy
from gaussian_setup import AffineStudent, make_observations, make_policy

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


@dataclass
class Ended:
    """How two processes ended."""

    codes: list[int]
    seconds: float
    said: list[str]
    out: list[str]


@pytest.fixture(scope="module")
def faults(
    checkpoint: Path, dataset_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Ended]]:
    """How two processes end: where they train as they should ("work"), and by what goes wrong in one of them."""
    folder = tmp_path_factory.mktemp("faults")
    done = start("distributed_faults.py", folder, checkpoint, dataset_root)
    assert done.returncode == 0, done.stderr
    ended = json.loads((folder / "ended.json").read_text())
    return folder, {name: Ended(**values) for name, values in ended.items()}


@pytest.fixture(scope="module")
def two(faults: tuple[Path, dict[str, Ended]]) -> Path:
    """What two processes left behind."""
    folder, ended = faults
    work = ended["work"]
    assert work.codes == [0, 0], work.out + work.said
    # One process talks, and none has anything to complain of.
    assert [out.count("Teacher:") for out in work.out] == [out.count("Done in") for out in work.out] == [1, 0]
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


def weights(run: Path, file: str = "training_state/master_weights.safetensors", step: int = STEPS) -> Any:
    return load_file(run / "checkpoints" / f"{step:06d}" / file)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=name)


STUDENT = "pretrained_model/student.safetensors"
SAVED = [
    "training_state/master_weights.safetensors",
    "training_state/ema_weights.safetensors",
    "training_state/optimizer_state.safetensors",
    STUDENT,
]


@pytest.mark.parametrize("file", SAVED)
@pytest.mark.parametrize("run", ["ddp", "ddp-resumed", "parts", "fsdp", "fsdp-parts", "fsdp-resumed"])
def test_two_processes_train_as_one_on_the_same_couplings(two: Path, one: Path, run: str, file: str) -> None:
    assert_same(weights(two / run, file), weights(one, file), 1e-5)


def test_a_method_on_states_of_trajectories_trains_in_two_processes_as_in_one(
    two: Path, tmp_path: Path
) -> None:
    train_gaussian(
        tmp_path / "run", batch_size=8, parts=2, as_two=True, method=ConsistencyMethodConfig().build()
    )
    for file in SAVED:
        assert_same(weights(two / "consistency", file), weights(tmp_path / "run", file), 1e-5)
    first, second = (load_file(two / "consistency" / f"gradients-{rank}.safetensors") for rank in (0, 1))
    assert_same(first, second, 0.0)


def test_the_weights_have_moved_by_far_more_than_they_differ(one: Path) -> None:
    fresh = dict(AffineStudent(make_policy().config).module.named_parameters())
    for name, tensor in weights(one).items():
        assert float((tensor - fresh[name].detach()).abs().max()) > 5e-3, name


@pytest.mark.parametrize("run", ["ddp", "parts", "few", "fsdp", "fsdp-parts"])
def test_both_processes_have_the_same_gradients(two: Path, one: Path, run: str) -> None:
    first, second = (load_file(two / run / f"gradients-{rank}.safetensors") for rank in (0, 1))
    assert len(first) == STEPS * 6
    assert_same(first, second, 0.0)
    if run != "few":
        assert_same(first, load_file(one / "gradients-0.safetensors"), 1e-5)


def test_both_processes_step_alike_by_the_default_optimiser(two: Path, tmp_path: Path) -> None:
    """Rounding is scaled up where there is hardly a gradient, so they are held to each other and not to one process."""
    for run in ("ddp", "parts", "soap", "soap-resumed"):
        first, second = (load_file(two / run / f"weights-{rank}.safetensors") for rank in (0, 1))
        assert_same(first, second, 0.0)
    for file in SAVED:
        assert_same(weights(two / "soap-resumed", file), weights(two / "soap", file), 0.0)
    train_gaussian(tmp_path / "run", batch_size=8, parts=2, as_two=True, optimizer=SOAP)
    of_two, of_one = (read_metrics(run / "metrics.jsonl") for run in (two / "soap", tmp_path / "run"))
    losses = [[line["loss"] for line in lines] for lines in (of_two, of_one)]
    # The first step looks on; until the second has been made, both are what they were.
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_two_processes_train_as_one_by_one_coupling_at_a_time(two: Path, tmp_path: Path) -> None:
    _, buffer = train_gaussian(tmp_path / "run", batch_size=1, parts=4, as_two=True)
    assert_same(weights(two / "few"), weights(tmp_path / "run"), 1e-5)
    assert buffer.step_size == 4


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
        state = json.loads(
            (run / "checkpoints" / "000005" / "training_state" / "training_step.json").read_text()
        )
        assert (state["num_processes"], state["batch_size"]) == (processes, batch)


def test_a_run_of_two_processes_goes_on_in_one(two: Path, one: Path, tmp_path: Path) -> None:
    resume_from = copy_until(two / "fsdp", 3, tmp_path / "run")
    check_same_size(resume_from, 16, "")
    train_gaussian(tmp_path / "run", batch_size=8, parts=2, as_two=True, resume_from=resume_from)
    for file in SAVED:
        assert_same(weights(tmp_path / "run", file), weights(one, file), 1e-5)


def test_steps_of_another_size_are_refused(two: Path) -> None:
    with pytest.raises(
        UserError, match=r"batch_size=8 make 8 couplings a step, but the run began with 16 \(2 pro"
    ):
        check_same_size(two / "ddp" / "checkpoints" / "last", 8, "batch_size=8")


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
    rows = [
        json.loads((run / "results.json").read_text())["gaps"]
        for run in (two / "smolvla-fsdp", tmp_path / "one")
    ]
    assert [row["rms"] for row in rows[0]] == pytest.approx([row["rms"] for row in rows[1]], rel=1e-3)


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
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(
                torch.cuda.device_count() < 2, reason="NCCL wants a GPU for each process"
            ),
        ),
    ],
)
def test_accelerate_launch_switches_fsdp2_on(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, device: str, as_two: list[str]
) -> None:
    config = tmp_path / "fsdp2.yaml"
    config.write_text(FSDP2)
    options = [
        f"--teacher.path={checkpoint}", "--dataset.repo_id=test/tiny", f"--dataset.root={dataset_root}", *REFLOW,
        f"--device={device}",
    ]  # fmt: skip
    done = start(
        "-m", "accelerate.commands.launch", f"--config_file={config}", "--main_process_port=0", "-m", "chordflow",
        "reflow", f"--output_dir={tmp_path / 'two'}", "--batch_size=4", *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # Said only where every trained parameter is sharded.
    assert "5 steps of 4 in each of 2 processes with FSDP2" in done.stdout
    reflow(tmp_path / "one", checkpoint, dataset_root, f"--device={device}", *as_two)
    assert_same(weights(tmp_path / "two"), weights(tmp_path / "one"), 1e-5 if device == "cpu" else 1e-3)


@pytest.mark.slow
def test_two_processes_stop_after_the_same_round(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, as_two: list[str]
) -> None:
    """`--rounds=auto`: the first process measures, and both go on or stop."""
    options = [
        f"--teacher.path={checkpoint}", "--dataset.repo_id=test/tiny", f"--dataset.root={dataset_root}", *REFLOW,
        "--device=cpu", "--rounds=auto", "--auto_rounds.most=2", "--auto_rounds.least_gain=0",
    ]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    done = start(
        "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "chordflow", "reflow", f"--output_dir={two}",
        "--batch_size=4", *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert main(["reflow", f"--output_dir={one}", *as_two, *options]) == 0
    assert len(list(two.glob("round_*"))) == len(list(one.glob("round_*"))) >= 1
    assert os.readlink(two / "checkpoints") == os.readlink(one / "checkpoints")
    assert_same(weights(two), weights(one), 1e-5)


# Gradient accumulation


ONE = Share()


def gaussian_buffer(
    batch_size: int,
    *,
    parts: int = 1,
    share: Share = ONE,
    num_observations: int = 8,
    uses: int | None = 1,
    observations: int = 8,
    start: int = 256,
) -> CouplingBuffer:
    config = BufferConfig(num_observations, 4, uses, 4, start_observations=start)
    return CouplingBuffer(
        make_policy(), make_observations(observations), CouplingConfig(num_steps=2), config, seed=3,
        batch_size=batch_size, parts=parts, share=share,
    )  # fmt: skip


def fill(buffer: CouplingBuffer, step: int) -> list[int]:
    list(buffer.fill(step))
    return buffer.held_blocks(step)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_one_batch(tmp_path: Path, parts: int) -> None:
    one = tmp_path / "one"
    train_gaussian(one, batch_size=16)
    train_gaussian(tmp_path / "run", batch_size=16 // parts, parts=parts)
    theirs = load_file(one / "gradients-0.safetensors")
    assert_same(load_file(tmp_path / "run" / "gradients-0.safetensors"), theirs, 1e-6)
    for file in SAVED:
        assert_same(weights(tmp_path / "run", file), weights(one, file), 1e-6)


# What a process holds


@given(
    processes=st.integers(1, 5),
    parts=st.integers(1, 3),
    batch_size=st.integers(1, 4),
    blocks=st.integers(5, 9),
    start=st.integers(1, 36),
    uses=st.sampled_from([1, 3, None]),
    step=st.integers(0, 40),
)
def test_every_process_draws_as_many_couplings_from_its_own_blocks(
    processes: int, parts: int, batch_size: int, blocks: int, start: int, uses: int | None, step: int
) -> None:
    spread = [
        gaussian_buffer(
            batch_size,
            parts=parts,
            share=Share(rank, processes),
            num_observations=4 * blocks,
            uses=uses,
            start=start,
        )
        for rank in range(processes)
    ]
    batches = []
    for buffer in spread:
        held = fill(buffer, step)
        assert [number % processes for number in held] == [buffer.share.index] * len(held)
        batches += [buffer.batch(step, part) for part in range(parts)]
    assert [len(batch.noise) for batch in batches] == [batch_size] * (processes * parts)
    assert sum(batch.weight for batch in batches) == pytest.approx(1.0)
    size = processes * parts * batch_size
    assert {batch.total for batch in batches} == {size}
    rows = torch.cat([torch.arange(size) if batch.rows is None else batch.rows for batch in batches])
    assert rows.tolist() == list(range(size))
    # No coupling is drawn twice, and what is drawn for one is drawn for it alone.
    assert len({tuple(noise.flatten().tolist()) for batch in batches for noise in batch.noise}) == size
    drawn = torch.cat([batch.per_row(draw(step)) for batch in batches])
    assert torch.equal(drawn, draw(step)(size))


def test_one_process_draws_evenly_from_the_whole_buffer() -> None:
    """The bits of a run in one process are what they were before processes drew apart."""
    buffer = gaussian_buffer(12, num_observations=16, observations=16)
    fill(buffer, 3)
    first, order = buffer.window.held(3).start, torch.randperm(64, generator=generator(3, "batch", 3))
    chosen = order[:12].sort().values
    expected = torch.stack([buffer._blocks[first + n // 16].noise[n % 16] for n in chosen.tolist()])
    assert torch.equal(buffer.batch(3).noise, expected)


def test_a_growing_window_begins_with_a_block_for_each_process_and_what_a_step_draws() -> None:
    for rank in (0, 1):
        assert fill(gaussian_buffer(3, share=Share(rank, 2), num_observations=32, start=1), 0) == [rank]
    # 40 couplings lie in three blocks of 16.
    assert fill(gaussian_buffer(40, num_observations=32, start=1), 0) == [0, 1, 2]


def draw(step: int) -> Any:
    return lambda n: torch.rand(n, generator=generator(step))


def test_a_batch_without_rows_draws_for_itself() -> None:
    noise = torch.zeros(5, 1, 1)
    batch = CouplingBatch(noise, noise, None, None)
    assert torch.equal(batch.per_row(draw(0)), torch.rand(5, generator=generator(0)))


def test_fewer_blocks_than_processes_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"buffer.num_observations=8 makes 2 blocks of 4, fewer than the 3 processes"
    ):
        gaussian_buffer(1, share=Share(0, 3))
    with pytest.raises(
        UserError,
        match="batch_size=9 makes a step of 18 couplings of each process, which is larger than the buffer's 16",
    ):
        gaussian_buffer(9, parts=2, share=Share(0, 2))


# What the launcher asks for


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version=1: only FSDP2 is supported"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            "FSDP2 is asked for, but there is one process",
        ),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "give chordflow --gradient_accumulation_steps=4"),
    ],
)
def test_what_cannot_be_had_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    student = AffineStudent(make_policy().config)
    with pytest.raises(UserError, match=message):
        Wrapped(student, dict(student.module.named_parameters()))


def test_an_optimiser_that_needs_whole_matrices_is_refused_with_fsdp2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sharded(Wrapped):
        sharded = property(lambda self: True, lambda self, value: None)  # type: ignore[assignment]

    monkeypatch.setattr("chordflow.training.steps.Wrapped", Sharded)
    monkeypatch.setattr("chordflow.training.distributed._check_launch", lambda *_: None)
    monkeypatch.setattr("chordflow.training.distributed.fully_shard", lambda *_, **__: None)
    monkeypatch.setattr("chordflow.training.distributed.Wrapped._check", lambda *_: None)
    with pytest.raises(UserError, match=r"optimizer.type=soap: it needs whole matrices"):
        train_gaussian(tmp_path / "run", batch_size=4, optimizer=SOAPConfig())


def test_with_fsdp2_the_default_optimiser_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match=r"optimizer.type=soap: .*choose adamw"):
        reflow(tmp_path / "run", tmp_path / "no teacher", tmp_path / "no data", "--optimizer.type=soap")
    with pytest.raises(UserError, match=r"teacher.path=.*no teacher"):
        reflow(tmp_path / "run", tmp_path / "no teacher", tmp_path / "no data")


def test_one_process_alone_is_the_first_of_one() -> None:
    assert (current().index, current().count, current().first) == (0, 1, True)
    assert current().sum([1.5, 2.0]) == [1.5, 2.0]


# Faults


LEFT = {"none": ["000003", "000005", "last"], "stopped": ["000002", "last"], "dies": [], "lost": []}
"""Checkpoints."""


@pytest.mark.parametrize(
    ("name", "codes", "teller", "sentence"),
    [
        ("none", [0, 0], 0, ""),
        ("dies", [2, -9], 0, "another of the 2 processes of this run has ended without a word"),
        ("nan", [2, 2], None, "the loss is not finite at step 3 (loss nan"),
        (
            "no_memory",
            [2, 2],
            1,
            "give --batch_size=4 --gradient_accumulation_steps=2, which trains the same.",
        ),
        ("cannot_read", [2, 2], 1, "dataset: frame 3 of a/b cannot be read"),
        ("disk", [2, 2], 0, "checkpoint 000003 cannot be written ([Errno 28] No space left on device)"),
        ("early", [2, 2], 1, "teacher.path=x: no such folder on this machine"),
        ("all", [2, 2], None, "steps=0: give at least 1."),
        ("interrupted", [2, 130], 1, "interrupted; what was saved stands."),
        # One is asked: both save the same step and leave.
        (
            "stopped",
            [143, 143],
            None,
            "ended by SIGTERM (as a launcher does, too, where one of 2 processes is gone);",
        ),
        # Where one is gone there is nothing that all agree on.
        ("lost", [2, -9], 0, "another of the 2 processes of this run has ended without a word"),
    ],
)
def test_a_fault_in_one_process_is_told_once_and_ends_both(
    faults: tuple[Path, dict[str, Ended]], name: str, codes: list[int], teller: int | None, sentence: str
) -> None:
    folder, all_ended = faults
    ended = all_ended[name]
    assert ended.codes == codes, ended.said
    assert ended.seconds < 30
    told = [rank for rank in (0, 1) if ended.said[rank]]
    if name in LEFT:
        saved = folder / name / "checkpoints"
        assert (sorted(path.name for path in saved.iterdir()) if saved.exists() else []) == LEFT[name]
    if sentence:
        said = [re.sub("Stopping as soon as .*\n", "", text) for text in ended.said]
        told = [rank for rank in (0, 1) if said[rank]]
        assert len(told) == 1
        assert teller in (None, told[0])
        lines = said[told[0]].splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("chordflow faulty: ")
        assert sentence in lines[0]
    else:
        assert not told
    assert not list(folder.glob(f"{name}/checkpoints/.*"))


def test_a_fault_of_chordflows_own_keeps_its_traceback(faults: tuple[Path, dict[str, Ended]]) -> None:
    ended = faults[1]["own_fault"]
    assert ended.codes == [2, 1]
    assert not ended.said[0]
    assert "KeyError" in ended.said[1]


# Memory


def short(*_: object, **__: object) -> Any:
    # A plain RuntimeError on a CPU, and refused before any memory is used.
    torch.empty(1 << 50)


def encode(*_: object, **__: object) -> Any:
    short()


def test_out_of_memory_names_what_to_halve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def what(name: str) -> str:
        with pytest.raises(UserError) as caught:
            train_gaussian(tmp_path / name, batch_size=6, parts=2)
        return str(caught.value)

    with monkeypatch.context() as patched:
        patched.setattr(AffineStudent, "velocity", short)
        assert what("step").endswith(
            "while 6 couplings were trained on at a time; give --batch_size=3 --gradient_accumulation_steps=4, which "
            "trains the same."
        )
    with monkeypatch.context() as patched:
        patched.setattr(GaussianFlowPolicy, "velocity", short)
        assert "while 6 couplings were solved by the teacher at a time; give --batch_size=3 --grad" in what(
            "solve"
        )
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", short)
        assert what("adam").endswith(
            "for the state of the optimiser adamw; train less with --student.train, or use a larger device."
        )
    with monkeypatch.context() as patched:
        patched.setattr(BlockMaker, "noise", short)
        assert what("noise").endswith(
            "while 4 observations were prepared at a time; give --buffer.block_size=2."
        )
    monkeypatch.setattr(GaussianFlowPolicy, "encode", encode)
    assert what("encode").endswith(
        "while 4 observations were prepared at a time; give --buffer.block_size=2."
    )


@pytest.mark.parametrize(
    ("modes", "memory", "batch_size", "stored", "option"),
    [
        (1, 5_000, 6, False, "--buffer.num_observations=4."),
        (1, 5_000, 6, True, "--buffer.num_observations=4."),
        (20, 10_000, 6, False, "--buffer.num_observations=4."),
        (20, 100_000, 6, False, "--batch_size=3 "),
        # Of half as many couplings there is no step.
        (1, 5_000, 24, False, "make a step smaller, which draws 24 couplings."),
    ],
)
def test_a_buffer_that_fills_the_memory_is_what_to_halve(
    monkeypatch: pytest.MonkeyPatch, modes: int, memory: int, batch_size: int, stored: bool, option: str
) -> None:
    buffer = CouplingBuffer(
        make_policy(num_modes=modes), make_observations(8), CouplingConfig(num_steps=2), BufferConfig(8, 4, None, 4),
        seed=3, batch_size=batch_size,
    )  # fmt: skip
    # Half of it is enough to tell.
    next(iter(buffer.fill(0)))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=memory))
    if stored:
        monkeypatch.setattr(buffer, "source", object())
    with (
        pytest.raises(UserError, match=r"GiB on cpu for the buffer|trained on at a time") as caught,
        buffer.enough_memory(),
    ):
        short()
    assert option in str(caught.value)


def test_noises_that_do_not_fit_are_what_to_halve(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = CouplingBuffer(
        make_policy(), make_observations(8), CouplingConfig(num_steps=2), BufferConfig(8, 40, None, 4),
        seed=3, batch_size=6,
    )  # fmt: skip
    monkeypatch.setattr(GaussianFlowPolicy, "sample_noise", short)
    words = (
        "while 40 noises of every observation were made at a time; give --buffer.noises_per_observation=20"
    )
    with pytest.raises(UserError, match=words), buffer.enough_memory():
        next(iter(buffer.fill(0)))
    context: Any = None
    with pytest.raises(UserError, match=words), enough_memory(torch.device("cpu"), str), buffer.in_memory():
        buffer.solve(0, context)


def test_soaps_matrices_are_what_to_halve() -> None:
    config, parameters = SOAPConfig(max_precondition_dim=64), [torch.zeros(48, 100), torch.zeros(7)]
    with (
        pytest.raises(
            UserError, match=r"give --optimizer.max_precondition_dim=24 or --optimizer.type=adamw\.$"
        ),
        enough_memory_to_step(config, parameters, torch.device("cpu")),
    ):
        short()
