"""Counts the operations of a student's step anew, in the results of SOAP beside this script.

    python benchmarks/training/recount.py
    python benchmarks/training/full_size_table.py --write

Nothing is timed and no policy of full size is run. There a step is the forward and backward pass, which is all that
the result of the same size counts with AdamW, and a step of SOAP, which depends on the shapes of the trained weights
alone and is counted on tensors without storage. The demo's student is small enough to be run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from full_size import RandomFrames
from full_size_table import RESULTS
from loops import TrainingStep
from roofline import measure_roofline
from torch.utils.flop_counter import FlopCounterMode

from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig, Observations
from chordflow.demo.teacher import place_teacher
from chordflow.policies import load_flow_policy
from chordflow.policies.registry import adapter_for
from chordflow.training.optimizers import SOAPConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "latency"))

from random_policies import outline


def main() -> None:
    """Recounts every file and says what has changed."""
    for path in sorted(RESULTS.glob("full_*_soap_*.json")):
        soap, adamw = load(path), load(path.with_name(path.name.replace("_soap_", "_adamw_")))
        flop = adamw["roofline"]["train"]["flop"] + soap_flop(trained_shapes(soap["settings"]))
        _put(path, soap, flop)
    for name in ("schedules", "variants"):
        path = RESULTS / f"{name}.json"
        bench = load(path)
        _put(path, bench, demo_step_flop(bench["roofline"]["train"]["batch_size"]))


def load(path: Path) -> dict[str, Any]:
    """A result file."""
    bench: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return bench


def trained_shapes(settings: dict[str, Any]) -> list[torch.Size]:
    """Shapes of what a student of full size trains by default."""
    module = outline(settings["family"], settings["size"], settings["dtype"])
    # Processors are not needed to see its parameters.
    student = adapter_for(settings["family"])(module, None, None)  # type: ignore[arg-type]
    return [parameter.shape for parameter in student.train_roles(student.default_train_roles).values()]


def soap_flop(shapes: Iterable[torch.Size]) -> int:
    """Operations of a step of SOAP after its first, between two refreshes of its bases."""
    weights = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    optimizer = SOAPConfig().build(weights)
    optimizer.step()
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    return int(counter.get_total_flops())


def demo_step_flop(size: int) -> int:
    """Operations of a step of the demo's student with so many couplings."""
    with TemporaryDirectory() as folder:
        path = place_teacher(Path(folder) / "teacher")
        teacher, student = (load_flow_policy(path, device="cpu") for _ in range(2))
    teacher.module.requires_grad_(False)
    trainable = student.train_roles(student.default_train_roles)
    step = TrainingStep(student, trainable, SOAPConfig(), seed=0)
    solver = CouplingConfig("euler", 1, grid_power=1.0)
    frames = Observations(RandomFrames(teacher), range(size))  # type: ignore[arg-type]
    once = CouplingBuffer(teacher, frames, solver, BufferConfig(size, 1, None, size), seed=0, batch_size=size)
    list(once.fill(0))
    items = next(frames.batches(range(size), size))
    return int(measure_roofline(teacher, items, solver, solver, step, once, repeats=1)["train"]["flop"])


def _put(path: Path, bench: dict[str, Any], flop: int) -> None:
    train = bench["roofline"]["train"]
    print(f"{path.name}: {train['flop']:,} operations a step were counted, {flop:,} it takes")
    train["flop"] = flop
    path.write_text(json.dumps(bench, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
