"""Couplings without reuse: the reference that the buffer is held against, for its numbers and for its speed.

For every training sample the teacher encodes an observation and carries one noise to its endpoint, the student
encodes the same observation again, and the sample is thrown away after its one step. The buffer gives the same
losses where it keeps one noise an observation and uses a coupling once.

Shapes: B couplings in a micro-batch, H chunk size, D padded action dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch

from chordflow.couplings import CouplingBatch, CouplingConfig, Observations, Share, endpoints
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy


class NaiveCouplings:
    """Couplings of one teacher, made for the step that uses them; asked as a `CouplingBuffer` is.

    Step s takes the s-th `step_size` observations of endlessly reshuffled passes, and new noise for them.

    Args:
        teacher: the frozen teacher.
        observations: what it looks at.
        coupling: how its ODE is solved.
        seed: of the run.
        batch_size: couplings looked at in one go.
        parts: how often that is done in a training step.
        num_workers: processes that read observations ahead.

    Attributes:
        share: of one process: all.
    """

    def __init__(
        self,
        teacher: FlowPolicy,
        observations: Observations,
        coupling: CouplingConfig,
        *,
        seed: int,
        batch_size: int,
        parts: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.teacher = teacher
        self.observations = observations
        self.coupling = coupling
        self.seed = seed
        self.batch_size = batch_size
        self.parts = parts
        self.num_workers = num_workers
        self.share = Share()
        self._step: int | None = None
        self._made: list[CouplingBatch] = []
        self._read: Iterator[dict[str, Any]] = iter(())

    @property
    def step_size(self) -> int:
        """Couplings of a training step."""
        return self.batch_size * self.parts

    @property
    def num_bytes(self) -> int:
        """Memory of the couplings that wait to be used, in bytes; they bring no encoded observation along."""
        return sum(batch.noise.nbytes + batch.endpoint.nbytes for batch in self._made)

    def fill(self, step: int) -> Iterator[int]:
        """Makes the couplings of `step`; yields the number of micro-batches made so far.

        Raises:
            UserError: if an endpoint is not finite.
        """
        if step == self._step:
            return
        if self._step is None or step != self._step + 1:
            self.close()
            self._read = self.observations.stream(self._indices(step), self.num_workers)
        self._step, self._made = None, []
        noise = self.teacher.sample_noise(self.step_size, generator(self.seed, "noise", step))
        rows = torch.arange(self.step_size)
        for part in range(self.parts):
            of_part = rows.tensor_split(self.parts)[part]
            self._made.append(self._make(noise[of_part].to(self.teacher.device), of_part))
            yield len(self._made)
        self._step = step

    def batch(self, step: int, part: int = 0) -> CouplingBatch:
        """What is looked at in part `part` of step `step`; it must have been made.

        Raises:
            ValueError: if it has not.
        """
        if step != self._step:
            raise ValueError(f"step {step} has not been made; the last one is {self._step}")
        return self._made[part]

    def close(self) -> None:
        """Ends the processes that read ahead."""
        getattr(self._read, "close", lambda: None)()

    @torch.no_grad()
    def _make(self, noise: torch.Tensor, rows: torch.Tensor) -> CouplingBatch:
        prepared = self.teacher.preprocess(next(self._read))
        endpoint = endpoints(self.teacher, self.teacher.encode(prepared), noise, self.coupling)
        if not endpoint.isfinite().all():
            raise UserError(
                "teacher.path: the teacher's endpoints are NaN or infinite; check the checkpoint's weights and its "
                "processors' statistics."
            )
        real = torch.zeros(self.teacher.chunk.shape, dtype=torch.bool, device=self.teacher.device)
        self.teacher.chunk.real(real)[:] = True
        return CouplingBatch(
            noise=noise,
            endpoint=endpoint,
            # Without a context the student encodes for itself.
            context=None,
            batch=prepared,
            rows=rows if self.parts > 1 else None,
            total=self.step_size,
            weight=len(rows) / self.step_size,
            real=real,
        )

    def _indices(self, step: int) -> Iterator[list[int]]:
        """The observations of one micro-batch after another, from the first of `step` on."""
        size, known = len(self.observations), (-1, [0])
        for number in count(step * self.parts):
            indices = []
            for position in range(number * self.batch_size, (number + 1) * self.batch_size):
                if known[0] != position // size:
                    order = torch.randperm(size, generator=generator(self.seed, "order", position // size))
                    known = (position // size, order.tolist())
                indices.append(known[1][position % size])
            yield indices
