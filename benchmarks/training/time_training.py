"""Training with and without reuse of couplings, side by side: samples a second, and gap by seconds of training.

    python benchmarks/training/time_training.py --teacher=CHECKPOINT --dataset=USER/DATASET --output=bench.json

README.md beside this script says how it is measured and how to read what it prints.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from loops import NAIVE, TrainingStep, naive_couplings
from roofline import flop_per_sample, measure_roofline, shares_of_peak
from schedules import table

from chordflow.console import bar
from chordflow.couplings import (
    BufferConfig,
    CouplingBuffer,
    CouplingConfig,
    DatasetConfig,
    Observations,
    open_split,
)
from chordflow.errors import UserError
from chordflow.evaluation.gap import Modes, action_gap
from chordflow.evaluation.paired import MeasureConfig, Way, encode_held_out, solve
from chordflow.experiments.provenance import device_name
from chordflow.policies import FlowPolicy, load_flow_policy, resolve_checkpoint
from chordflow.policies.base import PREFIX_ROLES
from chordflow.quiet import silence_libraries
from chordflow.results.schema import installed_versions
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.optimizers import SOAPConfig
from chordflow.training.steps import LoopConfig, Stopwatch, Training
from chordflow.training.student import Student, StudentInit, make_student

Gap = dict[str, float]
ONE = Way("euler", 1)


def main() -> None:
    """Reads the command line; measures, saves after every run, and prints the table."""
    options = read()
    silence_libraries()
    try:
        bench = measure(options)
    except UserError as error:
        sys.exit(str(error))
    roofline, naive = bench["roofline"], bench["loops"][0]
    print(f"{table(bench)}\n\nshare of the peak: encode, velocity, step: {shares_of_peak(roofline)}")
    for loop in bench["loops"]:
        flop = flop_per_sample(roofline, loop)
        less = flop_per_sample(roofline, naive) / flop
        print(f"{loop['name']}: {flop:.3g} operations a sample, {less:.1f} times fewer than naive")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Trains every loop with every seed for every budget; writes the file after each run."""
    folder = resolve_checkpoint(options.teacher, None)
    teacher = load_flow_policy(folder, device=options.device)
    teacher.module.requires_grad_(False)
    device, roles, size = teacher.device, list(teacher.default_train_roles), options.naive_batch_size
    clock = time.process_time if options.clock == "own" else time.perf_counter
    if options.clock == "own" and (device.type != "cpu" or torch.get_num_threads() != 1):
        raise UserError("--clock=own counts one thread; set OMP_NUM_THREADS=1 and give --device=cpu.")
    if set(roles) & set(PREFIX_ROLES):
        raise UserError(f"{teacher.family}: its students train the prefix, which this script does not time.")
    split = open_split(DatasetConfig(options.dataset, root=options.root), teacher)
    deployed = CouplingConfig("euler", teacher.default_num_steps, grid_power=1.0)
    coupling = CouplingConfig()
    coupling.settle(teacher.default_num_steps)

    def buffer(config: BufferConfig, seed: int, batch_size: int = 64, parts: int = 1) -> CouplingBuffer:
        return CouplingBuffer(
            teacher, split.train, coupling, config, seed=seed, batch_size=batch_size, parts=parts
        )

    def student_of(seed: int) -> Student:
        return make_student(teacher, folder, StudentInit.TEACHER, roles, seed=seed)

    sources: dict[str, Callable[[int], CouplingBuffer]] = {
        NAIVE: lambda seed: naive_couplings(teacher, split.train, deployed, seed, size)
    }
    loops = [described(NAIVE, size)]
    for name, schedule in options.schedules.items():
        config = BufferConfig(**schedule.get("buffer", {}))
        sizes = (schedule.get("batch_size", 64), schedule.get("gradient_accumulation_steps", 1))
        # Refuses what cannot be trained by before the others have trained for hours.
        buffer(config, 0, *sizes)
        sources[name] = lambda seed, config=config, sizes=sizes: buffer(config, seed, *sizes)  # type: ignore[misc]
        loops.append(described(name, *sizes, config, schedule.get("budgets")))
    once = buffer(BufferConfig(size, 1, None, size, adaptive_share=0.0), 0, size)
    list(once.fill(0))
    items = next(split.train.batches(list(range(min(size, len(split.train)))), size))
    timed = student_of(0)
    step = TrainingStep(timed.policy, timed.trainable, SOAPConfig(lr=options.lr), seed=0)
    gap, floor, untrained = held_out_gap(teacher, split.held_out, options.observations)
    bench: dict[str, Any] = {
        "command": sys.argv,
        "settings": {name: str(value) for name, value in vars(options).items()},
        "versions": installed_versions(),
        "device": device_name(device),
        "teacher": options.teacher,
        "teacher_num_steps": teacher.default_num_steps,
        "loops": loops,
        "budgets": options.budgets,
        "seeds": options.seeds,
        "clock": options.clock,
        "floor": floor,
        "untrained": untrained,
        "roofline": measure_roofline(teacher, items, coupling, deployed, step, once, repeats=options.repeats),
        "runs": [],
    }
    # Loops take turns, so that whatever else the machine does meets all of them alike.
    for seed, budget, loop in product(options.seeds, options.budgets, loops):
        if budget not in (loop["budgets"] or options.budgets):
            continue
        name, student, source = loop["name"], student_of(seed), sources[loop["name"]](seed)
        config = LoopConfig(steps=None, seconds=budget, seed=seed, optimizer=SOAPConfig(lr=options.lr))
        with bar(f"{name}, seed {seed}, {budget:g} s") as progress:
            cpu, watch = time.process_time(), Stopwatch(device, clock)
            training = Training(
                config, student.policy, student.trainable, source, ReflowMethodConfig().build(), watch=watch,
                on_fill=partial(progress.update, total=budget),
            )  # fmt: skip
            for passed in training.run():
                progress.update(passed.seconds, budget)
            cpu = time.process_time() - cpu
        passed = training.passed
        bench["runs"].append({
            "loop": name, "seed": seed, "budget_s": budget, "ready_s": passed.ready_s, "cpu_s": cpu,
            "loss": passed.loss, "seconds": passed.seconds, "steps": passed.step, "samples": passed.samples,
            "gap": gap(student.policy),
        })  # fmt: skip
        options.output.write_text(json.dumps(bench, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return bench


def held_out_gap(
    teacher: FlowPolicy, observations: Observations, number: int
) -> tuple[Callable[..., Gap], Gap, Gap]:
    """Solves the teacher on held-out pairs.

    Returns:
        What gives the one-step gap of a student with its present weights, then the gap of the teacher as deployed
        (the floor), and that of its one untrained step.
    """
    config = MeasureConfig(num_observations=number, num_steps=[1])
    held_out = encode_held_out({"teacher": teacher}, observations, config)
    context, kept = held_out.contexts["teacher"], config.converged_noises
    deployed = Way("euler", teacher.default_num_steps)
    fine = Way("euler", config.fine_num_steps(teacher.default_num_steps))
    ends = solve(teacher, context, held_out.noise, [deployed])[deployed]
    modes, noise = Modes(ends, teacher.chunk), held_out.noise[:, :kept]
    solved = solve(teacher, context, noise, [fine, ONE])

    @torch.no_grad()
    def figures(found: torch.Tensor) -> Gap:
        gap = action_gap(found, solved[fine], modes, teacher)
        other = action_gap(found, ends[:, :kept], modes, teacher)
        return {"rms": gap.rms, "median": gap.median, "flip_rate": gap.flip_rate, "deployed_rms": other.rms}

    def of(student: FlowPolicy) -> Gap:
        return figures(solve(student, context, noise, [ONE])[ONE])

    return of, figures(ends[:, :kept]), figures(solved[ONE])


def described(
    name: str, batch_size: int, parts: int = 1, buffer: BufferConfig | None = None, budgets: list[float] | None = None
) -> dict[str, Any]:  # fmt: skip
    """A loop as results name it; without a buffer the naive one."""
    naive = {"noises_per_observation": 1, "uses_per_coupling": 1, "num_observations": None}
    sizes = {"batch_size": batch_size, "gradient_accumulation_steps": parts, "budgets": budgets}
    return {"name": name, **sizes, **(asdict(buffer) if buffer else naive)}


def read() -> argparse.Namespace:
    """The options; leaves with code 2 and a sentence where they cannot be used."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", required=True, help="checkpoint")
    parser.add_argument("--dataset", required=True, help="LeRobot dataset whose observations are used")
    parser.add_argument("--root", help="the dataset's local folder")
    parser.add_argument("--output", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--clock", choices=("wall", "own"), default="wall", help="own: this process's seconds"
    )
    for name, default, text in (
        ("budgets", [30.0, 60.0, 120.0, 180.0], "seconds of training"),
        ("seeds", [0, 1, 2], "a run of every loop and budget for each"),
        ("schedules", {"default": {}}, "batch_size, gradient_accumulation_steps, buffer and budgets by name"),
        ("naive_batch_size", 64, "couplings a step of the loop without reuse"),
        ("observations", 200, "held out, for the gap"),
        ("repeats", 5, "timed runs of each part of the roofline"),
    ):
        parser.add_argument(f"--{name}", type=json.loads, default=default, help=text)
    options = parser.parse_args()
    options.budgets = sorted({float(seconds) for seconds in options.budgets})
    for name, schedule in options.schedules.items():
        if name == NAIVE or not set(schedule.get("budgets") or options.budgets) <= set(options.budgets):
            parser.error(f"--schedules: {name!r} is taken or has budgets that --budgets lacks; change it")
    return options


if __name__ == "__main__":
    main()
