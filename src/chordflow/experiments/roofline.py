"""How much there is to compute for a training sample, and how near to the device's peak it is computed.

Operations are counted by torch's own counter: matrix products, convolutions and attention, forward and backward.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import psutil
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chordflow.couplings import CouplingConfig
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy
from chordflow.results.bench import Roofline, Work
from chordflow.training.timed import Source, TrainingStep

PEAK_SIZES = {"cuda": 8192}
"""Sides of the square matrices whose product stands for the device's peak; elsewhere `PEAK_SIZE`."""

PEAK_SIZE = 2048


def measure_roofline(
    teacher: FlowPolicy,
    items: dict[str, Any],
    coupling: CouplingConfig,
    naive_coupling: CouplingConfig,
    training_step: TrainingStep,
    source: Source,
    *,
    repeats: int,
    on_piece: Callable[[int, int], None] = lambda done, total: None,
) -> Roofline:
    """Counts and times an encoding, a velocity and a student's step.

    Args:
        teacher: whose network it is.
        items: raw observations, which are encoded together.
        coupling: how the teacher's ODE is solved for a buffer.
        naive_coupling: and for the loop without reuse.
        training_step: of a student that nobody needs afterwards; its weights stay as they are.
        source: couplings for step 0, made, with encoded observations.
        repeats: timed runs of each, after two untimed, of which the second is counted.
        on_piece: told how many of the pieces of work are done.
    """
    device, pieces = teacher.device, 4
    batch = teacher.preprocess(items)
    with torch.no_grad():
        context = teacher.encode(batch)
    size = context.batch_size
    noise = teacher.sample_noise(size, generator(0, "roofline")).to(device)
    t = torch.ones(size, device=device)
    on_piece(0, pieces)
    with torch.no_grad():
        encode = _work(lambda: teacher.encode(batch), size, repeats, device)
        on_piece(1, pieces)
        velocity = _work(lambda: teacher.velocity(noise, t, context), size, repeats, device)
        on_piece(2, pieces)
    train = _work(lambda: training_step(source, 0, 0.0), source.step_size, repeats, device)
    on_piece(3, pieces)
    dtype = next(p.dtype for p in teacher.module.parameters() if p.is_floating_point())
    peak = peak_flop_per_s(device, dtype)
    on_piece(4, pieces)
    return Roofline(
        dtype=str(dtype).removeprefix("torch."),
        peak_flop_per_s=peak,
        solver_nfe=coupling.nfe,
        naive_nfe=naive_coupling.nfe,
        encode=encode,
        velocity=velocity,
        train=train,
        context_bytes=context.num_bytes // size,
        coupling_bytes=2 * noise.nbytes // size,
    )


@torch.no_grad()
def peak_flop_per_s(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Operations a second of a square matrix product, the best of several."""
    size = size or PEAK_SIZES.get(device.type, PEAK_SIZE)
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(_times(lambda: a @ b, 6, device))


def _work(function: Callable[[], object], size: int, repeats: int, device: torch.device) -> Work:
    # Never the first call: that of SOAP looks for a basis and moves nothing, at a quarter of a later one's operations.
    function()
    counter = FlopCounterMode(display=False)
    # Fused attention has no count on a CPU; its plain form is made of products that have.
    with counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return Work(size, counter.get_total_flops(), median(_times(function, repeats, device)))


def _times(function: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    times = []
    for _ in range(repeats):
        began = now()
        function()
        times.append(now() - began)
    return times


class PeakMemory:
    """The most memory in use: on CUDA what is allocated there, on a CPU of the whole process as often as it looks.

    Args:
        device: where training runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._resident = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def look(self) -> None:
        """Called after every piece of work."""
        if self._device.type == "cpu":
            self._resident = max(self._resident, int(self._process.memory_info().rss))

    def read(self) -> int | None:
        """Bytes; None where it cannot be told."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return self._resident or None
