"""Training in several processes: joining them, adding up over them, ending together, and sharing the student.

`torchrun` and `accelerate launch` start the same command several times and tell each process its number. The
processes meet here before anything else happens. From then on an error in one of them is printed once and ends all,
each with the exit code of the error, and no process waits for one that has ended.

DDP and FSDP2 exchange gradients in hooks of the one module that they wrap, and only where its `forward` is
called: that is `VelocityModule`, and nothing inside it is wrapped. What is frozen is left out of both, so the
teacher and the student of a process still share it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, get_int_from_env
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from chordflow import stopping
from chordflow.console import console
from chordflow.couplings import Share
from chordflow.errors import UserError, reason
from chordflow.policies import Context, FlowPolicy, VelocityModule
from chordflow.policies.base import Batch

# How long a process waits for the others at most: as long as one of them may write a checkpoint or make couplings
# alone. A process that has ended is noticed at once, whatever this is.
TIMEOUT = timedelta(hours=1)
# How long the others wait for the one that has failed to say so.
PATIENCE_S = 3.0
_FAILED = "chordflow/failed"
_LOST = re.compile(r"gloo|nccl|connection|broken pipe|socket|peer|timed? ?out", re.IGNORECASE)


@dataclass(frozen=True)
class Processes(Share):
    """The processes of a run; the couplings are shared among them."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, measures and prints."""
        return self.index == 0

    def wait(self) -> None:
        """Waits until all processes have come here."""
        self.sum([0.0])

    def sum(self, values: Sequence[float]) -> list[float]:
        """Adds numbers up over all processes; each has to call it, and each gets the sums."""
        if self.count == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        # Processes on GPUs have a group for the CPU as well (see `joined`).
        dist.all_reduce(summed)
        return summed.tolist()


def current() -> Processes:
    """The processes that this one has joined; one alone where it has joined none."""
    if not (dist.is_available() and dist.is_initialized()):
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Joins the processes that were started with this one, if any, and leaves them in the end.

    Only the first process prints. Where one fails, its error is raised in it alone; the others end with `SystemExit`.

    Raises:
        UserError: in one process, where another has ended without an error of its own.
    """
    count = get_int_from_env(["WORLD_SIZE"], 1)
    if count == 1 or dist.is_initialized():
        yield current()
        return
    index, local = (get_int_from_env([name], 0) for name in ("RANK", "LOCAL_RANK"))
    if torch.cuda.is_available() and local < torch.cuda.device_count():
        # From here on `cuda` is this process's GPU.
        torch.cuda.set_device(local)
    was_quiet, console.quiet = console.quiet, console.quiet or index > 0
    store: dist.Store | None = None
    try:
        with stopping.handled():
            try:
                store, index, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                    store=dist.PrefixStore("chordflow", store),
                    rank=index,
                    world_size=count,
                    timeout=TIMEOUT,
                )
                yield Processes(index, count)
            except BaseException as error:
                if isinstance(error, SystemExit) and not error.code:
                    raise
                # What comes now must not be cut short by those who clear up after the first that ended.
                with contextlib.suppress(ValueError):
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                _fail(error, store, count)
        dist.destroy_process_group()
    finally:
        console.quiet = was_quiet


def _fail(error: BaseException, store: dist.Store | None, count: int) -> NoReturn:
    """Raises the error in one process, and ends the others without a message."""
    lost = isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
    if lost:
        # The process that ended may still report why.
        deadline = time.monotonic() + PATIENCE_S
        while not _reports(store, 0) and time.monotonic() < deadline:
            time.sleep(0.05)
    if _reports(store, 1) > 1:
        code = error.code if isinstance(error, stopping.Stopped) else 130
        raise SystemExit(code if isinstance(error, KeyboardInterrupt) else 2) from None
    if isinstance(error, stopping.Stopped) and error.number == signal.SIGTERM:
        error.args = (f"{error} (as a launcher does, too, where one of {count} processes is gone)",)
    if lost:
        raise UserError(
            f"another of the {count} processes of this run has ended without an error of its own ({reason(error)}), as "
            "when it is killed or the machine runs out of memory; checkpoints that were written are whole: resume "
            "from the last one or start again."
        ) from error
    raise error


def _reports(store: dist.Store | None, own: int) -> int:
    """How many errors processes have reported, `own` of them this one now; where the store is gone, no others."""
    try:
        return own if store is None else store.add(_FAILED, own)
    except Exception:
        return own


class Wrapped:
    """The student's velocity, with its gradients exchanged between processes. Called as a `VelocityModule` is.

    Args:
        student: with only `trainable` requiring gradients.
        trainable: float32 parameters by name.
        accumulation: micro-batches a step, for checking the launcher's settings.

    Attributes:
        processes: that train together.
        trainable: the parameters that the optimiser is to have; where FSDP2 holds them (`sharded`), other objects.

    Raises:
        UserError: where the launcher asks for what cannot be had.
    """

    def __init__(
        self, student: FlowPolicy, trainable: Mapping[str, nn.Parameter], accumulation: int = 1
    ) -> None:
        self.processes = current()
        self.sharded = fsdp_is_asked_for()
        _check_launch(student, accumulation, self.sharded, self.processes.count)
        self.accelerator = Accelerator(
            cpu=student.device.type == "cpu",
            # All of it is where it belongs, and Accelerate knows of one GPU in a process.
            device_placement=False,
            step_scheduler_with_optimizer=False,
            # The loop weighs micro-batches itself.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
            ],
        )
        if self.accelerator.num_processes != self.processes.count:
            raise UserError(
                f"num_processes={self.accelerator.num_processes}: {self.processes.count} have met; start chordflow "
                "by torchrun or accelerate launch."
            )
        self.module: nn.Module = VelocityModule(student)
        frozen = {name: p for name, p in self.module.named_parameters() if not p.requires_grad}
        if self.sharded:
            fully_shard(self.module, ignored_params=set(frozen.values()))
        else:
            ignored = [*frozen, *(name for name, _ in self.module.named_buffers())]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.module, ignored)
            self.module = self.accelerator.prepare(self.module)
        self.trainable = {name: p for name, p in student.module.named_parameters() if name in trainable}
        # A student that trains alone shows an innocent-looking loss.
        if self.sharded:
            assert all(isinstance(parameter, DTensor) for parameter in self.trainable.values())
        else:
            assert self.processes.count == 1 or isinstance(self.module, DistributedDataParallel)

    def __call__(
        self, x_t: Tensor, t: Tensor, context: Context | None = None, batch: Batch | None = None
    ) -> Tensor:
        """The velocity (B, H, D)."""
        if not self.sharded:
            return self.module(x_t, t, context=context, batch=batch)
        # Under DDP, and without, Accelerate does this itself.
        with self.accelerator.autocast():
            v_t = self.module(x_t, t, context=context, batch=batch)
        return v_t.float()

    def prepare(self, optimizer: Optimizer, scheduler: LRScheduler) -> tuple[Optimizer, LRScheduler]:
        """The optimiser and the schedule as the loop is to step them."""
        if self.sharded:
            # Accelerate's FSDP2 shards the module itself, and all of it.
            return optimizer, scheduler
        return self.accelerator.prepare(optimizer, scheduler)

    def part(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around one micro-batch: gradients are exchanged in the last of a step alone."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.module)

    def clip(self, max_norm: float) -> float:
        """Scales the gradients down to `max_norm`; returns the norm that they had, over all processes."""
        norm = self.accelerator.clip_grad_norm_(list(self.trainable.values()), max_norm)
        return float(whole(norm))


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together again, in every process; all have to call it. Others stay as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """What of a whole tensor this process holds where `like` is sharded; the tensor itself where it is not."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    # Every process has read the whole: nothing needs to be sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_state(optimizer: Optimizer) -> dict[str, object]:
    """An optimiser's `state_dict()` with whole tensors; all processes have to call it."""
    saved = optimizer.state_dict()
    state = {
        index: {key: whole(value) if isinstance(value, Tensor) else value for key, value in values.items()}
        for index, values in saved["state"].items()
    }
    return {**saved, "state": state}


@torch.no_grad()
def shard_state(optimizer: Optimizer) -> None:
    """Shards what of an optimiser's state belongs to sharded parameters, after whole tensors were loaded."""
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = part_of(value, parameter)


def fsdp_is_asked_for() -> bool:
    """Whether the launcher's config says FSDP; `Wrapped` sees to it that it is then on."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1", "yes")


def _check_launch(student: FlowPolicy, accumulation: int, fsdp: bool, processes: int) -> None:
    given = os.environ.get
    asked, local = given("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ""), given("LOCAL_WORLD_SIZE", "1")
    if asked.isdigit() and int(asked) not in (1, accumulation):
        raise UserError(
            f"accelerate launch sets gradient_accumulation_steps={asked}, chordflow {accumulation}; give "
            f"chordflow --gradient_accumulation_steps={asked}."
        )
    if processes > 1 and student.device.type == "cuda":
        gpus = torch.cuda.device_count()
        if local.isdigit() and int(local) > gpus:
            raise UserError(
                f"{local} processes were started on a machine with {gpus} GPUs; start one for each, or give "
                "--device=cpu."
            )
        if student.device.index != torch.cuda.current_device():
            raise UserError(
                f"device={student.device}: each of the {processes} processes has a GPU of its own; give --device=cuda."
            )
    if not fsdp:
        return
    version, mixed = given("FSDP_VERSION", "1"), given("ACCELERATE_MIXED_PRECISION", "no").lower()
    if version != "2":
        raise UserError(
            f"fsdp_version={version}: only FSDP2 is supported; set fsdp_version: 2 in the config of accelerate launch."
        )
    if processes == 1:
        raise UserError(
            "FSDP2 is requested, but there is one process, with nothing to share; start at least two, or switch it "
            "off (accelerate launch with distributed_type: NO)."
        )
    if given("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise UserError("fsdp_offload_params=true: parameters stay on their device; set it to false.")
    if mixed not in ("no", "bf16"):
        raise UserError(f"mixed_precision={mixed}: with FSDP2 choose no or bf16.")
