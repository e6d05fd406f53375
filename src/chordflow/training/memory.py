"""What to lower, and to what, when memory runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from chordflow.couplings import CouplingBuffer
from chordflow.couplings.device_memory import stage_of, total_memory
from chordflow.couplings.making import BlockMaker
from chordflow.errors import UserError, ran_out_of_memory
from chordflow.training.optimizers import OptimizerConfig, SOAPConfig


@contextlib.contextmanager
def enough_memory(buffer: CouplingBuffer) -> Iterator[None]:
    """Around the making of couplings and the training on them.

    Raises:
        UserError: where memory runs out, with the option to lower and its new value.
    """
    with _told(buffer.teacher.device, lambda stage: _advice(buffer, stage)):
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

    def advice(stage: str | None) -> tuple[str, str]:
        option, size, doing = _size_of(maker, stage)
        what = _halved(option, size)
        if size > 1 and finished():
            what += " for a new store in another --output_dir: the blocks of one store are all of one kind"
        return f"while {size} {doing} at a time", what

    with _told(maker.teacher.device, advice):
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

    def advice(_: str | None) -> tuple[str, str]:
        name = config.get_choice_name(type(config))
        less = "train less with --student.train, or use a larger device"
        if isinstance(config, SOAPConfig):
            sides = [side for p in parameters for side in p.shape if side <= config.max_precondition_dim]
            half = max(sides, default=1) // 2
            less = f"give --optimizer.max_precondition_dim={half} or " if half else "give "
            less += "--optimizer.type=adamw"
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
def _told(device: torch.device, advice: Callable[[str | None], tuple[str, str]]) -> Iterator[None]:
    """Makes one sentence of an error of memory that runs out.

    Args:
        device: whose memory it is.
        advice: gives for the stage that was reached what was being done, and what to do.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        doing, what = advice(stage_of(error))
        raise UserError(f"out of memory on {device} {doing}; {what}.") from error


def _size_of(maker: BlockMaker, stage: str | None) -> tuple[str, int, str]:
    """What a stage's memory follows: an option, its value, and what is done to that many things."""
    noises = maker.config.noises_per_observation
    if stage == "solve":
        return "batch_size", maker.batch_size, "couplings were solved by the teacher"
    if stage in ("read", "encode"):
        done = {"read": "read", "encode": "encoded"}[stage]
        return "buffer.block_size", maker.block_size, f"observations were {done}"
    if noises > maker.block_size:
        return "buffer.noises_per_observation", noises, "noises of every observation were made"
    return "buffer.block_size", maker.block_size, "observations got their noises"


def _advice(buffer: CouplingBuffer, stage: str | None) -> tuple[str, str]:
    """What was being done, and what to do."""
    device, config, stored = buffer.teacher.device, buffer.config, buffer.maker.source is not None
    total = total_memory(device)
    # What the buffer holds once it is full.
    held = buffer.num_bytes * buffer.num_blocks / buffer.share.count / max(buffer.num_resident, 1)
    if held > total / 2:
        doing = f"with {held / 2**30:.1f} of {total / 2**30:.1f} GiB on {device} for the buffer"
        return doing, _less_held(buffer)
    if stage in ("read", "encode", "make"):
        option, size, what = _size_of(buffer.maker, stage)
        doing = f"while {size} {what} at a time"
        if size > 1 and stored:
            # A store cannot be read in other blocks than it was made in.
            return doing, f"train from a store made with --{option}={size // 2}, or use a larger device"
        fewer = option == "buffer.block_size" or _fits(buffer, config.num_observations, size // 2)
        if size > 1 and fewer:
            return doing, _halved(option, size)
    if buffer.batch_size > 1:
        verb = "solved by the teacher" if stage == "solve" else "trained on"
        half = f"--batch_size={buffer.batch_size // 2} --gradient_accumulation_steps={buffer.parts * 2}"
        return (
            f"while {buffer.batch_size} couplings were {verb} at a time",
            f"give {half}, which trains the same",
        )
    return "with a single coupling at a time", f"{_less_held(buffer)}, or use a larger device"


def _halved(option: str, size: int) -> str:
    return f"give --{option}={size // 2}" if size > 1 else "use a larger device"


def _less_held(buffer: CouplingBuffer) -> str:
    """What makes the buffer smaller and leaves it large enough for a step."""
    config, stored = buffer.config, buffer.maker.source is not None
    fewer = buffer.num_blocks // 2 * buffer.block_size if stored else config.num_observations // 2
    noises = config.noises_per_observation
    ways = {}
    if not stored and _fits(buffer, config.num_observations, noises // 2):
        ways["noises_per_observation"] = noises // 2
    if _fits(buffer, fewer, noises):
        ways["num_observations"] = fewer
    if not ways:
        return f"make a step smaller, which draws {buffer.step_size} couplings"
    largest = "noises_per_observation" if buffer.coupling_bytes > buffer.num_bytes / 2 else "num_observations"
    name = largest if largest in ways else next(iter(ways))
    return f"give --buffer.{name}={ways[name]}"


def _fits(buffer: CouplingBuffer, num_observations: int, noises: int) -> bool:
    """Whether a buffer of other sizes has couplings for a step, and blocks for all processes."""
    if min(num_observations, noises) < 1:
        return False
    stored = buffer.maker.source is not None
    size = buffer.block_size if stored else min(buffer.config.block_size, num_observations)
    return buffer.has_a_step(-(-num_observations // size), size * noises)
