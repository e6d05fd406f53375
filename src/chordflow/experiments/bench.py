"""Training with and without reuse of couplings, side by side on one machine: speed, and gap by wall-clock time."""

from __future__ import annotations

import contextlib
import shlex
import time
from dataclasses import replace
from pathlib import Path

import draccus
import torch

from chordflow.console import bar, say
from chordflow.couplings import BufferConfig, CouplingBuffer, open_split
from chordflow.errors import UserError
from chordflow.experiments.bench_config import ClockName, TrainingBenchConfig
from chordflow.experiments.bench_gap import HeldOutGap
from chordflow.experiments.bench_plan import Part, planned
from chordflow.experiments.bench_sources import Bed, check_schedules, enough_memory_for, source_of
from chordflow.experiments.compare_setup import refuse_several_processes
from chordflow.experiments.provenance import device_name, refuse_student_of_few_steps, weights_sha256
from chordflow.experiments.roofline import PeakMemory, measure_roofline
from chordflow.experiments.side_by_side import refuse_existing, run_in
from chordflow.experiments.student_results import deployed_steps
from chordflow.policies import load_flow_policy, resolve_checkpoint
from chordflow.results.bench import NAIVE, BenchLoop, BenchRun, Look, Roofline, TrainingBench
from chordflow.results.schema import installed_versions
from chordflow.training.memory import enough_memory_at
from chordflow.training.student import Student, StudentInit, make_student, shares_prefix
from chordflow.training.timed import Passed, Stopwatch, TrainingStep, train_for

BENCH = "bench.json"

ADDABLE = ("budgets", "seeds", "schedules", "output_dir", "resume", "tolerance_s")
"""Settings that may be another when a benchmark is gone on with."""

ROOFLINE_REPEATS = 5


def bench_training(config: TrainingBenchConfig, command: list[str]) -> TrainingBench:
    """Runs what is missing of a benchmark; its file is written after every run.

    Args:
        config: all settings.
        command: the command line, for the file.

    Raises:
        UserError: for input that cannot be used.
    """
    refuse_several_processes("a benchmark", "time several by chordflow reflow")
    output = config.output_dir
    if not config.resume:
        refuse_existing(output, BENCH, resume_command(output))
    before = TrainingBench.load(output / BENCH) if config.resume else None
    teacher_dir = resolve_checkpoint(config.teacher.path, config.teacher.revision)
    refuse_student_of_few_steps(teacher_dir, config.teacher.path)
    teacher = load_flow_policy(teacher_dir, device=config.device, rename_map=config.rename_map)
    teacher.module.requires_grad_(False)
    own_thread = torch.get_num_threads() == 1 and teacher.device.type == "cpu"
    if config.clock == ClockName.OWN and not own_thread:
        raise UserError(
            f"clock=own counts the seconds of one thread, and here {device_name(teacher.device)} work; set "
            "OMP_NUM_THREADS=1 and give --device=cpu, or choose clock=wall."
        )
    split = open_split(config.dataset, teacher, tolerance_s=config.tolerance_s)
    bed = Bed(config, teacher, teacher_dir, split)
    bench = _begun(bed, command)
    check_schedules(bed)
    if before is not None:
        bench = _gone_on_with(bench, before)
    with run_in(output, BENCH, resume_command(output), resume=config.resume):
        return _run(bed, bench)


def resume_command(output_dir: Path) -> str:
    """The command line that goes on with a benchmark."""
    path = shlex.quote(str(output_dir / BENCH))
    return f"chordflow bench training --resume=true --config_path={path}"


def _begun(bed: Bed, command: list[str]) -> TrainingBench:
    config = bed.config
    steps = deployed_steps(config.teacher, bed.teacher)
    config.coupling.settle(steps)
    return TrainingBench(
        command=command,
        settings=draccus.encode(config),
        versions=installed_versions(),
        device=device_name(bed.teacher.device),
        teacher=config.teacher.path,
        teacher_sha256=weights_sha256(bed.teacher_dir),
        # A teacher that is itself a student of one step is held to what its couplings are made by.
        teacher_num_steps=steps,
        loops=[
            BenchLoop(NAIVE, config.naive_batch_size),
            *(schedule.described(name) for name, schedule in config.schedules.items()),
        ],
        budgets=config.budgets,
        seeds=config.seeds,
        clock=str(config.clock),
    )


def _gone_on_with(now: TrainingBench, before: TrainingBench) -> TrainingBench:
    """The benchmark with what was measured before, if that was measured in the same way.

    Raises:
        UserError: if it was not.
    """
    for name, value in now.settings.items():
        if name not in ADDABLE and before.settings.get(name) != value:
            raise UserError(
                f"{name}: the benchmark began with {before.settings.get(name)} and going on cannot change it; leave "
                "the option out, or start a new one."
            )
    measured = {run.loop for run in before.runs}
    known = {loop.name: loop for loop in before.loops if loop.name in measured}
    for loop in now.loops:
        if replace(known.get(loop.name, loop), budgets=loop.budgets) != loop:
            raise UserError(
                f"schedules: {loop.name!r} was another schedule when the benchmark began; choose a new name for this."
            )
    if now.device != before.device:
        raise UserError(
            f"the benchmark began on {before.device} and this is {now.device}: times of two machines are not side by "
            "side; start a new one."
        )
    if now.teacher_sha256 != before.teacher_sha256:
        raise UserError(
            f"teacher.path={now.teacher}: its weights are not those that the benchmark began with; restore them or "
            "start a new one."
        )
    return replace(
        now,
        roofline=before.roofline,
        floor=before.floor,
        untrained=before.untrained,
        pairs=before.pairs,
        runs=before.runs,
    )


def _run(bed: Bed, bench: TrainingBench) -> TrainingBench:
    config, path = bed.config, bed.config.output_dir / BENCH
    parts = planned(config)
    done = {(run.loop, run.seed, run.budget_s): {look.mark_s for look in run.looks} for run in bench.runs}
    missing = [p for p in parts if not set(p.marks) <= done.get((p.loop, p.seed, p.budget_s), set())]
    say(
        f"Benchmark: {len(missing)} of {len(parts)} runs to go, {sum(p.budget_s for p in missing):.0f} s of training "
        f"on {bench.device}"
    )
    if bench.runs and not missing:
        # Budgets or seeds may have been left out this time.
        bench.save(path)
        return bench
    if bench.roofline is None:
        bench = replace(bench, roofline=_roofline(bed))
    with bar("teacher") as progress, _measuring(bed):
        gap = HeldOutGap(
            bed.teacher, bed.split.held_out, config.measure, bench.teacher_num_steps, progress.update
        )
    bench = replace(bench, floor=gap.floor, untrained=gap.untrained, pairs=gap.pairs)
    for part in missing:
        run = _trained(bed, gap, part)
        others = [r for r in bench.runs if (r.loop, r.seed, r.budget_s) != (run.loop, run.seed, run.budget_s)]
        bench = replace(bench, runs=[*others, run])
        bench.save(path)
    bench.save(path)
    return bench


def _measuring(bed: Bed) -> contextlib.AbstractContextManager[None]:
    size = bed.config.measure.batch_size
    return enough_memory_at("measure.batch_size", size, "noises were measured", bed.teacher.device)


def _trained(bed: Bed, gap: HeldOutGap, part: Part) -> BenchRun:
    config, device = bed.config, bed.teacher.device
    student, shared = _student(bed, part.seed)
    with source_of(bed, part, student, shared) as source, enough_memory_for(bed, part, source):
        step = _step(config, student, part.seed, source.parts)
        memory = PeakMemory(device)
        looks: list[Look] = []
        last: list[Passed] = []
        held = 0
        with bar(f"{part.loop}, seed {part.seed}, {part.budget_s:g} s") as progress:

            def on_step(passed: Passed) -> None:
                nonlocal held
                memory.look()
                held = max(held, source.num_bytes)
                note = f"{passed.samples:,} samples" if passed.steps else "couplings"
                progress.update(min(passed.seconds, part.budget_s), part.budget_s, note)

            def look(passed: Passed) -> None:
                with own.stopped(), _measuring(bed):
                    found = gap.of(student.policy, shares_prefix=shared)
                    looks.append(Look(passed.mark, passed.seconds, passed.steps, passed.samples, found))
                    last[:] = [passed]
                    progress.update(
                        min(passed.seconds, part.budget_s), part.budget_s, f"gap {100 * found.rms:.1f} %"
                    )

            own = Stopwatch(device, time.process_time)
            clock = time.process_time if config.clock == ClockName.OWN else time.perf_counter
            watch = Stopwatch(device, clock)
            train_for(part.budget_s, part.marks, step, source, watch, look=look, on_step=on_step)
    return BenchRun(
        part.loop,
        part.seed,
        part.budget_s,
        ready_s=last[0].ready_s,
        cpu_s=own.seconds,
        loss=last[0].loss,
        buffer_bytes=held,
        peak_bytes=memory.read(),
        looks=looks,
    )


def _student(bed: Bed, seed: int) -> tuple[Student, bool]:
    roles = list(bed.teacher.default_train_roles)
    student = make_student(
        bed.teacher, bed.teacher_dir, StudentInit.TEACHER, roles, seed=seed, rename_map=bed.config.rename_map
    )
    return student, shares_prefix(bed.teacher, student.policy, roles)


def _step(config: TrainingBenchConfig, student: Student, seed: int, parts: int) -> TrainingStep:
    method = config.method.build()
    return TrainingStep(student.policy, student.trainable, method, config.optimizer, seed=seed, parts=parts)


def _roofline(bed: Bed) -> Roofline:
    config, size = bed.config, bed.config.naive_batch_size
    student, _ = _student(bed, 0)
    once = BufferConfig(size, 1, None, size, adaptive_share=0.0)
    with enough_memory_at("naive_batch_size", size, "couplings were made or trained on", bed.teacher.device):
        source = CouplingBuffer(bed.teacher, bed.split.train, config.coupling, once, seed=0, batch_size=size)
        list(source.fill(0))
        order = list(range(min(size, len(bed.split.train))))
        items = next(bed.split.train.batches(order, size))
        step = _step(config, student, 0, 1)
        with bar("roofline") as progress:
            return measure_roofline(
                bed.teacher, items, config.coupling, bed.naive_coupling, step, source,
                repeats=ROOFLINE_REPEATS, on_piece=progress.update,
            )  # fmt: skip
