"""How a block of couplings is made: which observations and noises it holds, and where the teacher carries them.

All of it is a pure function of the seed and the block's number.

Shapes: N couplings of a block, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from chordflow.couplings.blocks import Block, BlockSource, Needs, Solved, join_paths, seen
from chordflow.couplings.buffer_config import BufferConfig
from chordflow.couplings.device_memory import free_memory, stage
from chordflow.couplings.generate import CouplingConfig, Path, endpoints, endpoints_and_path
from chordflow.couplings.observations import Observations
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import Context, FlowPolicy


class BlockMaker:
    """Makes blocks of one teacher's couplings on one set of observations.

    Args:
        teacher: the frozen teacher.
        observations: what it looks at.
        coupling: how its ODE is solved.
        config: how large a block is and what it holds.
        seed: of the run.
        batch_size: couplings that are solved in one go.
        num_workers: processes that read observations ahead.
        student_encode: how the student encodes where it does not share the teacher's prefix; None where it
            does. It is called once per observation.
        student_context: whether the student's context can be kept at all; false where its prefix trains, so
            that it must encode at every step.
        source: blocks that were made earlier; the teacher's ODE is then not solved. Past its last block it begins
            again with the first.
        needs: what a block has to hold; by default couplings alone.

    Attributes:
        block_size: observations of a block; with a source never fewer than its blocks hold.
        per_block: couplings of a block, N.

    Raises:
        UserError: for a source, or a solver, that lacks what is needed, or a block that does not fit into memory.
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
        # Of what the blocks hold, as against which of their couplings a step draws.
        self.seed = seed if source is None else source.seed
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.student_encode = student_encode
        self.student_context = student_context
        self.source = source
        self.needs = needs or Needs()
        # Of a store whole blocks are taken; it was made with the same `block_size`.
        self.block_size = (
            config.block_size if source is not None else min(config.block_size, config.num_observations)
        )
        self.per_block = self.block_size * config.noises_per_observation
        if source is not None and (self.needs.paths or not self.needs.couplings):
            what = "trajectories, and a store holds endpoints" if self.needs.paths else "demonstrations"
            raise UserError(
                f"method.type: the method trains on {what} alone; leave the store of couplings out, or choose another "
                "method."
            )
        if self.needs.paths:
            coupling.check_points(config.path_points)
        self._check_memory()

    @property
    def coupling_bytes(self) -> int:
        """What a block takes at least, in bytes: the noises, endpoints and paths of its couplings."""
        if not self.needs.couplings:
            return 0
        states = 2
        if self.needs.paths:
            states += self.config.path_points or self.coupling.steps - 1
        return self.per_block * states * self.teacher.sample_noise(1, torch.Generator()).nbytes

    def _check_memory(self) -> None:
        """Refuses a block by arithmetic, since even to list a billion observations takes minutes."""
        config, device = self.config, self.teacher.device
        # And the indices of observations and couplings, 8 bytes each.
        size, room = self.coupling_bytes + 8 * (self.per_block + self.block_size), free_memory(device)
        if size <= 0.9 * room:
            return
        name, value = "noises_per_observation", config.noises_per_observation
        if self.block_size > value:
            name, value = "block_size", self.block_size
        most = int(0.9 * room * value / size)
        what = (
            f"give --buffer.{name}={most} or less" if most and self.source is None else "use a larger device"
        )
        raise UserError(
            f"buffer.{name}={value}: the {self.per_block:,} couplings of a block of {self.block_size:,} "
            f"observations take {size / 2**30:.1f} GiB, but {room / 2**30:.1f} GiB are free on {device}; {what}."
        )

    def observation_indices(self, block: int) -> list[int]:
        """Which observations a block holds."""
        return self.observations.of_block(block, self.block_size, self.seed)

    def noise(self, number: int) -> Tensor:
        """x_1 of a block, (N, H, D)."""
        noise = self.teacher.sample_noise(self.per_block, generator(self.seed, "noise", number))
        return noise.to(self.teacher.device)

    def solve(self, number: int, context: Context) -> Solved:
        """Asks the teacher for a block's endpoints.

        Args:
            number: of the block.
            context: of its observations, by the teacher.

        Raises:
            UserError: if an endpoint is not finite.
        """
        with stage("make"):
            return self._solve(number, context)[0]

    def make(self, blocks: Sequence[int]) -> Iterator[Block]:
        """Blocks at places of the endless sequence, in the order in which they are asked for.

        Raises:
            UserError: where an observation cannot be read, or an endpoint is not finite.
        """
        numbers = [block if self.source is None else block % self.source.num_blocks for block in blocks]
        for number, items in zip(numbers, self._read(numbers), strict=True):
            with stage("make"):
                made = self._make(number, items)
            yield made

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
                generator=generator(self.seed, "adaptive", number),
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
            with stage("encode"):
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
        with stage("encode"):
            if self.student_encode is not None:
                context = self.student_encode(prepared)
            elif context is None:
                context = self.teacher.encode(prepared)
        return context.detach().to(self.teacher.device)

    def _endpoints(self, context: Context, observation: Tensor, noise: Tensor) -> tuple[Tensor, Path | None]:
        """The teacher's endpoints, as many at a time as a training step takes, and the ways there if needed."""
        parts = zip(observation.split(self.batch_size), noise.split(self.batch_size), strict=True)
        points = self.config.path_points
        with stage("solve"):
            if not self.needs.paths:
                ends = [endpoints(self.teacher, context.index(o), x, self.coupling) for o, x in parts]
                return torch.cat(ends), None
            both = [
                endpoints_and_path(self.teacher, context.index(o), x, self.coupling, points) for o, x in parts
            ]
            return torch.cat([end for end, _ in both]), join_paths([path for _, path in both])

    def _spread(self, endpoint: Tensor) -> Tensor:
        """How far the endpoints (N, K, H, D) of each observation lie apart in the real dimensions, (N,)."""
        real = self.teacher.chunk.real(endpoint).cpu().double()
        spread = real.var(dim=1).mean(dim=(1, 2)).sqrt()
        # Weights of zero throughout cannot be drawn from; NaN is reported by whoever looks at the endpoints.
        return spread.nan_to_num(0.0, 0.0, 0.0) + 1e-12
