"""What the processes of a training run do, and one process with the doubled batch: the same code for both."""

import copy
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from builders import parse_reflow as parse
from chordflow.cli.main import main
from chordflow.couplings import BufferConfig, CouplingBatch, CouplingBuffer, CouplingConfig, Share
from chordflow.experiments.reflow import Finished
from chordflow.experiments.rounds import reflow_rounds
from chordflow.policies import Role
from chordflow.training.distributed import current, joined, whole
from chordflow.training.loop import train
from chordflow.training.methods import ReflowMethod, ReflowMethodConfig
from chordflow.training.methods.base import Method, VelocityFunction
from chordflow.training.objective import UniformTimes
from chordflow.training.optimizers import AdamWConfig, OptimizerConfig, SOAPConfig
from chordflow.training.steps import EMAConfig, LoopConfig
from coupling_stores import command as couple
from gaussian_setup import AffineStudent, make_observations, make_policy

STEPS = 5
SOAP = SOAPConfig(lr=1e-2, precondition_frequency=2)


class Uneven(ReflowMethod):
    """Reflow whose second process calls the student once more, as a method may for some of its couplings."""

    def loss(
        self, velocity: VelocityFunction, couplings: CouplingBatch, generator: torch.Generator
    ) -> Tensor:
        loss = super().loss(velocity, couplings, generator)
        if current().index == 1:
            with torch.no_grad():
                velocity(couplings.noise, torch.ones(len(couplings.noise)), context=couplings.context)
        return loss


class AsOne(CouplingBuffer):
    """In one process what two of half as many parts draw, one after the other."""

    def __init__(self, *args: Any, batch_size: int, parts: int, **options: Any) -> None:
        super().__init__(*args, batch_size=batch_size, parts=parts, **options)
        self.ranks = [
            CouplingBuffer(
                *args, batch_size=batch_size, parts=parts // 2, **{**options, "share": Share(rank, 2)}
            )
            for rank in (0, 1)
        ]

    def fill(self, step: int, last: int = 0) -> Iterator[int]:
        for rank in self.ranks:
            yield from rank.fill(step, last)

    def batch(self, step: int, part: int = 0) -> CouplingBatch:
        rank, own = divmod(part, self.ranks[0].parts)
        return self.ranks[rank].batch(step, own)


def train_gaussian(
    output: Path, *, batch_size: int, parts: int = 1, resume_from: Path | None = None, method: Method | None = None,
    optimizer: OptimizerConfig | None = None, as_two: bool = False,
) -> None:  # fmt: skip
    """Trains a small student in the processes that there are; weights and gradients of every step are kept.

    The weights that each process ends with are kept too, where it has them whole. `as_two` has one process train on
    what two would draw.
    """
    processes = current()
    if processes.first:
        output.mkdir(parents=True, exist_ok=True)
    processes.wait()
    teacher = make_policy()
    student = AffineStudent(copy.deepcopy(teacher.config))
    trainable = student.train_roles([Role.ACTION_HEAD])
    gradients: dict[str, Tensor] = {}

    def keep(optimizer: Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for index, parameter in enumerate(group["params"]):
                assert parameter.grad is not None
                gradients[f"{len(gradients)}.{index}"] = whole(parameter.grad).clone()

    def write(folder: Path, weights: dict[str, Tensor]) -> None:
        folder.mkdir(parents=True)
        save_file({n: tensor.contiguous() for n, tensor in weights.items()}, folder / "student.safetensors")

    method = method or Uneven(ReflowMethodConfig(times=UniformTimes(at_noise=0.3)))
    buffer = (AsOne if as_two else CouplingBuffer)(
        teacher, make_observations(24), CouplingConfig(num_steps=2),
        BufferConfig(num_observations=16, noises_per_observation=4, uses_per_coupling=2, block_size=4),
        seed=3, batch_size=batch_size, parts=parts, share=processes,
        needs=method.needs,
    )  # fmt: skip
    config = LoopConfig(
        steps=STEPS, seed=3, log_freq=1, save_freq=3,
        optimizer=optimizer or AdamWConfig(lr=1e-2),
        ema=EMAConfig(enable=True, decay=0.8),
    )  # fmt: skip
    hook = register_optimizer_step_pre_hook(keep)
    try:
        train(config, student, trainable, buffer, method, output, write, resume_from=resume_from)
    finally:
        hook.remove()
    save_file(gradients, output / f"gradients-{processes.index}.safetensors")
    if not any(isinstance(parameter, DTensor) for parameter in student.module.parameters()):
        ends = {name: parameter.detach().clone() for name, parameter in trainable.items()}
        save_file(ends, output / f"weights-{processes.index}.safetensors")


REFLOW = [
    "--steps=5", "--save_freq=0", "--log_freq=1", "--optimizer.lr=1e-3", "--num_workers=0", "--seed=5",
    "--buffer.num_observations=8", "--buffer.noises_per_observation=2", "--buffer.block_size=2",
    "--buffer.uses_per_coupling=1", "--coupling.num_steps=2", "--measure.num_observations=2",
    "--measure.latency_repeats=1", "--measure.converged_noises=1", "--measure.num_steps=[1]",
    "--optimizer.type=adamw",
]  # fmt: skip


def reflow(output: Path, teacher: Path, dataset: Path, *more: str) -> Finished:
    """The whole job, but for pictures and pages; later options replace earlier ones of the same name."""
    given = [
        f"--teacher.path={teacher}", "--dataset.repo_id=test/tiny", f"--dataset.root={dataset}",
        f"--output_dir={output}", *REFLOW, *more,
    ]  # fmt: skip
    options = list({option.partition("=")[0]: option for option in given}.values())
    config, _ = parse(options)
    return reflow_rounds(config, ["chordflow", "reflow", *options])


def copy_until(run: Path, step: int, to: Path) -> Path:
    """A run as if it had been stopped after a checkpoint; returns that checkpoint."""
    # The other process may still be writing what it ends with.
    current().wait()
    if current().first:
        shutil.copytree(run, to, symlinks=True)
        for later in (to / "checkpoints").iterdir():
            if not later.is_symlink() and int(later.name) > step:
                shutil.rmtree(later)
    current().wait()
    return to / "checkpoints" / f"{step:06d}"


def work(folder: Path, teacher: Path, dataset: Path) -> None:
    """Everything that needs two processes and no fault; trains in every way that tests look at."""
    with joined() as processes:
        assert processes.count == 2 == torch.distributed.get_world_size()
        assert torch.distributed.get_backend() == "gloo"
        assert main(couple(teacher, dataset, folder / "store")) == 0
        train_gaussian(folder / "ddp", batch_size=8)
        train_gaussian(folder / "parts", batch_size=4, parts=2)
        train_gaussian(folder / "soap", batch_size=4, parts=2, optimizer=SOAP)
        resume_from = copy_until(folder / "soap", 3, folder / "soap-resumed")
        train_gaussian(
            folder / "soap-resumed", batch_size=4, parts=2, optimizer=SOAP, resume_from=resume_from
        )
        # As accelerate launch does with a config of FSDP2.
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        train_gaussian(folder / "fsdp", batch_size=8)
        resume_from = copy_until(folder / "fsdp", 3, folder / "fsdp-resumed")
        train_gaussian(folder / "fsdp-resumed", batch_size=8, resume_from=resume_from)
        # The first process goes on to measure; the other is done.
        finished = reflow(folder / "smolvla-fsdp", teacher, dataset, "--batch_size=4")
        assert (finished.measured is not None) == processes.first
