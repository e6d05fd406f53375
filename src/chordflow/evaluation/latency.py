"""How long a chunk takes, split into what is done once and what every step costs, and what memory it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy
from chordflow.policies.sampling import Sampler
from chordflow.results.actions import ChunkTime, Latency, Memory
from chordflow.results.statistics import Percentiles

WARM_UP = 5


@torch.no_grad()
def measure_latency(
    policy: FlowPolicy,
    items: dict[str, Any],
    repeats: int,
    *,
    teacher_num_steps: int,
    student_num_steps: int,
    chunk_num_steps: Sequence[int] = (),
    warm_up: int = WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Times encoding, one step and whole chunks in turn, round after round, on the observations given.

    Args:
        policy: teacher and student have the same network, so one of them stands for both.
        items: raw observations; usually one, as on a robot.
        repeats: timed rounds.
        teacher_num_steps: of the teacher as deployed.
        student_num_steps: of the student.
        chunk_num_steps: step counts at which whole chunks are timed.
        warm_up: untimed rounds before them.
        clock: seconds; wall time unless a caller knows better. On a CPU that others use, one thread's own
            `time.process_time` leaves out what they take.
    """
    batch = policy.preprocess(items)
    context = policy.encode(batch)
    size = context.batch_size
    noise = policy.sample_noise(size, generator(0, "latency")).to(policy.device)
    t = torch.ones(size, device=policy.device)
    memory = _MemoryMeter(policy)

    work: dict[str | int, Callable[[], object]] = {
        "encode": lambda: policy.encode(batch),
        "step": lambda: policy.velocity(noise, t, context),
        **{n: partial(_chunk, Sampler(policy, n), batch, noise) for n in sorted(set(chunk_num_steps))},
        # A chunk of the robot's pays for the processors as well, whatever its number of steps.
        "processors": lambda: policy.to_action(noise) if policy.preprocess(items) else None,
    }
    # One after another in rounds: a machine that slows down slows all of them, and their ratios stay.
    seconds: dict[str | int, list[float]] = {name: [] for name in work}
    for number in range(warm_up + repeats):
        for name, function in work.items():
            took = _seconds(function, policy.device, clock)
            if number >= warm_up:
                seconds[name].append(took)
                memory.look()
    return Latency(
        encode_s=float(np.median(seconds["encode"])),
        step_s=float(np.median(seconds["step"])),
        batch_size=size,
        repeats=repeats,
        teacher_num_steps=teacher_num_steps,
        student_num_steps=student_num_steps,
        encode=_percentiles(seconds["encode"]),
        step=_percentiles(seconds["step"]),
        chunks=[ChunkTime(n, _percentiles(times)) for n, times in seconds.items() if isinstance(n, int)],
        processors_s=float(np.median(seconds["processors"])),
        memory=memory.read(),
    )


def _chunk(sampler: Sampler, batch: dict[str, Any], noise: Tensor) -> Tensor:
    return sampler(sampler.policy.encode(batch), noise)


class _MemoryMeter:
    """Memory of a policy while it acts.

    On CUDA what counts is the weights and the most that is allocated above what was there before, so that other
    policies and data that happen to be loaded do not count. On a CPU allocations cannot be told apart: the resident
    memory of the whole process is read after every chunk and the largest kept, libraries and all. Other
    devices give no comparable figure.
    """

    def __init__(self, policy: FlowPolicy) -> None:
        tensors = {
            t.data_ptr(): t.numel() * t.element_size()
            for t in [*policy.module.parameters(), *policy.module.buffers()]
        }
        self.weights = sum(tensors.values())
        self.device = policy.device
        self.process = psutil.Process()
        self.resident = 0
        self.before = 0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)

    def look(self) -> None:
        """Called after each timed run."""
        if self.device.type == "cpu":
            self.resident = max(self.resident, self.process.memory_info().rss)

    def read(self) -> Memory | None:
        """What was found, or None where it cannot be told."""
        if self.device.type == "cuda":
            above = torch.cuda.max_memory_allocated(self.device) - self.before
            return Memory(self.weights, self.weights + above, "accelerator")
        if self.device.type == "cpu":
            return Memory(self.weights, self.resident, "process")
        return None


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    p50, p90, p95, p99 = (float(p) for p in np.percentile(seconds, [50, 90, 95, 99]))
    return Percentiles(p50, p90, p95, p99)


def _seconds(function: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    wait()
    start = clock()
    function()
    wait()
    return clock() - start
