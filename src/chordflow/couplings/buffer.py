"""Couplings in memory: filled before training, refreshed block by block while it goes on.

The buffer is a window over an endless sequence of blocks. What a block holds (which observations, which
noises, hence which endpoints) is a pure function of the seed and the block's number, and which blocks are
resident is a function of the training step. So a run can resume at any step without a stored buffer.

Shapes: B couplings in a batch, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import psutil
import torch
from torch import Tensor

from chordflow.couplings.batches import CouplingBatch, Demonstrations, Needs, Share
from chordflow.couplings.blocks import Block, BlockSource, Solved, join, join_paths, pick, seen
from chordflow.couplings.buffer_config import BufferConfig
from chordflow.couplings.generate import CouplingConfig, Path, endpoints, endpoints_and_path
from chordflow.couplings.observations import Observations
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
        batch_size: couplings that this process looks at in one go, on average.
        parts: how often it does so in a training step.
        share: which of the blocks are this process's. A step draws its couplings from the blocks of all
            processes, and each trains on those that lie in its own.
        num_workers: processes that read observations ahead.
        student_encode: how the student encodes where it does not share the teacher's prefix; None where it
            does. It is called once per observation.
        student_context: whether the student's context can be kept at all; false where its prefix trains, so
            that it must encode at every step.
        source: blocks that were made earlier; the teacher's ODE is then not solved. Past its last block the
            buffer begins again with the first.
        needs: what the batches have to hold; by default couplings alone.

    Raises:
        UserError: for a step or processes that the buffer is too small for, or a store that lacks what is needed.
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
        self.teacher = teacher
        self.observations = observations
        self.coupling = coupling
        self.config = config
        self.seed = seed
        self.batch_size = batch_size
        self.parts = parts
        self.share = share or Share()
        self.num_workers = num_workers
        self.student_encode = student_encode
        self.student_context = student_context
        self.source = source
        self.needs = needs or Needs()
        # Of what the blocks hold, as against which of their couplings a step draws.
        self.coupling_seed = seed if source is None else source.seed
        self.block_size = min(config.block_size, config.num_observations)
        self.num_blocks = -(-config.num_observations // self.block_size)
        self.per_block = self.block_size * config.noises_per_observation
        if self.step_size > self.num_couplings:
            whole = (
                "" if self.step_size == batch_size else f" makes a step of {self.step_size} couplings, which"
            )
            raise UserError(
                f"batch_size={batch_size}{whole} is larger than the buffer's {self.num_couplings} couplings; raise "
                "buffer.num_observations or buffer.noises_per_observation."
            )
        if self.share.count > self.num_blocks:
            raise UserError(
                f"buffer.num_observations={config.num_observations} makes {self.num_blocks} blocks of "
                f"{self.block_size}, fewer than the {self.share.count} processes; raise it, or lower "
                "buffer.block_size."
            )
        if source is not None and self.num_blocks > source.num_blocks:
            raise UserError(
                f"buffer.num_observations={config.num_observations}: the store holds "
                f"{source.num_blocks * self.block_size}; give at most that many, or enlarge the store."
            )
        if source is not None and (self.needs.paths or not self.needs.couplings):
            what = "trajectories, and a store holds endpoints" if self.needs.paths else "demonstrations"
            raise UserError(
                f"method.type: the method trains on {what} alone; leave the store of couplings out, or choose another "
                "method."
            )
        if self.needs.paths:
            coupling.check_points(config.path_points)
        self._blocks: dict[int, Block] = {}

    @property
    def num_couplings(self) -> int:
        """Couplings in a full buffer, those of all processes together."""
        return self.num_blocks * self.per_block

    @property
    def step_size(self) -> int:
        """Couplings that a training step draws, those of all processes and parts together."""
        return self.batch_size * self.parts * self.share.count

    @property
    def num_resident(self) -> int:
        """Blocks that this process has in memory."""
        return len(self._blocks)

    @property
    def num_bytes(self) -> int:
        """Memory of this process's resident couplings and contexts, in bytes."""
        return sum(block.num_bytes for block in self._blocks.values())

    def first_block(self, step: int) -> int:
        """Number of the oldest block that is resident at a training step (0, 1, ...)."""
        if self.config.uses_per_coupling == 0:
            return 0
        return step * self.step_size // (self.per_block * self.config.uses_per_coupling)

    def held_blocks(self, step: int) -> list[int]:
        """The blocks that this process holds at a training step, oldest first."""
        first = self.first_block(step)
        return [block for block in range(first, first + self.num_blocks) if self.share.holds(block)]

    def observation_indices(self, block: int) -> list[int]:
        """Which observations a block holds: a walk through reshuffled passes over all of them."""
        count = len(self.observations)
        indices = []
        for position in range(block * self.block_size, (block + 1) * self.block_size):
            indices.append(self._order(position // count)[position % count])
        return indices

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
        numbers = [self._number(block) for block in missing]
        for block, number, items in zip(missing, numbers, self._read(numbers), strict=True):
            self._blocks[block] = self._make(number, items)
            if len(self._blocks) == 1:
                self._check_memory()
            yield len(self._blocks)

    def batch(self, step: int, part: int = 0) -> CouplingBatch:
        """What this process looks at in part `part` of step `step`; the buffer must be filled for it."""
        first = self.first_block(step)
        chosen = torch.randperm(self.num_couplings, generator=generator(self.seed, "batch", step))
        chosen = chosen[: self.step_size].sort().values
        own = (chosen // self.per_block + first) % self.share.count == self.share.index
        of_step = own.nonzero().flatten().tensor_split(self.parts)[part]
        weight = len(of_step) / self.step_size
        if len(of_step):
            chosen = chosen[of_step]
        else:
            # A process that has none of them must still take part when gradients are exchanged.
            of_step = torch.zeros(1, dtype=torch.long)
            chosen = torch.tensor([(self.held_blocks(step)[0] - first) * self.per_block])
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
            weight=weight,
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

    def noise(self, number: int) -> Tensor:
        """x_1 of a block, (N, H, D)."""
        noise = self.teacher.sample_noise(self.per_block, generator(self.coupling_seed, "noise", number))
        return noise.to(self.teacher.device)

    def solve(self, number: int, context: Context) -> Solved:
        """Asks the teacher for a block's endpoints.

        Args:
            number: of the block.
            context: of its observations, by the teacher.

        Raises:
            UserError: if an endpoint is not finite.
        """
        return self._solve(number, context)[0]

    @torch.no_grad()
    def _solve(self, number: int, context: Context) -> tuple[Solved, Path | None]:
        noise = self.noise(number)
        even = self.config.even_noises
        observation = torch.arange(self.block_size).repeat_interleave(even)
        count = len(observation)
        endpoint, path = self._endpoints(context, observation, noise[:count])
        if count < self.per_block:
            spread = self._spread(endpoint.unflatten(0, (self.block_size, even)))
            drawn = torch.multinomial(
                spread,
                self.per_block - count,
                replacement=True,
                generator=generator(self.coupling_seed, "adaptive", number),
            )
            more, further = self._endpoints(context, drawn, noise[count:])
            observation, endpoint = torch.cat([observation, drawn]), torch.cat([endpoint, more])
            path = join_paths([path, further])
        if not endpoint.isfinite().all():
            raise UserError(
                "teacher.path: the teacher's endpoints are NaN or infinite; check the checkpoint's weights and its "
                "processors' statistics."
            )
        return Solved(observation, endpoint), path

    def _number(self, block: int) -> int:
        """The block of the source that stands at a place of the endless sequence."""
        return block if self.source is None else block % self.source.num_blocks

    @property
    def _reads_observations(self) -> bool:
        stored = self.source is not None and self.source.holds_context
        kept = stored and self.student_encode is None and self.student_context
        return self.needs.actions or not kept

    def _read(self, numbers: list[int]) -> Iterator[dict[str, Any] | None]:
        """The raw observations of blocks; None for each where nothing needs them."""
        if not self._reads_observations:
            return repeat(None, len(numbers))
        order = [index for number in numbers for index in self.observation_indices(number)]
        return self.observations.batches(order, self.block_size, self.num_workers if len(numbers) > 1 else 0)

    @torch.no_grad()
    def _make(self, number: int, items: dict[str, Any] | None) -> Block:
        prepared = self.teacher.preprocess(items) if items is not None else {}
        context: Context | None = None
        solved, path = None, None
        if self.source is not None:
            solved, context = self.source.read(number, self.observation_indices(number))
        elif self.needs.couplings:
            context = self.teacher.encode(prepared)
            solved, path = self._solve(number, context)
        alike = torch.arange(self.block_size).repeat_interleave(self.config.noises_per_observation)
        return Block(
            observation=solved.observation if solved is not None else alike,
            noise=self.noise(number) if solved is not None else None,
            endpoint=solved.endpoint.to(self.teacher.device) if solved is not None else None,
            context=self._kept(context, prepared) if self.student_context else None,
            items=None if self.student_context or items is None else seen(items),
            path=path,
            actions=self.teacher.action_target(prepared) if self.needs.actions else None,
        )

    def _kept(self, context: Context | None, prepared: dict[str, Any]) -> Context:
        """The student's context, of which the teacher's may serve."""
        if self.student_encode is not None:
            context = self.student_encode(prepared)
        elif context is None:
            context = self.teacher.encode(prepared)
        return context.detach().to(self.teacher.device)

    def _endpoints(self, context: Context, observation: Tensor, noise: Tensor) -> tuple[Tensor, Path | None]:
        """The teacher's endpoints, as many at a time as a training step takes, and the ways there if needed."""
        parts = zip(observation.split(self.batch_size), noise.split(self.batch_size), strict=True)
        if not self.needs.paths:
            ends = [endpoints(self.teacher, context.index(o), x, self.coupling) for o, x in parts]
            return torch.cat(ends), None
        points = self.config.path_points
        both = [
            endpoints_and_path(self.teacher, context.index(o), x, self.coupling, points) for o, x in parts
        ]
        return torch.cat([end for end, _ in both]), join_paths([path for _, path in both])

    def _spread(self, endpoint: Tensor) -> Tensor:
        """How far the endpoints (N, K, H, D) of each observation lie apart in the real dimensions, (N,)."""
        real = self.teacher.chunk.real(endpoint).double().cpu()
        spread = real.var(dim=1).mean(dim=(1, 2)).sqrt()
        # Weights of zero throughout cannot be drawn from; NaN is reported by whoever looks at the endpoints.
        return spread.nan_to_num(0.0, 0.0, 0.0) + 1e-12

    def _order(self, epoch: int) -> list[int]:
        if getattr(self, "_epoch", None) != epoch:
            shuffled = torch.randperm(
                len(self.observations), generator=generator(self.coupling_seed, "order", epoch)
            )
            self._epoch, self._epoch_order = epoch, shuffled.tolist()
        return self._epoch_order

    def _check_memory(self) -> None:
        expected = self.num_bytes * -(-self.num_blocks // self.share.count)
        device = self.teacher.device
        free = (
            torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        )
        if expected - self.num_bytes > 0.9 * free:
            raise UserError(
                f"buffer.num_observations={self.config.num_observations} takes {expected / 2**30:.1f} GiB, but "
                f"{free / 2**30:.1f} GiB are free on {device}; choose a smaller number."
            )
