"""The main job: a teacher's checkpoint in, a one-step student and its measures out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lerobot.utils.constants import PRETRAINED_MODEL_DIR

from chordflow.console import bar, say
from chordflow.couplings import open_split
from chordflow.errors import UserError
from chordflow.experiments.collect import collected
from chordflow.experiments.config import AUTO, ReflowJobConfig
from chordflow.experiments.measured import measured_students, read_beforehand
from chordflow.experiments.provenance import HELD_OUT, JUDGED, Round, device_name, load_teacher, read_record
from chordflow.experiments.run_folder import new_folder, only_run, refuse_existing, resumable, resume_command
from chordflow.experiments.share import RunLogger, tracked
from chordflow.experiments.stored_couplings import described
from chordflow.experiments.train import Job, ready, refuse_unused_points
from chordflow.results.schema import RESULTS, STUDENT, CouplingSummary, LossCurve, Results
from chordflow.results.wording import plural
from chordflow.training.checkpoints import check_same_size
from chordflow.training.distributed import Processes, current, fsdp_is_asked_for
from chordflow.training.loop import METRICS, Trained, read_metrics, train
from chordflow.training.methods import Method
from chordflow.training.steps import Passed, check_sharding


@dataclass(frozen=True)
class Finished:
    """What a run leaves behind.

    Attributes:
        student: the student's `pretrained_model` folder.
        measured: what was measured; None in all processes but the first, which measures.
        log: of a run on Weights & Biases, which goes on until `log.end`.
    """

    student: Path
    measured: Results | None
    log: RunLogger | None = None

    @property
    def results(self) -> Results:
        """What was measured, in the process that has measured; ValueError in the others."""
        if self.measured is None:
            raise ValueError("this process has trained, and another one measures")
        return self.measured


@contextlib.contextmanager
def begun(config: ReflowJobConfig, command: list[str], resume_from: Path | None) -> Iterator[Job]:
    """Loads the teacher, opens the dataset and holds the run's folder, which is made where the run is new."""
    started = time.perf_counter()
    first = current().first
    check_sharding(config.optimizer, fsdp_is_asked_for())
    if resume_from is None:
        refuse_unused_points(config)
        if first:
            refuse_existing(config.output_dir)
    teacher_dir, teacher = load_teacher(config.teacher, config.device, config.rename_map)
    config.coupling.settle(config.teacher.num_inference_steps or teacher.default_num_steps)
    record = read_record(resume_from / PRETRAINED_MODEL_DIR) if resume_from is not None else {}
    held_out = record.get(HELD_OUT)
    # A run leaves out what it began with leaving out.
    judged = config.rounds == AUTO if resume_from is None else record.get(JUDGED, False)
    needs_actions = config.method.build().needs.actions
    split = open_split(
        config.dataset,
        teacher,
        tolerance_s=config.tolerance_s,
        actions=needs_actions,
        held_out=held_out,
        judged=judged,
    )
    if resume_from is not None and held_out is None and split.whole_tasks:
        raise UserError(
            f"dataset.repo_id={config.dataset.repo_id} has tasks with a single episode, and the run began with an "
            "older chordflow, which has trained on what would be measured now; start a new run."
        )
    if first:
        read_beforehand(split, config.measure)
        if split.judged is not None:
            read_beforehand(replace(split, held_out=split.judged), config.measure)
            judging = plural(len(split.judged_episodes), "episode")
            say(f"Rounds:  decided on {judging} held out for this alone")
    nothing = contextlib.nullcontext()
    folder = new_folder(config.output_dir) if resume_from is None and first else nothing
    alone = only_run(config.output_dir) if first else nothing
    with folder, alone, tracked(config, teacher.family) as log:
        yield Job(config, teacher, teacher_dir, split, command, log)
    say(f"Done in {time.perf_counter() - started:.0f} s.")


def run_round(
    job: Job, resume_from: Path | None, *, of: Round | None = None, on_step: Callable[[], None] = lambda: None
) -> Finished:
    """Trains a student, measures it and saves the results.

    Args:
        job: what begins; its folder is there.
        resume_from: a checkpoint folder of this run.
        of: the round of a job of several, for the student's record.
        on_step: called after every step, when the checkpoints of the steps before are written.

    Raises:
        UserError: for input that cannot be used, or a file that cannot be written.
    """
    config, teacher = job.config, job.teacher
    millions = sum(p.numel() for p in teacher.module.parameters()) / 1e6
    say(
        f"Teacher: {config.teacher.path} ({teacher.family}, {millions:.2f} M parameters, "
        f"on {device_name(teacher.device)}), deployed at {config.teacher.deployed_steps(teacher)} steps"
    )
    say(
        f"Data:    {config.dataset.repo_id}, {len(job.split.train):,} observations to train on, "
        f"{plural(len(job.split.held_out_episodes), 'episode')} held out{job.split.caveats}"
    )
    with contextlib.ExitStack() as stack:
        trained, couplings = _train(job, resume_from, of, on_step, stack)
    student_dir = trained.checkpoint / PRETRAINED_MODEL_DIR
    if not current().first:
        return Finished(student_dir, None)
    say(f"Student: {student_dir}")
    if job.log is not None:
        job.log.log_policy(trained.checkpoint)
    metrics = read_metrics(config.output_dir / METRICS)
    results = measured_students(
        job,
        {STUDENT: student_dir},
        seeds={"training": config.seed},
        couplings=couplings,
        loss=LossCurve([int(line["step"]) for line in metrics], [line["loss"] for line in metrics]),
        training_s=trained.seconds,
    )
    save_results(results, config.output_dir)
    return Finished(student_dir, results, job.log)


def save_results(results: Results, output_dir: Path) -> None:
    """Writes `results.json` into a run's folder; says how to resume where that fails."""
    try:
        results.save(output_dir / RESULTS)
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise UserError(
            f"output_dir={output_dir}: {RESULTS} cannot be written ({error.__cause__.strerror}); the "
            f"checkpoints are whole: make room and resume with: {resume_command(output_dir)}"
        ) from error


def _train(
    job: Job,
    resume_from: Path | None,
    of: Round | None,
    on_step: Callable[[], None],
    stack: contextlib.ExitStack,
) -> tuple[Trained, CouplingSummary | None]:
    config, processes = job.config, current()
    begun = stack.enter_context(ready(job, resume_from))
    buffer, method, store, start = begun.buffer, begun.method, begun.store, begun.start
    observations = begun.observations
    trained_millions = sum(p.numel() for p in begun.student.trainable.values()) / 1e6
    optimizer = config.optimizer.get_choice_name(type(config.optimizer))
    say(
        f"Method:  {config.method_name}, {config.steps:,} steps of {_step_size(config, processes)}, {optimizer}, "
        f"lr {config.optimizer.lr:g}, {trained_millions:.2f} M trained parameters; "
        + (begun.own_prefix or "one prefix for teacher and student")
        + ("; for one step only" if method.step_counts == (1,) else "")
    )
    if store is not None:
        say(f"Store:   {described(store, buffer, config.steps)}")
    if resume_from is not None:
        check_same_size(resume_from, buffer.step_size, f"batch_size={_step_size(config, processes)}")
    if start > 0:
        observations.check_complete(buffer.made_blocks(start - 1), buffer.block_size)
    if observations.described:
        say(f"Acting:  {observations.described}")
    # From here on, what fails leaves checkpoints.
    stack.enter_context(resumable(config.output_dir))
    begin = min(start, config.steps - 1)
    with bar("couplings") as progress, buffer.enough_memory():
        for done in buffer.fill(begin):
            progress.update(done, len(buffer.held_blocks(begin)), _megabytes(buffer.num_bytes))
    (buffer_bytes,) = processes.sum([buffer.num_bytes])
    held = len(buffer.window.held(begin))
    say(
        f"Buffer:  {held * buffer.block_size:,} observations {_with_what(config, method)}, {_megabytes(buffer_bytes)}"
        + f", growing to {buffer.num_blocks * buffer.block_size:,}" * (held < buffer.num_blocks)
        + ", never replaced" * (config.buffer.uses_per_coupling is None)
    )
    with bar("training") as progress:

        def show(passed: Passed, rate: float) -> None:
            on_step()
            observations.step = passed.step
            note = f"loss {passed.loss:.5f}, lr {passed.lr:.1e}, {rate:,.0f} samples/s"
            progress.update(passed.step, config.steps, note)

        def log(line: dict[str, float]) -> None:
            if job.log is not None:
                # One run shows all rounds.
                job.log.log_dict(line, (of.number - 1 if of else 0) * config.steps + int(line["step"]))

        trained = train(
            job.loop_config(),
            begun.student.policy,
            begun.student.trainable,
            buffer,
            method,
            config.output_dir,
            lambda folder, weights: begun.write(folder, weights, of),
            resume_from=resume_from,
            on_step=show,
            on_line=log,
        )
    rollouts = observations.summary()
    if rollouts is not None:
        say(f"Acting:  {collected(rollouts)}")
    if not method.needs.couplings:
        return trained, None
    # A window never shrinks: after the last step it is at its largest.
    (buffer_bytes,) = processes.sum([buffer.num_bytes])
    blocks = buffer.made_blocks(config.steps - 1)
    return trained, CouplingSummary(
        observations=(min(blocks, store.num_blocks) if store is not None else blocks) * buffer.block_size,
        noises_per_observation=config.buffer.noises_per_observation,
        solver=config.coupling.solver,
        num_steps=config.coupling.steps,
        buffer_bytes=round(buffer_bytes),
        rollouts=rollouts,
        grid_power=config.coupling.grid_power,
    )


def _step_size(config: ReflowJobConfig, processes: Processes) -> str:
    """What makes up the couplings of a step."""
    times = config.gradient_accumulation_steps
    parts = f" x {times} at a time" * (times > 1)
    shared = f" in each of {processes.count} processes" * (processes.count > 1)
    return f"{config.batch_size}{parts}{shared}{' with FSDP2' * fsdp_is_asked_for()}"


def _with_what(config: ReflowJobConfig, method: Method) -> str:
    """What the buffer holds beside each observation."""
    if not method.needs.couplings:
        return (
            "with their demonstrations, no couplings (--coupling.* and --buffer.adaptive_share are not used)"
        )
    made = f"by {config.coupling.steps} {config.coupling.solver} steps"
    shown = " and their demonstrations" * method.needs.actions
    noises = config.buffer.noises_per_observation
    return f"x {noises} noises on average{config.buffer.sharing}, {made}{shown}"


def _megabytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MB in memory"
