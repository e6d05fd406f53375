"""What to lower, and to what, when memory runs out."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import psutil
import torch

from chordflow.couplings import CouplingBuffer
from chordflow.errors import UserError


@contextlib.contextmanager
def enough_memory(buffer: CouplingBuffer) -> Iterator[None]:
    """Around the making of couplings and the training on them.

    Raises:
        UserError: where memory runs out, with the option to lower and its new value.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(_advice(buffer, error)) from error


def _advice(buffer: CouplingBuffer, error: BaseException) -> str:
    config, device = buffer.config, buffer.teacher.device
    total = (
        torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else psutil.virtual_memory().total
    )
    # What the buffer holds once it is full.
    held = buffer.num_bytes * buffer.num_blocks / buffer.share.count / max(buffer.num_resident, 1)
    where = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    solving, encoding = "endpoints" in where, "encode" in where and "velocity" not in where
    if held > total / 2:
        doing = f"with {held / 2**30:.1f} of {total / 2**30:.1f} GiB on {device} for the buffer"
        if buffer.coupling_bytes > buffer.num_bytes / 2 and config.noises_per_observation > 1:
            what = f"--buffer.noises_per_observation={config.noises_per_observation // 2}"
        else:
            what = f"--buffer.num_observations={max(1, config.num_observations // 2)}"
    elif encoding and not solving and buffer.maker.student_context and buffer.block_size > 1:
        doing = f"while {buffer.block_size} observations were encoded at a time"
        what = f"--buffer.block_size={buffer.block_size // 2}"
    elif buffer.batch_size > 1:
        verb = "solved by the teacher" if solving else "trained on"
        doing = f"while {buffer.batch_size} couplings were {verb} at a time"
        what = (
            f"--batch_size={buffer.batch_size // 2} --gradient_accumulation_steps={buffer.parts * 2}, which trains "
            "the same"
        )
    else:
        doing = "with a single coupling at a time"
        what = f"--buffer.num_observations={max(1, config.num_observations // 2)}, or use a larger device"
    return f"out of memory on {device} {doing}; give {what}."
