"""Methods of training side by side: the same teacher, data, seeds and budget, one table."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from chordflow.console import bar, say
from chordflow.evaluation.yardstick import Yardstick
from chordflow.experiments.compare_config import COMPARE, CompareConfig, Planned
from chordflow.experiments.compare_setup import Bed, begun, gone_on_with, made, refuse_several_processes
from chordflow.experiments.compare_training import Budget, train_student
from chordflow.experiments.provenance import weights_sha256
from chordflow.experiments.side_by_side import (
    figures,
    open_yardstick,
    or_without,
    refuse_existing,
    reloaded,
    run_in,
    without_training,
)
from chordflow.results.compare import Comparison, Run


def compare(
    config: CompareConfig,
    planned: Sequence[Planned],
    command: list[str],
    on_run: Callable[[Comparison], None] = lambda comparison: None,
) -> Comparison:
    """Runs what is missing of a comparison; its file is written after every run.

    Args:
        config: all settings.
        planned: what `config.methods` names.
        command: the command line, for the file.
        on_run: called with what is measured so far after the teacher and after every run.

    Raises:
        UserError: for input that cannot be used.
    """
    refuse_several_processes()
    output = config.output_dir
    if not config.resume:
        refuse_existing(output, COMPARE, resume_command(output))
    before = Comparison.load(output / COMPARE) if config.resume else None
    bed = made(config, planned)
    comparison = begun(bed, command)
    if before is not None:
        comparison = gone_on_with(comparison, before)
    with run_in(output, COMPARE, resume_command(output), resume=config.resume):
        return _run(bed, comparison, on_run)


def resume_command(output_dir: Path) -> str:
    """The command line that goes on with a comparison."""
    return f"chordflow compare --resume=true --config_path={shlex.quote(str(output_dir / COMPARE))}"


def run_folder(output_dir: Path, method: str, seed: int) -> Path:
    """Where a run of a comparison lies."""
    return output_dir / method / f"seed_{seed}"


def _run(bed: Bed, comparison: Comparison, on_run: Callable[[Comparison], None]) -> Comparison:
    # Whatever else the machine does meets all methods alike, and an interrupted comparison has all of a seed.
    pairs = [(name, seed) for seed in bed.config.seeds for name in bed.planned]
    done = {(run.method, run.seed) for run in comparison.runs if _finished(bed, run)}
    missing = [pair for pair in pairs if pair not in done]
    budget = f"{comparison.steps:,} steps" if comparison.steps is not None else f"{comparison.seconds:g} s"
    say(f"Compare: {len(missing)} of {len(pairs)} runs to go, {budget} each, on {comparison.device}")
    if missing or comparison.untrained is None:
        comparison = _without_training(
            bed, comparison, yardstick := open_yardstick(bed.config, bed.origin, bed.split)
        )
        on_run(comparison)
        for name, seed in missing:
            comparison = _one(bed, comparison, yardstick, name, seed)
            on_run(comparison)
    comparison.save(bed.config.output_dir / COMPARE)
    return comparison


def _finished(bed: Bed, run: Run) -> bool:
    return run.figures is not None and (bed.episodes is None or bool(run.success))


def _without_training(bed: Bed, comparison: Comparison, yardstick: Yardstick) -> Comparison:
    """The comparison with the teacher's own figures."""
    config = bed.config
    path = config.output_dir / COMPARE
    if comparison.untrained is None:
        held_out, untrained = without_training(config, bed.origin, bed.split, yardstick)
        comparison = replace(comparison, held_out=held_out, untrained=untrained)
        comparison.save(path)
    assert comparison.untrained is not None
    if bed.episodes is not None and not comparison.untrained.success:
        success = bed.episodes.teacher()
        comparison = replace(comparison, untrained=replace(comparison.untrained, success=success))
        comparison.save(path)
    return comparison


def _one(bed: Bed, comparison: Comparison, yardstick: Yardstick, name: str, seed: int) -> Comparison:
    """The comparison with one run more, saved after each of its parts."""
    path, label = bed.config.output_dir / COMPARE, f"{name}, seed {seed}"
    run = next((r for r in comparison.runs if (r.method, r.seed) == (name, seed)), None)
    others = [other for other in bed.planned if other != name]
    fails = partial(or_without, label, others, resume_command(bed.config.output_dir), "methods")
    if run is None:
        with fails():
            run = _trained(bed, name, seed, label)
        comparison = _with(comparison, run)
        comparison.save(path)
    with fails():
        student = reloaded(bed.config, run.student, run.weights_sha256)
    if run.figures is None:
        with fails(), bar(f"{label}, gaps") as progress:
            run = replace(run, figures=figures(yardstick.of(name, student, progress.update)))
        comparison = _with(comparison, run)
        comparison.save(path)
    if bed.episodes is not None and not run.success:
        folder = run_folder(bed.config.output_dir, name, seed)
        run = replace(run, success=bed.episodes.student(name, student, folder, label))
        comparison = _with(comparison, run)
        comparison.save(path)
    return comparison


def _with(comparison: Comparison, run: Run) -> Comparison:
    others = [r for r in comparison.runs if (r.method, r.seed) != (run.method, run.seed)]
    return replace(comparison, runs=[*others, run])


def _trained(bed: Bed, name: str, seed: int, label: str) -> Run:
    config, folder = bed.config, run_folder(bed.config.output_dir, name, seed)
    # Of a run that was interrupted before it was written down.
    shutil.rmtree(folder, ignore_errors=True)
    # What is collected while it trains is written there.
    folder.mkdir(parents=True, exist_ok=True)
    job = replace(bed.planned[name].config, seed=seed, output_dir=folder)
    trained = train_student(
        job,
        Budget(config.steps, config.seconds),
        bed.origin.policy,
        bed.origin.folder,
        bed.splits[job.method.build().needs_actions],
        label=label,
    )
    passed = trained.passed
    return Run(
        method=name,
        seed=seed,
        student=os.path.relpath(trained.student, config.output_dir),
        weights_sha256=weights_sha256(trained.student),
        training_s=passed.seconds,
        ready_s=passed.ready_s,
        steps=passed.steps,
        samples=passed.samples,
        loss=passed.loss,
        buffer_bytes=trained.buffer_bytes,
        rollouts=trained.rollouts,
    )
