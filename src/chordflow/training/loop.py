"""Training with a log and checkpoints: what happens between the steps of a run that can be resumed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from chordflow import stopping
from chordflow.couplings import CouplingBuffer
from chordflow.policies import FlowPolicy
from chordflow.training.checkpoints import begin_from, checkpoint_folder, keep, save_checkpoint
from chordflow.training.methods import Method
from chordflow.training.metrics import append_metrics, cut_metrics
from chordflow.training.steps import LoopConfig, Training


@dataclass(frozen=True)
class Progress:
    """What an observer of the loop receives after every step."""

    step: int
    loss: float
    lr: float
    samples_per_second: float


@dataclass(frozen=True)
class Trained:
    """What the loop leaves behind.

    Attributes:
        checkpoint: the last checkpoint's folder.
        seconds: of training, couplings included, of this process.
        samples: couplings trained on, repeats counted.
    """

    checkpoint: Path
    seconds: float
    samples: int


@stopping.held("Stopping as soon as the step is done and saved; once more stops at once and saves nothing.")
def train(
    config: LoopConfig,
    student: FlowPolicy,
    trainable: dict[str, nn.Parameter],
    buffer: CouplingBuffer,
    method: Method,
    output_dir: Path,
    write_student: Callable[[Path, dict[str, Tensor]], None],
    *,
    resume_from: Path | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Trained:
    """Trains the student on the buffer's couplings, with a log and checkpoints to resume from.

    A signal stops it after a whole step, with a checkpoint that all processes have agreed on.

    Args:
        config: steps, rates and sizes.
        student: with only `trainable` requiring gradients.
        trainable: float32 parameters by name.
        buffer: of couplings.
        method: the loss.
        output_dir: of the run.
        write_student: called as `write_student(folder, weights)` to write a `pretrained_model` folder.
        resume_from: a checkpoint folder of this run.
        on_step: called after every step.

    Raises:
        UserError: if a loss or gradient is not finite, memory runs out, a checkpoint cannot be written, or the
            launcher asks for what cannot be had.
        Stopped: where a signal has stopped it.
    """
    assert config.steps is not None
    training = Training(config, student, trainable, buffer, method, resume_from=resume_from)
    processes, start, losses = training.wrapped.processes, training.start, training.losses
    if processes.first:
        if resume_from is not None:
            begin_from(resume_from)
        cut_metrics(output_dir, start, resume_from)

    def save(step: int, timed: bool = False) -> Path:
        whole = training.state.whole()
        weights = {name: tensor.detach() for name, tensor in whole.student_weights.items()}
        if not processes.first:
            return checkpoint_folder(output_dir, step, config.steps or step)
        return save_checkpoint(
            output_dir,
            step,
            config.steps or step,
            whole,
            lambda folder: write_student(folder, weights),
            num_processes=processes.count,
            batch_size=config.batch_size * config.gradient_accumulation_steps,
            losses=losses,
            timed=timed,
        )

    unsaved, steps = False, training.run()
    began = saved_at = time.perf_counter()
    training.due = lambda: 0.0 < 60.0 * config.save_minutes <= time.perf_counter() - saved_at
    carried, logged_s = len(losses), None
    while True:
        try:
            passed = next(steps, None)
        except stopping.Stopped:
            # What the loss after the last update would need may be gone from the buffer.
            if unsaved and all(bool(weights.isfinite().all()) for weights in training.trainable.values()):
                save(training.passed.step, timed=True)
            raise
        if passed is None:
            break
        assert passed.loss is not None
        losses.append(passed.loss)
        logged_s = passed.ready_s or 0.0 if logged_s is None else logged_s
        rate = (len(losses) - carried) * buffer.step_size / max(passed.seconds - logged_s, 1e-9)
        on_step(Progress(passed.step, passed.loss, passed.lr, rate))
        last = passed.step == config.steps
        if passed.step % config.log_freq == 0 or last:
            line: dict[str, float] = {
                "step": passed.step,
                "loss": sum(losses) / len(losses),
                "grad_norm": passed.grad_norm,
                "lr": passed.lr,
                "samples_per_s": rate,
            }
            if processes.first:
                append_metrics(output_dir, line, training.checkpoint)
            logged_s, carried = passed.seconds, 0
            losses.clear()
        regular = last or (config.save_freq > 0 and passed.step % config.save_freq == 0)
        unsaved = True
        if regular or passed.due or passed.stop:
            training.check()
            training.checkpoint = save(passed.step, timed=not regular)
            unsaved, saved_at = False, time.perf_counter()
        if passed.stop and not last:
            processes.wait()
            raise stopping.Stopped(stopping.asked() or signal.SIGTERM)
    assert training.checkpoint is not None
    if processes.first:
        # It may be a timed one, where fewer steps are asked for than before.
        keep(training.checkpoint)
    # The others then read what the first has written.
    processes.wait()
    return Trained(training.checkpoint, time.perf_counter() - began, training.passed.samples)
