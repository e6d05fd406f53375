"""How much there is to compute for a training sample, and how near to the device's peak it is computed.

Torch counts the operations: matrix products, convolutions and attention, forward and backward; a multiplication and
an addition count two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from loops import TrainingStep
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chordflow.couplings import CouplingBuffer, CouplingConfig
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy
from chordflow.training.steps import Stopwatch

PEAK_SIZE = {"cpu": 2048, "cuda": 8192}
"""Sides of the square matrices whose product stands for the device's peak."""


def measure_roofline(
    teacher: FlowPolicy,
    items: dict[str, Any],
    coupling: CouplingConfig,
    naive_coupling: CouplingConfig,
    step: TrainingStep,
    source: CouplingBuffer,
    *,
    repeats: int,
) -> dict[str, Any]:
    """Counts and times an encoding, a velocity and a student's step.

    Args:
        teacher: whose network it is.
        items: raw observations, which are encoded together.
        coupling: how the teacher's ODE is solved for a buffer.
        naive_coupling: and for the loop without reuse.
        step: of a student that nobody needs afterwards; its weights stay as they are.
        source: couplings for step 0, made, with encoded observations.
        repeats: timed runs of each, after two untimed ones, of which the second is counted.

    Returns:
        `dtype` of the products, `peak_flop_per_s`, `solver_nfe` and `naive_nfe` (evaluations a coupling),
        `context_bytes` and `coupling_bytes` (memory of one), and `encode`, `velocity` and `train`, each with the
        `batch_size` that it is done on, `flop` and `seconds`.
    """
    device = teacher.device
    batch = teacher.preprocess(items)
    with torch.no_grad():
        context = teacher.encode(batch)
        size = context.batch_size
        noise = teacher.sample_noise(size, generator(0, "roofline")).to(device)
        t = torch.ones(size, device=device)
        encode = _work(lambda: teacher.encode(batch), size, repeats, device)
        velocity = _work(lambda: teacher.velocity(noise, t, context), size, repeats, device)
    train = _work(lambda: step(source, 0, 0.0), source.step_size, repeats, device)
    dtype = next(p.dtype for p in teacher.module.parameters() if p.is_floating_point())
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "peak_flop_per_s": peak_flop_per_s(device, dtype),
        "solver_nfe": coupling.nfe,
        "naive_nfe": naive_coupling.nfe,
        "encode": encode,
        "velocity": velocity,
        "train": train,
        "context_bytes": context.num_bytes // size,
        "coupling_bytes": 2 * noise.nbytes // size,
    }


@torch.no_grad()
def peak_flop_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product, the best of six."""
    size = PEAK_SIZE[device.type]
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(_times(lambda: a @ b, 6, device))


def flop_per_sample(roofline: Mapping[str, Any], loop: Mapping[str, Any]) -> float:
    """Operations that a loop needs for one training sample, by counting.

    Without a buffer the observation is encoded twice. A buffer that is never replaced is made once and costs ever
    less.
    """
    encode, velocity, train = (
        roofline[k]["flop"] / roofline[k]["batch_size"] for k in ("encode", "velocity", "train")
    )
    if loop["num_observations"] is None:
        return 2 * encode + roofline["naive_nfe"] * velocity + train
    if loop["uses_per_coupling"] is None:
        return train
    made = encode / loop["noises_per_observation"] + roofline["solver_nfe"] * velocity
    return made / loop["uses_per_coupling"] + train


def shares_of_peak(roofline: Mapping[str, Any]) -> str:
    """Achieved operations a second over the peak: encoding, velocity, step."""
    works = (roofline[k] for k in ("encode", "velocity", "train"))
    rates = (work["flop"] / work["seconds"] / roofline["peak_flop_per_s"] for work in works)
    return ", ".join(f"{100 * rate:.0f} %" for rate in rates)


def _work(function: Callable[[], object], size: int, repeats: int, device: torch.device) -> dict[str, Any]:
    # Never the first call: that of SOAP looks for a basis and moves nothing, at a quarter of a later one's operations.
    function()
    counter = FlopCounterMode(display=False)
    # Fused attention has no count on a CPU; its plain form is made of products that have.
    with counter, sdpa_kernel(SDPBackend.MATH):
        function()
    seconds = median(_times(function, repeats, device))
    return {"batch_size": size, "flop": counter.get_total_flops(), "seconds": seconds}


def _times(function: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    times = []
    for _ in range(repeats):
        watch = Stopwatch(device)
        function()
        times.append(watch.seconds)
    return times
