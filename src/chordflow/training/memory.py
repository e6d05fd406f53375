"""What to lower, and to what, when memory runs out."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from chordflow.couplings import CouplingBuffer
from chordflow.couplings.device_memory import total_memory
from chordflow.couplings.making import BlockMaker
from chordflow.errors import UserError, ran_out_of_memory
from chordflow.training.optimizers import OptimizerConfig, SOAPConfig


def as_options(settings: Mapping[str, int]) -> str:
    """Settings as they are typed."""
    return " ".join(f"--{name}={value}" for name, value in settings.items())


@contextlib.contextmanager
def enough_memory(
    buffer: CouplingBuffer, show: Callable[[Mapping[str, int]], str] = as_options
) -> Iterator[None]:
    """Around the making of couplings and the training on them.

    Args:
        buffer: of the couplings.
        show: writes settings of `chordflow reflow` as the verb at hand takes them.

    Raises:
        UserError: where memory runs out, with the option to lower and its new value.
    """
    with _told(buffer.teacher.device, lambda error: _advice(buffer, error, show)):
        yield


@contextlib.contextmanager
def enough_memory_to_step(
    config: OptimizerConfig, parameters: Iterable[Tensor], device: torch.device
) -> Iterator[None]:
    """Around what an optimiser does with gradients.

    Args:
        config: of the optimiser.
        parameters: that it steps.
        device: where they are.

    Raises:
        UserError: where memory runs out, with what takes less.
    """

    def advice(_: Exception) -> tuple[str, str]:
        name = config.get_choice_name(type(config))
        less = "train less with --student.train, or use a larger device"
        if isinstance(config, SOAPConfig):
            sides = [side for p in parameters for side in p.shape if side <= config.max_precondition_dim]
            largest = max(sides, default=1)
            lower = {"optimizer.max_precondition_dim": largest // 2} if largest > 1 else {}
            less = f"give {as_options(lower)}{' or ' if lower else ''}--optimizer.type=adamw"
        return f"for the state of the optimiser {name}", less

    with _told(device, advice):
        yield


@contextlib.contextmanager
def enough_memory_at(option: str, size: int, doing: str, device: torch.device) -> Iterator[None]:
    """Around work whose memory follows a single setting.

    Args:
        option: its name.
        size: its value.
        doing: what is done to that many things, such as "noises were measured".
        device: where.

    Raises:
        UserError: where memory runs out, with half the value.
    """
    with _told(device, lambda _: (f"while {size} {doing} at a time", _halved(option, size))):
        yield


@contextlib.contextmanager
def enough_memory_to_make(maker: BlockMaker, finished: Callable[[], int]) -> Iterator[None]:
    """Around the making of blocks for a store.

    Args:
        maker: of the blocks.
        finished: counts those that the store has: of such a store neither size can change.

    Raises:
        UserError: where memory runs out, with the option to lower and its new value.
    """

    def advice(error: Exception) -> tuple[str, str]:
        where = _frames(error)
        if "endpoints" in where:
            option, size, doing = "batch_size", maker.batch_size, "couplings were solved by the teacher"
        else:
            option, size, doing = _of_block(where, maker)
        what = _halved(option, size)
        if size > 1 and finished():
            what += " for a new store in another --output_dir: the blocks of one store are all of one kind"
        return f"while {size} {doing} at a time", what

    with _told(maker.teacher.device, advice):
        yield


def _of_block(where: set[str], maker: BlockMaker) -> tuple[str, int, str]:
    """The size of a block that memory runs out for outside the solver: option, value and what is done to that many."""
    noises = maker.config.noises_per_observation
    if "stream" in where:
        return "buffer.block_size", maker.block_size, "observations were read"
    if "encode" in where:
        return "buffer.block_size", maker.block_size, "observations were encoded"
    if noises > maker.block_size:
        return "buffer.noises_per_observation", noises, "noises of every observation were made"
    return "buffer.block_size", maker.block_size, "observations got their noises"


def _halved(option: str, size: int) -> str:
    return f"give {as_options({option: size // 2})}" if size > 1 else "use a larger device"


@contextlib.contextmanager
def _told(device: torch.device, advice: Callable[[Exception], tuple[str, str]]) -> Iterator[None]:
    """Makes one sentence of an error of memory that runs out.

    Args:
        device: whose memory it is.
        advice: gives for the error what was being done, and what to do.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        doing, what = advice(error)
        raise UserError(f"out of memory on {device} {doing}; {what}.") from error


def _frames(error: BaseException) -> set[str]:
    """Names of the functions that an error came through."""
    return {frame.name for frame in traceback.extract_tb(error.__traceback__)}


def _advice(
    buffer: CouplingBuffer, error: BaseException, show: Callable[[Mapping[str, int]], str]
) -> tuple[str, str]:
    """What was being done, and what to do."""
    device, stored = buffer.teacher.device, buffer.maker.source is not None
    total = total_memory(device)
    # What the buffer holds once it is full.
    held = buffer.num_bytes * buffer.num_blocks / buffer.share.count / max(buffer.num_resident, 1)
    where = _frames(error)
    solving, encoding = "endpoints" in where, "encode" in where and "velocity" not in where
    if held > total / 2:
        doing = f"with {held / 2**30:.1f} of {total / 2**30:.1f} GiB on {device} for the buffer"
        return doing, _less_held(buffer, show)
    if encoding and not solving and buffer.maker.student_context and buffer.block_size > 1:
        doing, lower = (
            f"while {buffer.block_size} observations were encoded at a time",
            buffer.block_size // 2,
        )
        if stored:
            # A store cannot be read in other blocks than it was made in.
            return doing, f"train from a store made with --buffer.block_size={lower}, or use a larger device"
        return doing, f"give {show({'buffer.block_size': lower})}"
    if "make" in where and not solving and not encoding and not stored:
        option, size, what = _of_block(where, buffer.maker)
        noises = (
            size // 2 if option == "buffer.noises_per_observation" else buffer.config.noises_per_observation
        )
        if size > 1 and _fits(buffer, buffer.config.num_observations, noises):
            return f"while {size} {what} at a time", f"give {show({option: size // 2})}"
    if buffer.batch_size > 1:
        verb = "solved by the teacher" if solving else "trained on"
        same = {"batch_size": buffer.batch_size // 2, "gradient_accumulation_steps": buffer.parts * 2}
        return (
            f"while {buffer.batch_size} couplings were {verb} at a time",
            f"give {show(same)}, which trains the same",
        )
    return "with a single coupling at a time", f"{_less_held(buffer, show)}, or use a larger device"


def _less_held(buffer: CouplingBuffer, show: Callable[[Mapping[str, int]], str]) -> str:
    """What makes the buffer smaller and leaves it large enough for a step."""
    config, size = buffer.config, buffer.block_size
    stored = buffer.maker.source is not None
    fewer = buffer.num_blocks // 2 * size if stored else config.num_observations // 2
    ways = {}
    if not stored and _fits(buffer, config.num_observations, config.noises_per_observation // 2):
        ways["buffer.noises_per_observation"] = config.noises_per_observation // 2
    if _fits(buffer, fewer, config.noises_per_observation):
        ways["buffer.num_observations"] = fewer
    if not ways:
        return f"make a step smaller, which draws {buffer.step_size} couplings"
    largest = "noises_per_observation" if buffer.coupling_bytes > buffer.num_bytes / 2 else "num_observations"
    name = f"buffer.{largest}" if f"buffer.{largest}" in ways else next(iter(ways))
    return f"give {show({name: ways[name]})}"


def _fits(buffer: CouplingBuffer, num_observations: int, noises: int) -> bool:
    """Whether a buffer of other sizes has couplings for a step, and blocks for all processes."""
    if min(num_observations, noises) < 1:
        return False
    stored = buffer.maker.source is not None
    size = buffer.block_size if stored else min(buffer.config.block_size, num_observations)
    blocks = -(-num_observations // size)
    return buffer.has_a_step(blocks, size * noises)
