"""Couplings in memory: a few made before training, more of them, and others for the oldest, while it goes on.

The buffer is a window over an endless sequence of blocks. What a block holds (which observations, which
noises, hence which endpoints) is a pure function of the seed and the block's number, and which blocks are
resident is a function of the training step. So a run can resume at any step without a stored buffer.

Shapes: B couplings in a batch, H chunk size, D padded action dimension.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from math import isqrt

import torch
from torch import Tensor

from chordflow.couplings.blocks import (
    Block,
    CouplingBatch,
    Demonstrations,
    Path,
    Share,
    join,
    join_paths,
    pick,
)
from chordflow.couplings.making import BlockMaker
from chordflow.couplings.memory import ShortOfMemoryError, enough_memory, free_memory, total_memory
from chordflow.couplings.observations import Observations
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.threads import ALLOWED


@dataclass(frozen=True)
class Window:
    """The resident blocks as a function of the training step alone, so that a run can resume at any step.

    Every step draws its couplings evenly from those that are resident. Each time that a resident coupling has been
    drawn `uses / num_blocks` times on average, a block is added; once there are `num_blocks`, the oldest one leaves
    for it. So every coupling of a block that was added is drawn `uses` times on average before it leaves, and the
    first ones, which are all there from the beginning, at most so often. While the window is small a draw weighs
    more, so that it grows fast at first: with w blocks, one is added every `per_block * uses * w / num_blocks` draws.

    Attributes:
        num_blocks: of the whole window.
        start_blocks: at the first step; at most `num_blocks`.
        per_block: couplings of a block.
        step_size: couplings that a step draws.
        uses: of a coupling, on average; None keeps the first blocks, which are then all there from the beginning.
    """

    num_blocks: int
    start_blocks: int
    per_block: int
    step_size: int
    uses: int | None

    def held(self, step: int) -> range:
        """Numbers of the blocks that are resident at a training step (0, 1, ...), oldest first."""
        if self.uses is None:
            return range(self.num_blocks)
        # In whole numbers, so that no rounding depends on the machine: in units of 2 * num_blocks draws, growth
        # from a to b blocks takes `unit` times the sum of 2 w for w from a to b - 1, which is b (b - 1) - a (a - 1).
        unit = self.per_block * self.uses
        drawn = 2 * self.num_blocks * step * self.step_size
        begun = self.start_blocks * (self.start_blocks - 1)
        whole = self.num_blocks * (self.num_blocks - 1)
        if drawn < unit * (whole - begun):
            return range((1 + isqrt(1 + 4 * (drawn // unit + begun))) // 2)
        first = (drawn - unit * (whole - begun)) // (2 * self.num_blocks * unit)
        return range(first, first + self.num_blocks)


@dataclass(eq=False)
class CouplingBuffer(BlockMaker):
    """Makes the blocks that a training step draws from, and keeps them as long as they are needed.

    Attributes:
        parts: forward passes of `batch_size` couplings that this process makes in a training step.
        share: which of the blocks are this process's. Each process draws as many couplings as the others, from its
            own blocks.

    Raises:
        UserError: for a step or processes that the buffer is too small for, for couplings that do not fit into memory,
            or a store that lacks what is needed.
    """

    _: KW_ONLY
    parts: int = 1
    share: Share = field(default_factory=Share)

    def __post_init__(self) -> None:
        super().__post_init__()
        config, processes = self.config, self.share.count
        self._blocks: dict[int, Block] = {}
        # A network that trains in one thread leaves the others to the next block. What a collection observes, and what
        # a context that is not kept is made of, is not to be had beforehand, or not in another thread.
        self._overlaps = (
            self.small and ALLOWED > 1 and self.student_context and type(self.observations) is Observations
        )
        self._ahead: tuple[int, Future[Block]] | None = None
        self._pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(ALLOWED,))
        self.num_blocks = -(-config.num_observations // self.block_size)
        if processes > self.num_blocks:
            raise UserError(
                f"buffer.num_observations={config.num_observations} makes {self.num_blocks} blocks of "
                f"{self.block_size}, fewer than the {processes} processes; raise it, or lower buffer.block_size."
            )
        if not self._has_a_step(self.num_blocks):
            each = "" if processes == 1 else " of each process"
            drawn = self.batch_size * self.parts
            whole = "" if self.parts == 1 else f" makes a step of {drawn} couplings{each}, which"
            raise UserError(
                f"batch_size={self.batch_size}{whole} is larger than the buffer's "
                f"{self.num_blocks // processes * self.per_block} couplings{each}; raise "
                "buffer.num_observations or buffer.noises_per_observation."
            )
        if self.source is not None and self.num_blocks > self.source.num_blocks:
            raise UserError(
                f"buffer.num_observations={config.num_observations}: the store holds "
                f"{self.source.num_blocks * self.block_size}; give at most that many, or make a larger store."
            )
        # Without fewer blocks than these there is no step: in each process those of the couplings that it draws.
        self._least_blocks = -(-self.batch_size * self.parts // self.per_block) * processes
        start = max(-(-config.start_observations // self.block_size), self._least_blocks)
        self.window = Window(
            num_blocks=self.num_blocks,
            start_blocks=min(start, self.num_blocks),
            per_block=self.per_block,
            step_size=self.step_size,
            uses=config.uses_per_coupling,
        )
        # Before any of it is listed, let alone made. What is encoded comes on top.
        self._check_fits(self.least_bytes, self.least_bytes, there=0)

    @property
    def step_size(self) -> int:
        """Couplings that a training step draws, those of all processes and parts together."""
        return self.batch_size * self.parts * self.share.count

    @property
    def num_bytes(self) -> int:
        """Memory of this process's resident couplings and contexts, in bytes."""
        return sum(block.num_bytes for block in self._blocks.values())

    def made_blocks(self, step: int) -> int:
        """Blocks that all processes together have made for the steps up to `step`."""
        return self.window.held(step).stop

    def held_blocks(self, step: int) -> list[int]:
        """The blocks that this process holds at a training step, oldest first."""
        return [block for block in self.window.held(step) if block % self.share.count == self.share.index]

    def fill(self, step: int, last: int = 0) -> Iterator[int]:
        """Makes this process's blocks for `step` that are not in memory; yields after each one how many are.

        The block after them is begun in the background where a step up to `last` needs it and this costs training
        nothing, until `wait`.

        Raises:
            UserError: if the buffer would not fit into memory.
        """
        wanted = self.held_blocks(step)
        missing = [block for block in wanted if block not in self._blocks]
        for block in [block for block in self._blocks if block not in wanted]:
            del self._blocks[block]
        for number, made in zip(missing, self._made(missing), strict=True):
            self._blocks[number] = made
            if len(self._blocks) == 1:
                self._check_fits(made.num_bytes, made.coupling_bytes, there=made.num_bytes)
            yield len(self._blocks)
        follows = wanted[-1] + self.share.count
        if self._overlaps and self._ahead is None and follows < self.window.held(last).stop:
            self._ahead = follows, self._pool.submit(lambda: next(self.make([follows])))

    def wait(self) -> None:
        """Waits until nothing is made in the background; a block that is not needed is dropped, its errors too."""
        if self._ahead is not None:
            self._ahead[1].exception()
            self._ahead = None

    def _made(self, numbers: list[int]) -> Iterator[Block]:
        if numbers and self._ahead is not None and self._ahead[0] == numbers[0]:
            made, self._ahead, numbers = self._ahead[1].result(), None, numbers[1:]
            yield made
        if numbers:
            self.wait()
            yield from self.make(numbers)

    def batch(self, step: int, part: int = 0) -> CouplingBatch:
        """The couplings of this process in part `part` of step `step`; the buffer must be filled for it."""
        held = self.window.held(step)
        first = held.start
        drawn = torch.randperm(len(held) * self.per_block, generator=generator(self.seed, "batch", step))
        own = drawn[(drawn // self.per_block + first) % self.share.count == self.share.index]
        chosen = own[: self.batch_size * self.parts].sort().values.split(self.batch_size)[part]
        before = (self.share.index * self.parts + part) * self.batch_size
        of_step = torch.arange(before, before + self.batch_size)
        blocks, rows = chosen // self.per_block + first, chosen % self.per_block
        parts = [(self._blocks[number], rows[blocks == number]) for number in blocks.unique().tolist()]
        contexts = [b.context.index(b.observation[r]) for b, r in parts if b.context is not None]
        items = [pick(b.items, b.observation[r]) for b, r in parts if b.items is not None]
        noise = [b.noise[r] for b, r in parts if b.noise is not None]
        endpoint = [b.endpoint[r] for b, r in parts if b.endpoint is not None]
        shown = self._demonstrations(parts, of_step, step) if self.needs.actions else None
        if shown is not None and not noise:
            noise, endpoint = [shown.noise], [shown.noise[:0]]
        device = self.teacher.device
        real = torch.zeros(self.teacher.chunk.shape, dtype=torch.bool, device=device)
        self.teacher.chunk.real(real)[:] = True
        return CouplingBatch(
            noise=torch.cat(noise).to(device),
            endpoint=torch.cat(endpoint).to(device),
            context=type(contexts[0]).concatenate(contexts).to(device) if contexts else None,
            # Processed anew each time: only raw observations can be picked and joined for every family.
            batch=self.teacher.preprocess(join(items)) if items else None,
            rows=of_step if len(of_step) < self.step_size else None,
            total=self.step_size,
            weight=len(of_step) / self.step_size,
            demonstrations=shown,
            path=join_paths([Path(b.path.states[r], b.path.times) for b, r in parts if b.path is not None]),
            real=real,
        )

    def _demonstrations(
        self, parts: list[tuple[Block, Tensor]], of_step: Tensor, step: int
    ) -> Demonstrations:
        """The actions of the chosen rows of blocks, and noise that no other step repeats."""
        kept = [(b.actions, b.observation[r]) for b, r in parts if b.actions is not None]
        actions, valid = (torch.cat([both[i][rows] for both, rows in kept]) for i in (0, 1))
        noise = self.teacher.sample_noise(self.step_size, generator(self.seed, "independent noise", step))
        return Demonstrations(noise[of_step].to(actions.device), actions, valid)

    def _has_a_step(self, blocks: int) -> bool:
        """Whether every process has the couplings of a step in a buffer of so many blocks."""
        return self.batch_size * self.parts <= blocks // self.share.count * self.per_block

    def _check_fits(self, block: int, couplings: int, *, there: int) -> None:
        """Raises UserError if the whole window would not fit into memory, of which blocks `there` take some already.

        A block takes `block` bytes, of which `couplings` for noises and endpoints.
        """
        count = -(-self.num_blocks // self.share.count) + self._overlaps
        free = free_memory(self.teacher.device)
        # What is there already takes none of what is free.
        room = 0.9 * free + there
        if block * count <= room:
            return
        fit = int(room // block) * self.share.count
        if fit >= self._least_blocks:
            advice = f"--buffer.num_observations={fit * self.block_size}"
        else:
            advice = f"a lower --batch_size (a step draws {self.step_size} couplings) or use a larger device"
        raise UserError(
            f"buffer.num_observations={self.config.num_observations} takes {block * count / 2**30:.1f} GiB "
            f"({block / self.block_size / 2**20:.2f} MB an observation, {couplings / block:.0%} of it "
            f"{self.config.noises_per_observation} noises with their endpoints), but {free / 2**30:.1f} GiB are free "
            f"on {self.teacher.device}; give {advice}."
        )

    def enough_memory(self) -> contextlib.AbstractContextManager[None]:
        """Context of making couplings and training on them: out of memory, a UserError names what to lower."""
        return enough_memory(self.teacher.device, self._advice)

    def _advice(self, short: ShortOfMemoryError | None) -> str:
        """What was being done when memory ran out, and what to do."""
        total = total_memory(self.teacher.device)
        # What the buffer holds once it is full.
        held = self.num_bytes * self.num_blocks / self.share.count / max(len(self._blocks), 1)
        if held > total / 2:
            share = f"{held / 2**30:.1f} of {total / 2**30:.1f} GiB on {self.teacher.device}"
            return f"with {share} for the buffer; {self._less_held()}"
        if short is not None and short.option != "batch_size" and short.size > 1:
            if self.source is None:
                return str(short)
            # A store cannot be read in other blocks than it was made in.
            half = f"--{short.option}={short.size // 2}"
            return f"in a block of a store; train from a store made with {half}, or use a larger device"
        if self.batch_size == 1:
            return f"with a single coupling at a time; {self._less_held()}, or use a larger device"
        doing = "couplings were trained on"
        if short is not None and short.option == "batch_size":
            doing = short.doing
        half = f"--batch_size={self.batch_size // 2} --gradient_accumulation_steps={self.parts * 2}"
        return f"while {self.batch_size} {doing} at a time; give {half}, which trains the same"

    def _less_held(self) -> str:
        """What makes the buffer smaller and leaves it large enough for a step."""
        fewer = self.num_blocks // 2
        if self._has_a_step(fewer):
            return f"give --buffer.num_observations={fewer * self.block_size}"
        return f"make a step smaller, which draws {self.step_size} couplings"
