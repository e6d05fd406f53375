"""The student's module as the loop calls it: by itself, under DDP, or sharded by FSDP2.

DDP and FSDP2 exchange gradients in hooks of the one module that they wrap, and only where its `forward` is
called: that is `VelocityModule`, and nothing inside it is wrapped. What is frozen is left out of both, so the
teacher and the student of a process still share it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from chordflow.errors import UserError
from chordflow.policies import Context, FlowPolicy, VelocityModule
from chordflow.policies.base import Batch
from chordflow.training.distributed import current


class Wrapped:
    """The student's velocity, with its gradients exchanged between processes.

    Called as a `VelocityModule` is.

    Args:
        student: with only `trainable` requiring gradients.
        trainable: float32 parameters by name.
        accumulation: micro-batches a step, for checking the launcher's settings.

    Attributes:
        processes: that train together.
        trainable: the parameters that the optimiser is to have; where they are sharded, other objects than
            before.
        sharded: whether FSDP2 holds them.

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
        module = VelocityModule(student)
        frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        if self.sharded:
            ignored = {parameter for name, parameter in module.named_parameters() if name in frozen}
            fully_shard(module, ignored_params=ignored)
            self.module: nn.Module = module
        else:
            ignored_names = [*frozen, *(name for name, _ in module.named_buffers())]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored_names)
            self.module = self.accelerator.prepare(module)
        self.trainable = {
            name: parameter for name, parameter in student.module.named_parameters() if name in trainable
        }
        _check_wrapped(self)

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
        prepared: tuple[Optimizer, LRScheduler] = self.accelerator.prepare(optimizer, scheduler)
        return prepared

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss."""
        self.accelerator.backward(loss)

    @contextlib.contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """Around one micro-batch: gradients are exchanged in the last of a step alone."""
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
            yield

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
            f"accelerate launch asks for gradient_accumulation_steps={asked}, chordflow for {accumulation}; give "
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
    in_config = "in the config of accelerate launch"
    if version != "2":
        raise UserError(f"fsdp_version={version}: only FSDP2 is supported; set fsdp_version: 2 {in_config}.")
    if processes == 1:
        raise UserError(
            "FSDP2 is asked for, but there is one process, with nothing to share; start at least two, or switch it "
            "off (accelerate launch with distributed_type: NO)."
        )
    if given("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise UserError(
            "fsdp_offload_params=true: parameters stay on their device; set fsdp_offload_params: false "
            f"{in_config}."
        )
    if mixed not in ("no", "bf16"):
        raise UserError(f"mixed_precision={mixed}: with FSDP2 choose no or bf16.")


def _check_wrapped(wrapped: Wrapped) -> None:
    """Makes sure that gradients will be exchanged: a student that trains alone shows an innocent-looking loss."""
    whole_ones = [name for name, p in wrapped.trainable.items() if not isinstance(p, DTensor)]
    if wrapped.sharded and whole_ones:
        raise UserError(f"FSDP2 is asked for but is not on: {_some(whole_ones)} is not sharded.")
    if not wrapped.sharded and wrapped.processes.count > 1:
        assert isinstance(wrapped.module, DistributedDataParallel)


def _some(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first} (and {len(others)} more)" if others else first
