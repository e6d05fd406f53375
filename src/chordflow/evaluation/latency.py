"""How long a chunk takes, split into what is done once and what every step costs, and what memory it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import psutil
import torch
from torch import Tensor

from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy
from chordflow.policies.sampling import Sampler
from chordflow.results.actions import ChunkTime, Latency, Memory, PolicyName
from chordflow.results.statistics import percentiles

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
    exported: Mapping[PolicyName, Sampler] = MappingProxyType({}),
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
        exported: exported folders, whose chunks are timed from the graph's inputs on.
        warm_up: untimed rounds before them.
        clock: seconds; wall time by default.
    """
    batch = policy.preprocess(items)
    context = policy.encode(batch)
    size = context.batch_size
    noise = policy.sample_noise(size, generator(0, "latency")).to(policy.device)
    t = torch.ones(size, device=policy.device)
    memory = _MemoryMeter(policy)

    def chunk(sampler: Sampler) -> Tensor:
        return sampler(policy.encode(batch), noise)

    def graph(sampler: Sampler) -> Callable[[], object]:
        return partial(sampler, sampler.policy.encode(sampler.policy.preprocess(items)), noise.cpu())

    work: dict[str | int, Callable[[], object]] = {
        "encode": lambda: policy.encode(batch),
        "step": lambda: policy.velocity(noise, t, context),
        **{n: partial(chunk, Sampler(policy, n)) for n in sorted(set(chunk_num_steps))},
        **{f"exported {name}": graph(sampler) for name, sampler in exported.items()},
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
                memory.sample()
    found = {name: percentiles(times) for name, times in seconds.items()}
    return Latency(
        encode_s=found["encode"].p50,
        step_s=found["step"].p50,
        batch_size=size,
        repeats=repeats,
        teacher_num_steps=teacher_num_steps,
        student_num_steps=student_num_steps,
        encode=found["encode"],
        step=found["step"],
        chunks=[ChunkTime(n, times) for n, times in found.items() if isinstance(n, int)],
        exported={name: ChunkTime(s.num_steps, found[f"exported {name}"]) for name, s in exported.items()},
        processors_s=found["processors"].p50,
        memory=memory.read(),
    )


class _MemoryMeter:
    """Memory of a policy while it acts.

    On CUDA the weights and the most that is allocated above what was there before: what else is loaded does not count.
    On a CPU, where allocations are not counted apart, the largest resident memory of the whole process after any chunk,
    libraries and all. Other devices give no comparable figure.
    """

    def __init__(self, policy: FlowPolicy) -> None:
        held = [*policy.module.parameters(), *policy.module.buffers()]
        self.weights = sum({t.data_ptr(): t.numel() * t.element_size() for t in held}.values())
        self.device, self.process, self.resident, self.before = policy.device, psutil.Process(), 0, 0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)

    def sample(self) -> None:
        """Called after each timed run."""
        if self.device.type == "cpu":
            self.resident = max(self.resident, self.process.memory_info().rss)

    def read(self) -> Memory | None:
        """The measured memory, or None where it cannot be known."""
        if self.device.type == "cuda":
            above = torch.cuda.max_memory_allocated(self.device) - self.before
            return Memory(self.weights, self.weights + above, "accelerator")
        return Memory(self.weights, self.resident, "process") if self.device.type == "cpu" else None


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
