"""One student of a comparison: trained within a budget and written as a checkpoint."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from torch import Tensor

from chordflow.console import bar, say
from chordflow.couplings import CouplingBuffer, Split
from chordflow.errors import UserError
from chordflow.experiments.collect import run_observations
from chordflow.experiments.config import ReflowJobConfig
from chordflow.experiments.provenance import write_configs
from chordflow.experiments.train import own_prefix
from chordflow.policies import FlowPolicy, resolve_checkpoint, save_student
from chordflow.policies.base import PREFIX_ROLES
from chordflow.results.schema import RolloutObservations
from chordflow.training.memory import enough_memory
from chordflow.training.student import Student, make_student, shares_prefix
from chordflow.training.timed import Passed, Source, Stopwatch, TrainingStep, train_for, train_steps


@dataclass(frozen=True)
class Budget:
    """What every run may use; one of the two.

    Attributes:
        steps: optimiser steps.
        seconds: the making of couplings included.
    """

    steps: int | None
    seconds: float | None


@dataclass(frozen=True)
class Made:
    """A student on disk, and what it took.

    Attributes:
        student: its `pretrained_model` folder.
        passed: where its training ended.
        buffer_bytes: the most memory of couplings and encoded observations.
        rollouts: the observations of episodes; None where all were the dataset's.
        looks: the checkpoints that were asked for on the way, by step; the last is the student's own.
    """

    student: Path
    passed: Passed
    buffer_bytes: int
    rollouts: RolloutObservations | None
    looks: dict[int, Path] = field(default_factory=dict)


def _as_it_is(source: Source) -> Source:
    return source


def train_student(
    config: ReflowJobConfig,
    budget: Budget,
    teacher: FlowPolicy,
    teacher_dir: Path,
    split: Split,
    *,
    label: str,
    look_at: Sequence[int] = (),
    on_step: Callable[[Passed], None] = lambda passed: None,
    seen_by: Callable[[Source], Source] = _as_it_is,
) -> Made:
    """Trains within a budget and writes `pretrained_model` into the run's folder, whole or not at all.

    With a budget of steps it is the student of the same job of `chordflow reflow`.

    Args:
        config: of the run, with its seed and its folder.
        budget: of the run.
        teacher: the loaded teacher, frozen.
        teacher_dir: its local folder.
        split: the observations, with actions where the method looks at them.
        label: of the run, for the progress bar.
        look_at: steps after which the student is written as well, 0 before the first; not of a budget of seconds.
        on_step: told of every piece of work.
        seen_by: what stands between the couplings and the student that is trained on them.

    Raises:
        UserError: for settings that cannot be used, a loss that is not finite, or a file that cannot be written.
    """
    config = deepcopy(config)
    # Written out, so that the student's own record says what was trained.
    roles = config.student.train = config.student.train or list(teacher.default_train_roles)
    init_path = config.student.init_path
    student = make_student(
        teacher,
        teacher_dir,
        config.student.init,
        roles,
        seed=config.seed,
        rename_map=config.rename_map,
        init_dir=resolve_checkpoint(init_path, None, "student.init_path") if init_path is not None else None,
    )
    method = config.method.build()
    shared = shares_prefix(teacher, student.policy, roles)
    prefix_trains = bool(set(roles) & set(PREFIX_ROLES))
    if not shared:
        say(f"{label}: {own_prefix(prefix_trains)}")
    looks: dict[int, Path] = {}

    def write(folder: Path) -> Path:
        kept = (
            average.weights if average is not None else {k: v.detach() for k, v in student.trainable.items()}
        )
        return _write(config, folder, teacher_dir, student, kept)

    with contextlib.ExitStack() as stack, bar(label) as progress:
        largest = 0

        def show(passed: Passed) -> None:
            nonlocal largest
            on_step(passed)
            if passed.steps in look_at and passed.steps not in looks and passed.steps != budget.steps:
                with watch.stopped():
                    looks[passed.steps] = write(look_folder(config.output_dir, passed.steps))
            largest = max(largest, buffer.num_bytes)
            observations.step = passed.steps
            note = f"{passed.samples:,} samples" if passed.steps else "couplings"
            if budget.steps is not None:
                progress.update(passed.steps, budget.steps, note)
            elif budget.seconds is not None:
                progress.update(min(passed.seconds, budget.seconds), budget.seconds, note)

        watch = Stopwatch(teacher.device)
        observations = stack.enter_context(run_observations(config, split.train, teacher, student.policy))
        buffer = CouplingBuffer(
            teacher,
            observations.train,
            config.coupling,
            config.buffer,
            seed=config.seed,
            batch_size=config.batch_size,
            parts=config.gradient_accumulation_steps,
            num_workers=config.num_workers,
            student_encode=None if shared else student.policy.encode,
            student_context=not prefix_trains,
            needs=method.needs,
        )
        step = TrainingStep(
            student.policy,
            student.trainable,
            method,
            config.optimizer,
            seed=config.seed,
            parts=config.gradient_accumulation_steps,
        )
        average = _Average(step, student, config.ema.decay) if config.ema.enable else None
        with enough_memory(buffer):
            passed = _within(budget, config, average or step, seen_by(buffer), watch, show)
            if passed.steps:
                step.check(buffer, passed.steps - 1)
    config = replace(config, steps=max(1, passed.steps))
    folder = write(config.output_dir)
    if passed.steps in look_at:
        looks[passed.steps] = folder
    return Made(folder, passed, largest, observations.summary(), looks)


def look_folder(run_folder: Path, step: int) -> Path:
    """Where a student of a run lies as it was after so many steps."""
    return run_folder / f"step_{step:06d}"


def _within(
    budget: Budget,
    config: ReflowJobConfig,
    step: Callable[[Source, int, float], float],
    source: Source,
    watch: Stopwatch,
    show: Callable[[Passed], None],
) -> Passed:
    if budget.steps is not None:
        rates = _rates(budget.steps, config.scheduler.warmup(budget.steps))
        return train_steps(budget.steps, rates, step, source, watch, on_step=show)
    assert budget.seconds is not None
    ends: list[Passed] = []
    train_for(budget.seconds, [budget.seconds], step, source, watch, look=ends.append, on_step=show)
    return ends[0]


def _rates(steps: int, warmup: int) -> Callable[[int], float]:
    """Factor of the peak learning rate by step, as the training loop has it."""
    nothing = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=warmup).build(nothing, steps)
    (rule,) = scheduler.lr_lambdas
    return lambda step: float(rule(step))


class _Average:
    """A training step that keeps a moving average of the weights, as the training loop does."""

    def __init__(self, step: TrainingStep, student: Student, decay: float) -> None:
        self._step, self._trainable, self._decay = step, student.trainable, decay
        self.weights = {name: p.detach().clone() for name, p in student.trainable.items()}

    @torch.no_grad()
    def _take(self) -> None:
        for name, average in self.weights.items():
            average.lerp_(self._trainable[name].detach(), 1.0 - self._decay)

    def __call__(self, source: Source, step: int, rate: float) -> float:
        loss = self._step(source, step, rate)
        self._take()
        return loss


def _write(
    config: ReflowJobConfig, run_folder: Path, teacher_dir: Path, student: Student, weights: dict[str, Tensor]
) -> Path:
    """Writes the checkpoint into a folder that appears whole or not at all."""
    folder = run_folder / PRETRAINED_MODEL_DIR
    temporary = folder.with_name(f".{folder.name}.tmp")
    with _removed(temporary):
        save_student(
            student.policy, teacher_dir, temporary, {**student.fresh, **weights}, config.num_inference_steps
        )
        write_configs(config, teacher_dir, temporary)
        # Of a run that was interrupted before it was written down.
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    return folder


@contextlib.contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Takes a folder away, before and after.

    Raises:
        UserError: if what is written meanwhile cannot be.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield
    except OSError as error:
        raise UserError(
            f"output_dir={folder.parent}: the student cannot be written ({error.strerror}); make room and go on."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
