"""How long a chunk takes, split into what is done once and what every step costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy
from chordflow.results.schema import Latency

WARM_UP = 5


@torch.no_grad()
def measure_latency(
    policy: FlowPolicy, items: dict[str, Any], repeats: int, *, teacher_num_steps: int, student_num_steps: int
) -> Latency:
    """Medians over `repeats` runs after a warm-up, on the observations given.

    Args:
        policy: teacher and student have the same network, so one of them stands for both.
        items: raw observations; usually one, as on a robot.
        repeats: timed runs.
        teacher_num_steps: of the teacher as deployed.
        student_num_steps: of the student.
    """
    batch = policy.preprocess(items)
    context = policy.encode(batch)
    size = context.batch_size
    noise = policy.sample_noise(size, generator(0, "latency")).to(policy.device)
    t = torch.ones(size, device=policy.device)
    return Latency(
        encode_s=_median_seconds(lambda: policy.encode(batch), repeats, policy.device),
        step_s=_median_seconds(lambda: policy.velocity(noise, t, context), repeats, policy.device),
        batch_size=size,
        repeats=repeats,
        teacher_num_steps=teacher_num_steps,
        student_num_steps=student_num_steps,
    )


def _median_seconds(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(WARM_UP):
        function()
    seconds = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        function()
        wait()
        seconds.append(time.perf_counter() - start)
    return median(seconds)
