"""Training samples a second of a policy of full size with random weights, with and without reuse of couplings.

    python benchmarks/training/full_size.py --family=smolvla --size=full --device=cpu \
        --output=benchmarks/training/results/FILE.json

Speed depends on shapes and dtypes, not on what the weights are, so nothing is downloaded and no gap is measured. The
loop with reuse is timed over whole lives of a buffer that holds just the couplings of one step: its observations are
encoded, their noises carried to endpoints, each used `--uses` times, and all replaced. So its figure is that of a
long run with the same numbers of noises and uses, whatever the size of the buffer. The loop without reuse takes its
endpoints by the Euler steps of the deployed teacher, the buffer by those of `--solver`, by default chordflow's own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from full_size_table import HEAD, row
from loops import NAIVE, TrainingStep, naive_couplings
from roofline import measure_roofline
from time_training import described

from chordflow.console import bar
from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig, Observations
from chordflow.experiments.provenance import device_name
from chordflow.policies import FlowPolicy
from chordflow.quiet import silence_libraries
from chordflow.results.schema import installed_versions
from chordflow.training.optimizers import AdamWConfig, SOAPConfig
from chordflow.training.steps import Stopwatch

sys.path.insert(0, str(Path(__file__).parents[1] / "latency"))

from random_policies import PROMPT, build

BUFFERED = "buffer"
OPTIMIZERS = {"adamw": AdamWConfig, "soap": SOAPConfig}


class RandomFrames:
    """What `Observations` asks of a dataset, with frames of the policy's own shapes."""

    meta = SimpleNamespace(video_keys=[], camera_keys=[], features={})
    absolute_to_relative_idx = None

    def __init__(self, policy: FlowPolicy) -> None:
        self._shapes = {key: policy.config.image_features[key].shape for key in policy.image_keys}
        self._shapes["observation.state"] = policy.config.robot_state_feature.shape

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        frame: dict[str, Any] = {
            key: torch.rand(*shape, generator=generator) for key, shape in self._shapes.items()
        }
        return {**frame, "task": PROMPT, "episode_index": torch.tensor(0), "frame_index": torch.tensor(index)}


def main() -> None:
    """Reads the command line; prints and saves what was measured."""
    options = _options()
    silence_libraries()
    bench = measure(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(bench, indent=2) + "\n", encoding="utf-8")
    for name, value in zip(HEAD, row(bench), strict=True):
        print(f"{name}: {value}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Counts operations, then times the loop without reuse and the one with it."""
    teacher, student = (build(options.family, options.size, options.device, options.dtype) for _ in range(2))
    teacher.module.requires_grad_(False)
    roles = list(teacher.default_train_roles)
    trainable = student.train_roles(roles)
    originals = dict(teacher.module.named_parameters())
    for name, parameter in student.module.named_parameters():
        if name not in trainable:
            # As a student of `chordflow reflow`: what is frozen is in memory once.
            parameter.data = originals[name].data
    step = TrainingStep(student, trainable, OPTIMIZERS[options.optimizer](), seed=0)
    frames = Observations(RandomFrames(teacher), range(10_000))  # type: ignore[arg-type]
    batch = options.batch_size
    deployed = CouplingConfig("euler", teacher.default_num_steps, grid_power=1.0)
    coupling = deployed if options.solver == "euler" else CouplingConfig(options.solver)
    coupling.settle(teacher.default_num_steps)
    kept = BufferConfig(batch // options.noises, options.noises, options.uses, batch // options.noises)

    def buffer(config: BufferConfig) -> CouplingBuffer:
        return CouplingBuffer(teacher, frames, coupling, config, seed=0, batch_size=batch)

    once = buffer(BufferConfig(batch, 1, None, batch))
    list(once.fill(0))
    # It warms everything up as well.
    items = next(frames.batches(range(batch), batch))
    roofline = measure_roofline(teacher, items, coupling, deployed, step, once, repeats=options.repeats)
    del once
    naive = naive_couplings(teacher, frames, deployed, 0, batch)
    speeds = [
        timed(NAIVE, naive, step, options.naive_steps, teacher.device),
        timed(BUFFERED, buffer(kept), step, options.lives * options.uses, teacher.device),
    ]
    return {
        "command": sys.argv,
        "settings": {name: str(value) for name, value in vars(options).items()},
        "versions": installed_versions(),
        "device": device_name(teacher.device),
        "teacher": f"{options.family}, {options.size}, random weights, {options.dtype}",
        "teacher_num_steps": teacher.default_num_steps,
        "loops": [described(NAIVE, batch), described(BUFFERED, batch, 1, kept)],
        "roofline": roofline,
        "speeds": speeds,
    }


def timed(
    name: str, source: CouplingBuffer, step: TrainingStep, steps: int, device: torch.device
) -> dict[str, Any]:
    """Trains for so many steps, the making of couplings included."""
    resident, held = 0, 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    watch = Stopwatch(device)
    with bar(name) as progress:
        for number in range(steps):
            for _ in source.fill(number):
                resident = max(resident, psutil.Process().memory_info().rss)
            held = max(held, source.num_bytes)
            step(source, number, 1.0)
            resident = max(resident, psutil.Process().memory_info().rss)
            progress.update(number + 1, steps)
    return {
        "loop": name,
        "samples": steps * source.step_size,
        "steps": steps,
        "seconds": watch.seconds,
        "buffer_bytes": held,
        # On a CPU that of the whole process.
        "peak_bytes": resident if device.type == "cpu" else torch.cuda.max_memory_allocated(device),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", choices=("smolvla", "pi05"), default="smolvla")
    parser.add_argument("--size", choices=("full", "reduced"), default="full")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="soap", help="of both loops")
    parser.add_argument(
        "--solver",
        choices=("adams_bashforth", "euler"),
        default="adams_bashforth",
        help="of the buffer's couplings: chordflow's default, or the teacher's own as deployed",
    )
    parser.add_argument("--output", type=Path, required=True, help="the JSON to write")
    for name, default, text in (
        ("batch_size", 4, "couplings a step of both loops"),
        ("noises", 4, "noises an observation, of which batch_size is a multiple"),
        ("uses", 12, "uses of a coupling"),
        ("naive_steps", 1, "timed steps without reuse"),
        ("lives", 1, "timed lives of the buffer, each of as many steps as a coupling has uses"),
        ("repeats", 1, "timed runs of each part of the roofline"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    options = parser.parse_args()
    for name in ("batch_size", "noises", "uses", "naive_steps", "lives", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}={getattr(options, name)}: give at least 1")
    if options.batch_size % options.noises:
        parser.error(
            f"--batch_size={options.batch_size}: give a multiple of --noises={options.noises}, so that every life "
            "of the buffer is whole"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda: torch sees no CUDA device here; give --device=cpu")
    return options


if __name__ == "__main__":
    main()
