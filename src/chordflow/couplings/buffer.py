"""Couplings in memory: a few made before training, more of them, and others for the oldest, while it goes on.

The buffer is a window over an endless sequence of blocks. What a block holds (which observations, which
noises, hence which endpoints) is a pure function of the seed and the block's number, and which blocks are
resident is a function of the training step. So a run can resume at any step without a stored buffer.

Shapes: B couplings in a batch, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from chordflow.couplings.blocks import (
    Block,
    BlockSource,
    CouplingBatch,
    Demonstrations,
    Needs,
    Share,
    join,
    join_paths,
    pick,
)
from chordflow.couplings.buffer_config import BufferConfig
from chordflow.couplings.device_memory import free_memory
from chordflow.couplings.generate import CouplingConfig, Path
from chordflow.couplings.making import BlockMaker
from chordflow.couplings.observations import Observations
from chordflow.couplings.order import Window
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import Context, FlowPolicy


class CouplingBuffer:
    """Couplings of one teacher on one set of observations.

    Args:
        teacher: the frozen teacher.
        observations: what it looks at.
        coupling: how its ODE is solved.
        config: how much is kept.
        seed: of the run.
        batch_size: couplings that this process looks at in one go.
        parts: how often it does so in a training step.
        share: which of the blocks are this process's. Each process draws as many couplings as the others, from its
            own blocks.
        num_workers: processes that read observations ahead.
        student_encode: how the student encodes where it does not share the teacher's prefix; None where it
            does. It is called once per observation.
        student_context: whether the student's context can be kept at all; false where its prefix trains, so
            that it must encode at every step.
        source: blocks that were made earlier; the teacher's ODE is then not solved. Past its last block the
            buffer begins again with the first.
        needs: what the batches have to hold; by default couplings alone.

    Raises:
        UserError: for a step or processes that the buffer is too small for, for couplings that do not fit into memory,
            or a store that lacks what is needed.
    """

    def __init__(
        self,
        teacher: FlowPolicy,
        observations: Observations,
        coupling: CouplingConfig,
        config: BufferConfig,
        *,
        seed: int,
        batch_size: int,
        parts: int = 1,
        share: Share | None = None,
        num_workers: int = 0,
        student_encode: Callable[[dict[str, Any]], Context] | None = None,
        student_context: bool = True,
        source: BlockSource | None = None,
        needs: Needs | None = None,
    ) -> None:
        self.config = config
        self.seed = seed
        self.batch_size = batch_size
        self.parts = parts
        self.share = share or Share()
        self.maker = BlockMaker(
            teacher,
            observations,
            coupling,
            config,
            seed=seed,
            batch_size=batch_size,
            num_workers=num_workers,
            student_encode=student_encode,
            student_context=student_context,
            source=source,
            needs=needs,
        )
        self.teacher = teacher
        self.needs = self.maker.needs
        self.block_size = self.maker.block_size
        self.per_block = self.maker.per_block
        self.num_blocks = -(-config.num_observations // self.block_size)
        if self.share.count > self.num_blocks:
            raise UserError(
                f"buffer.num_observations={config.num_observations} makes {self.num_blocks} blocks of "
                f"{self.block_size}, fewer than the {self.share.count} processes; raise it, or lower "
                "buffer.block_size."
            )
        if not self.has_a_step(self.num_blocks, self.per_block):
            each = "" if self.share.count == 1 else " of each process"
            whole = "" if parts == 1 else f" makes a step of {batch_size * parts} couplings{each}, which"
            raise UserError(
                f"batch_size={batch_size}{whole} is larger than the buffer's "
                f"{self.num_blocks // self.share.count * self.per_block} couplings{each}; raise "
                "buffer.num_observations or buffer.noises_per_observation."
            )
        if source is not None and self.num_blocks > source.num_blocks:
            raise UserError(
                f"buffer.num_observations={config.num_observations}: the store holds "
                f"{source.num_blocks * self.block_size}; give at most that many, or make a larger store."
            )
        start = max(-(-config.start_observations // self.block_size), self.least_blocks)
        self.window = Window(
            num_blocks=self.num_blocks,
            start_blocks=min(start, self.num_blocks),
            per_block=self.per_block,
            step_size=self.step_size,
            uses=config.uses_per_coupling,
        )
        self._blocks: dict[int, Block] = {}
        # Before any of it is listed, let alone made. What is encoded comes on top.
        size = self.maker.coupling_bytes
        self._check_memory(size, size, there=0)

    @property
    def num_couplings(self) -> int:
        """Couplings in a full buffer, those of all processes together."""
        return self.num_blocks * self.per_block

    @property
    def step_size(self) -> int:
        """Couplings that a training step draws, those of all processes and parts together."""
        return self.batch_size * self.parts * self.share.count

    @property
    def least_blocks(self) -> int:
        """Blocks without which there is no step: in each process those of the couplings that it draws."""
        return -(-self.batch_size * self.parts // self.per_block) * self.share.count

    def has_a_step(self, blocks: int, per_block: int) -> bool:
        """Whether every process has the couplings of a step in a buffer of so many blocks of that size."""
        return self.batch_size * self.parts <= blocks // self.share.count * per_block

    @property
    def num_resident(self) -> int:
        """Blocks that this process has in memory."""
        return len(self._blocks)

    @property
    def num_bytes(self) -> int:
        """Memory of this process's resident couplings and contexts, in bytes."""
        return sum(block.num_bytes for block in self._blocks.values())

    @property
    def coupling_bytes(self) -> int:
        """What noises and endpoints take of it; the rest are observations."""
        return sum(block.coupling_bytes for block in self._blocks.values())

    def first_block(self, step: int) -> int:
        """Number of the oldest block that is resident at a training step (0, 1, ...)."""
        return self.window.held(step).start

    def made_blocks(self, step: int) -> int:
        """Blocks that all processes together have made for the steps up to `step`."""
        return self.window.held(step).stop

    def held_blocks(self, step: int) -> list[int]:
        """The blocks that this process holds at a training step, oldest first."""
        return [block for block in self.window.held(step) if self.share.holds(block)]

    def fill(self, step: int) -> Iterator[int]:
        """Makes this process's blocks for `step` that are not in memory; yields after each one.

        Yields:
            The number of blocks that are in memory.

        Raises:
            UserError: if the buffer would not fit into memory.
        """
        wanted = self.held_blocks(step)
        missing = [block for block in wanted if block not in self._blocks]
        if not missing:
            return
        for block in [block for block in self._blocks if block not in wanted]:
            del self._blocks[block]
        for number, made in zip(missing, self.maker.make(missing), strict=True):
            self._blocks[number] = made
            if len(self._blocks) == 1:
                self._check_memory(made.num_bytes, made.coupling_bytes, there=made.num_bytes)
            yield len(self._blocks)

    def batch(self, step: int, part: int = 0) -> CouplingBatch:
        """What this process looks at in part `part` of step `step`; the buffer must be filled for it."""
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
            real=self._real(),
        )

    def _demonstrations(
        self, parts: list[tuple[Block, Tensor]], of_step: Tensor, step: int
    ) -> Demonstrations:
        """The actions of the chosen rows of blocks, and noise that no other step repeats."""
        kept = [(b.actions, b.observation[r]) for b, r in parts if b.actions is not None]
        actions, valid = (torch.cat([both[i][rows] for both, rows in kept]) for i in (0, 1))
        noise = self.teacher.sample_noise(self.step_size, generator(self.seed, "independent noise", step))
        return Demonstrations(noise[of_step].to(actions.device), actions, valid)

    def _real(self) -> Tensor:
        real = torch.zeros(self.teacher.chunk.shape, dtype=torch.bool, device=self.teacher.device)
        self.teacher.chunk.real(real)[:] = True
        return real

    def _check_memory(self, block: int, couplings: int, *, there: int) -> None:
        """Looks ahead to the whole window.

        Args:
            block: bytes that a block takes.
            couplings: bytes of it that noises and endpoints take.
            there: bytes that blocks take already.

        Raises:
            UserError: if the window would not fit into memory.
        """
        count = -(-self.num_blocks // self.share.count)
        device = self.teacher.device
        free = free_memory(device)
        # What is there already takes none of what is free.
        room = 0.9 * free + there
        if block * count <= room:
            return
        config = self.config
        fit = int(room // block) * self.share.count
        advice = []
        if fit >= self.least_blocks:
            advice.append(f"--buffer.num_observations={fit * self.block_size}")
        left = room / count - (block - couplings)
        noises = int(config.noises_per_observation * left // max(couplings, 1))
        # How many noises a stored observation has, its store has settled.
        free_to_choose = self.maker.source is None
        if free_to_choose and noises >= 1 and self.has_a_step(self.num_blocks, self.block_size * noises):
            advice.append(f"--buffer.noises_per_observation={noises}")
        each = block / self.block_size
        raise UserError(
            f"buffer.num_observations={config.num_observations} takes {block * count / 2**30:.1f} GiB "
            f"({each / 2**20:.2f} MB an observation, {couplings / block:.0%} of it "
            f"{config.noises_per_observation} noises with their endpoints), but {free / 2**30:.1f} GiB are free on "
            f"{device}; give "
            + (
                " or ".join(advice)
                or f"a lower --batch_size (a step draws {self.step_size} couplings) or use a larger device"
            )
            + "."
        )
