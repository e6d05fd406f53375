"""Checkpoints in LeRobot's layout, whole at any moment.

checkpoints/000500/pretrained_model/   the student, loadable by stock LeRobot
checkpoints/000500/training_state/     what resuming needs: safetensors and JSON
checkpoints/last -> 000500
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lerobot.common.train_utils import (
    get_step_identifier,
    load_training_batch_size,
    load_training_num_processes,
    load_training_state,
    load_training_step,
    save_training_state,
)
from lerobot.utils.constants import (
    CHECKPOINTS_DIR,
    LAST_CHECKPOINT_LINK,
    PRETRAINED_MODEL_DIR,
    TRAINING_STATE_DIR,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from chordflow.disk import point_link, remove_folder, whole_folder
from chordflow.errors import UserError
from chordflow.quiet import quiet_stdout
from chordflow.training.distributed import Processes, part_of, shard_state, whole, whole_state

MASTERS = "master_weights.safetensors"
EMA_WEIGHTS = "ema_weights.safetensors"
LOSSES = "losses.json"
"""Of the steps since the last line of metrics."""
TIMED = "timed"
"""A file beside the state of a checkpoint that the next one replaces."""


@dataclass
class TrainingState:
    """What changes while training, as a process has it: with FSDP2 its part of every tensor.

    Attributes:
        masters: the trained parameters by name, float32.
        ema: their moving averages by name, float32; None without EMA.
        optimizer: over `masters`.
        scheduler: of the learning rate.
    """

    masters: dict[str, nn.Parameter]
    ema: dict[str, Tensor] | None
    optimizer: Optimizer
    scheduler: LRScheduler

    @property
    def student(self) -> dict[str, Tensor]:
        """The weights that make the student: the averages where there are any."""
        return self.ema or {name: parameter.detach() for name, parameter in self.masters.items()}


def save_checkpoint(
    output_dir: Path,
    step: int,
    total_steps: int,
    state: TrainingState,
    write_student: Callable[[Path, dict[str, Tensor]], None],
    processes: Processes,
    *,
    batch_size: int,
    losses: Sequence[float] = (),
    timed: bool = False,
) -> Path:
    """Writes a checkpoint whole or not at all, and has `last` point to it; timed ones before it are then removed.

    Every one of the processes has to call this, and the first writes. What is recorded of sizes is as LeRobot does.

    Args:
        output_dir: of the run.
        step: optimiser steps done.
        total_steps: of the run, for the number of digits.
        state: what resuming needs.
        write_student: fills a `pretrained_model` folder with weights by name.
        processes: of the run.
        batch_size: of each process, micro-batches taken together.
        losses: of the steps that are in no line of metrics yet.
        timed: whether the next checkpoint replaces it.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: if it cannot be written; the checkpoints before it stand.
    """
    final = output_dir / CHECKPOINTS_DIR / get_step_identifier(step, total_steps)
    masters = {name: whole(tensor.detach()) for name, tensor in state.masters.items()}
    ema = {name: whole(tensor) for name, tensor in (state.ema or {}).items()}
    optimizer_state = whole_state(state.optimizer)
    if not processes.first:
        return final
    root, name = final.parent, final.name
    try:
        with whole_folder(final, sync=True) as temporary:
            write_student(temporary / PRETRAINED_MODEL_DIR, ema or masters)
            save_training_state(
                temporary,
                step,
                state.optimizer,
                state.scheduler,
                num_processes=processes.count,
                batch_size=batch_size,
                optim_state_dict=optimizer_state,
            )
            folder = temporary / TRAINING_STATE_DIR
            for file, tensors in ((MASTERS, masters), (EMA_WEIGHTS, ema)):
                if tensors:
                    save_file(
                        {key: value.cpu().contiguous() for key, value in tensors.items()}, folder / file
                    )
            (folder / LOSSES).write_text(json.dumps(list(losses)), encoding="utf-8")
            if timed:
                (folder / TIMED).touch()
        point_link(root / LAST_CHECKPOINT_LINK, name)
        for mark in root.glob(f"[0-9]*/{TRAINING_STATE_DIR}/{TIMED}"):
            if mark.parent.parent != final:
                remove_folder(mark.parent.parent)
    except BaseException as error:
        last = root / LAST_CHECKPOINT_LINK
        if not last.exists():
            # The first one of a run, to which `last` could not be pointed: nothing leads there.
            shutil.rmtree(final, ignore_errors=True)
        # A full disk is a SafetensorError to safetensors and a RuntimeError to torch.
        if not isinstance(error, OSError | RuntimeError | SafetensorError):
            raise
        raise UserError(
            f"output_dir={output_dir}: checkpoint {name} cannot be written ({error}); "
            f"{last_good(last.resolve() if last.exists() else None)}; make room or choose another folder."
        ) from error
    return final


def begin_from(checkpoint_dir: Path) -> None:
    """Makes a checkpoint the last one of its run, and clears away what a killed run left half-written.

    Checkpoints of later steps, if there are any, are replaced as the run comes to them.

    Raises:
        UserError: if the run's folder cannot be written to.
    """
    root = checkpoint_dir.parent
    try:
        for leftover in root.glob(".*.tmp"):
            if leftover.is_symlink():
                leftover.unlink()
            else:
                shutil.rmtree(leftover)
        if (root / LAST_CHECKPOINT_LINK).resolve() != checkpoint_dir.resolve():
            point_link(root / LAST_CHECKPOINT_LINK, checkpoint_dir.name)
    except OSError as error:
        raise UserError(
            f"config_path: the run in {root.parent} cannot be resumed there ({error}); copy it to a place that can be "
            "written to."
        ) from error


def keep(checkpoint_dir: Path) -> None:
    """Lets a checkpoint stay, whatever comes after it."""
    (checkpoint_dir / TRAINING_STATE_DIR / TIMED).unlink(missing_ok=True)


def training_step(checkpoint_dir: Path) -> int:
    """The number of optimiser steps that a checkpoint has behind it; UserError if it does not say."""
    with _resuming(checkpoint_dir):
        return int(load_training_step(checkpoint_dir / TRAINING_STATE_DIR))


def check_same_size(checkpoint_dir: Path, step_size: int, asked: str) -> None:
    """Raises UserError unless a resumed run takes steps of as many couplings as before, over all processes.

    `asked` is what makes them up, as the sentence says it.
    """
    with _resuming(checkpoint_dir):
        processes = load_training_num_processes(checkpoint_dir)
        batch = load_training_batch_size(checkpoint_dir)
    if processes is not None and batch is not None and processes * batch != step_size:
        raise UserError(
            f"{asked} make {step_size} couplings a step, but the run began with {processes * batch} ({processes} "
            f"processes of {batch}) and resuming cannot change it; keep that number, by other processes, "
            "--batch_size or --gradient_accumulation_steps."
        )


def load_checkpoint(checkpoint_dir: Path, state: TrainingState) -> tuple[int, list[float]]:
    """Puts a checkpoint's weights, optimiser, schedule and generators into `state`.

    Returns:
        The number of optimiser steps done, and the losses of those that are in no line of metrics yet.

    Raises:
        UserError: if the checkpoint is not complete or does not fit.
    """
    folder = checkpoint_dir / TRAINING_STATE_DIR
    load_weights(checkpoint_dir, state.masters)
    with _resuming(checkpoint_dir), quiet_stdout():
        if state.ema is not None:
            _copy(load_file(folder / EMA_WEIGHTS), state.ema)
        step, _, _ = load_training_state(checkpoint_dir, state.optimizer, state.scheduler)
        shard_state(state.optimizer)
        # Checkpoints of version 0.1 have none.
        kept = folder / LOSSES
        return step, json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []


def load_weights(checkpoint_dir: Path, masters: dict[str, nn.Parameter]) -> None:
    """Puts a checkpoint's trained weights alone into `masters`; UserError if they are not complete or do not fit."""
    with _resuming(checkpoint_dir):
        saved = load_file(checkpoint_dir / TRAINING_STATE_DIR / MASTERS)
        if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in masters.items()}:
            raise ValueError("other parameters were trained")
        _copy(saved, masters)


def last_good(checkpoint: Path | None) -> str:
    """The checkpoint to resume from, for messages."""
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written yet"


@torch.no_grad()
def _copy(saved: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    for name, tensor in into.items():
        tensor.copy_(part_of(saved[name], tensor))


@contextlib.contextmanager
def _resuming(checkpoint_dir: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        fault = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"config_path: the checkpoint {checkpoint_dir} cannot be resumed ({fault}); resume from another one in "
            f"{checkpoint_dir.parent}."
        ) from error
