"""How a block of couplings is made: which observations and noises it holds, and where the teacher carries them.

All of it is a pure function of the seed and the block's number.

Shapes: N couplings of a block, B solved in one go, O observations, H chunk size, D padded action dimension.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from chordflow.couplings.blocks import Block, Needs, Path, Solved, join_paths, seen
from chordflow.couplings.config import BufferConfig, CouplingConfig
from chordflow.couplings.memory import free_memory, sized_by
from chordflow.couplings.observations import Observations
from chordflow.couplings.store import CouplingStore
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import Context, FlowPolicy
from chordflow.threads import in_parallel, is_small, one_thread


@dataclass(eq=False)
class BlockMaker:
    """Makes blocks of one teacher's couplings on one set of observations.

    Attributes:
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
        block_size: observations of a block; with a source never fewer than its blocks hold.
        per_block: couplings of a block, N.
        small: whether the teacher's network runs in one thread; its bits are then the same in whichever thread.

    Raises:
        UserError: for a source, or a solver, that lacks what is needed, or a block that does not fit into memory.
    """

    teacher: FlowPolicy
    observations: Observations
    coupling: CouplingConfig
    config: BufferConfig
    _: KW_ONLY
    seed: int
    batch_size: int
    num_workers: int = 0
    student_encode: Callable[[dict[str, Any]], Context] | None = None
    student_context: bool = True
    source: CouplingStore | None = None
    needs: Needs = field(default_factory=Needs)
    block_size: int = field(init=False)
    per_block: int = field(init=False)
    small: bool = field(init=False)

    def __post_init__(self) -> None:
        self.block_size = self.config.block_size
        if self.source is None:
            self.block_size = min(self.block_size, self.config.num_observations)
        elif self.needs.paths or not self.needs.couplings:
            what = "trajectories, and a store holds endpoints" if self.needs.paths else "demonstrations"
            raise UserError(
                f"method.type: the method trains on {what} alone; leave the store of couplings out, or choose another "
                "method."
            )
        self.per_block = self.block_size * self.config.noises_per_observation
        self.small = is_small(self.teacher.module)
        self._kept_steps = self.coupling.kept_steps(self.config.path_points) if self.needs.paths else ()
        # Of what the blocks hold, as against which of their couplings a step draws.
        self._made_seed = self.seed if self.source is None else self.source.seed
        self._check_block_fits()

    @property
    def least_bytes(self) -> int:
        """What a block takes at least, in bytes: the noises, endpoints and paths of its couplings."""
        if not self.needs.couplings:
            return 0
        each = self.teacher.sample_noise(1, torch.Generator()).nbytes
        return each * self.per_block * (2 + len(self._kept_steps))

    def _check_block_fits(self) -> None:
        """Refuses a block by arithmetic, since even to list a billion observations takes minutes."""
        option, value = self._sized_by()
        # And the indices of observations and couplings, 8 bytes each.
        size = self.least_bytes + 8 * (self.per_block + self.block_size)
        room = free_memory(self.teacher.device)
        if size <= 0.9 * room:
            return
        most = int(0.9 * room * value / size)
        what = f"give --{option}={most} or less" if most and self.source is None else "use a larger device"
        raise UserError(
            f"{option}={value}: the {self.per_block:,} couplings of a block of {self.block_size:,} observations take "
            f"{size / 2**30:.1f} GiB, but {room / 2**30:.1f} GiB are free on {self.teacher.device}; {what}."
        )

    def _sized_by(self) -> tuple[str, int]:
        """The option that a block's memory follows most, and its value."""
        noises = self.config.noises_per_observation
        if noises > self.block_size:
            return "buffer.noises_per_observation", noises
        return "buffer.block_size", self.block_size

    def in_memory(self) -> contextlib.AbstractContextManager[None]:
        """Context of making a block: out of memory, the error names the option that its memory depends on."""
        option, value = self._sized_by()
        noises = value > self.block_size
        return sized_by(
            option, value, "noises of every observation were made" if noises else "observations were prepared"
        )

    def observation_indices(self, block: int) -> list[int]:
        """Which observations a block holds."""
        return self.observations.of_block(block, self.block_size, self._made_seed)

    def noise(self, number: int) -> Tensor:
        """x_1 of a block, (N, H, D)."""
        noise = self.teacher.sample_noise(self.per_block, generator(self._made_seed, "noise", number))
        return noise.to(self.teacher.device)

    def make(self, blocks: Sequence[int]) -> Iterator[Block]:
        """Blocks at places of the endless sequence, in the order in which they are asked for.

        Raises:
            UserError: where an observation cannot be read, or an endpoint is not finite.
        """
        numbers = [block if self.source is None else block % self.source.num_blocks for block in blocks]
        items = self._read(numbers)
        for number in numbers:
            with self.in_memory():
                made = self._make(number, next(items))
            yield made

    @torch.no_grad()
    def solve(self, number: int, context: Context) -> tuple[Solved, Path | None]:
        """Solves the teacher's ODE for block `number`'s endpoints, and keeps the ways there where they are needed.

        Raises:
            UserError: if an endpoint is not finite.
        """
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
                generator=generator(self._made_seed, "adaptive", number),
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

    def _read(self, numbers: list[int]) -> Iterator[dict[str, Any] | None]:
        """The raw observations of blocks; None for each where nothing needs them."""
        stored = self.source is not None and self.source.holds_context
        if stored and self.student_encode is None and self.student_context and not self.needs.actions:
            return repeat(None, len(numbers))
        order = [index for number in numbers for index in self.observation_indices(number)]
        return self.observations.batches(order, self.block_size, self.num_workers if len(numbers) > 1 else 0)

    @torch.no_grad()
    def _make(self, number: int, items: dict[str, Any] | None) -> Block:
        context: Context | None = None
        solved, path = None, None
        with one_thread(self.small):
            prepared = self.teacher.preprocess(items) if items is not None else {}
            if self.source is not None:
                solved, context = self.source.read(number, self.observation_indices(number))
            elif self.needs.couplings:
                context = self.teacher.encode(prepared)
        if self.source is None and context is not None:
            solved, path = self.solve(number, context)
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
        with one_thread(self.small):
            if self.student_encode is not None:
                context = self.student_encode(prepared)
            elif context is None:
                context = self.teacher.encode(prepared)
        return context.detach().to(self.teacher.device)

    def _endpoints(self, context: Context, observation: Tensor, noise: Tensor) -> tuple[Tensor, Path | None]:
        """The teacher's endpoints, as many at a time as a training step takes, and the ways there if needed."""
        parts = list(zip(observation.split(self.batch_size), noise.split(self.batch_size), strict=True))

        def solved(part: tuple[Tensor, Tensor], stopped: threading.Event) -> tuple[Tensor, Path | None]:
            rows, x_1 = part
            return endpoints(self.teacher, context.index(rows), x_1, self.coupling, self._kept_steps, stopped)

        with sized_by("batch_size", self.batch_size, "couplings were solved by the teacher"):
            found = list(in_parallel(solved, parts, self.teacher.module))
            return torch.cat([end for end, _ in found]), join_paths([path for _, path in found])

    def _spread(self, endpoint: Tensor) -> Tensor:
        """How far the endpoints (O, K, H, D) of each observation lie apart in the real dimensions, (O,)."""
        real = self.teacher.chunk.real(endpoint).cpu().double()
        spread = real.var(dim=1).mean(dim=(1, 2)).sqrt()
        # Weights of zero throughout cannot be drawn from; NaN is reported where endpoints are checked.
        return spread.nan_to_num(0.0, 0.0, 0.0) + 1e-12


def endpoints(
    teacher: FlowPolicy,
    context: Context,
    noise: Tensor,
    coupling: CouplingConfig,
    kept: Collection[int],
    stopped: threading.Event | None = None,
) -> tuple[Tensor, Path | None]:
    """The endpoints (B, H, D) of `noise` (B, H, D) under the teacher's ODE (Liu et al. 2022, 2209.03003).

    All padded dimensions are carried along: they feed back into the network at every step, and the robot's
    dimensions depend on them. Nothing is cut, and no demonstration's mask is applied, because the robot will
    run the teacher's whole chunk. The states before the steps `kept` are the path; None of none.
    Raises InterruptedError where `stopped` is set meanwhile.
    """
    states: list[Tensor] = []
    times: list[float] = []

    def keep(step: int, t: float, x_t: Tensor, _v_t: Tensor) -> None:
        if stopped is not None and stopped.is_set():
            raise InterruptedError
        if step in kept:
            states.append(x_t)
            times.append(t)

    endpoint = coupling.sampler(teacher)(context, noise, on_step=keep)
    return endpoint, Path(torch.stack(states, dim=1), torch.tensor(times)) if states else None
