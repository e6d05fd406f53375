"""Training with a log and checkpoints: what happens between the steps of a run that can be resumed.

The log is a line of JSON for every few steps, written by one process.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from chordflow import stopping
from chordflow.couplings import CouplingBuffer
from chordflow.disk import whole_file
from chordflow.errors import UserError
from chordflow.policies import FlowPolicy
from chordflow.training.checkpoints import begin_from, keep, last_good, save_checkpoint
from chordflow.training.methods import Method
from chordflow.training.steps import LoopConfig, Passed, Training

METRICS = "metrics.jsonl"


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
    on_step: Callable[[Passed, float], None] = lambda passed, rate: None,
    on_line: Callable[[dict[str, float]], None] = lambda line: None,
) -> Trained:
    """Trains the student on the buffer's couplings, with a log and checkpoints to resume from in `output_dir`.

    A signal stops it after a whole step, with a checkpoint that all processes have agreed on; a process alone saves one
    where couplings cannot be made, too. `write_student(folder, weights)` writes a `pretrained_model` folder; `on_step`
    is called after every step, with where it stands and the couplings trained on in a second, and `on_line` with every
    line of the log. All else is as for `Training`.

    Raises:
        UserError: if a loss or gradient is not finite, memory runs out, a checkpoint cannot be written, or the
            launcher asks for what cannot be had.
        Stopped: where a signal has stopped it.
    """
    assert config.steps is not None
    total = config.steps
    training = Training(config, student, trainable, buffer, method, resume_from=resume_from)
    processes, losses = training.wrapped.processes, training.losses
    if processes.first:
        if resume_from is not None:
            begin_from(resume_from)
        _cut_metrics(output_dir, training.start, resume_from)

    def save(step: int, timed: bool = False) -> Path:
        return save_checkpoint(
            output_dir,
            step,
            total,
            training.state,
            write_student,
            processes,
            batch_size=buffer.batch_size * buffer.parts,
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
        except (stopping.Stopped, UserError) as error:
            # Where one process of several fails, the others do not come to save. What the loss after the last update
            # would need may be gone from the buffer.
            unsaved &= training.between_steps and (
                isinstance(error, stopping.Stopped) or processes.count == 1
            )
            if unsaved and all(bool(weights.isfinite().all()) for weights in training.state.masters.values()):
                save(training.passed.step, timed=True)
            raise
        if passed is None:
            break
        assert passed.loss is not None
        losses.append(passed.loss)
        logged_s = passed.ready_s or 0.0 if logged_s is None else logged_s
        rate = (len(losses) - carried) * buffer.step_size / max(passed.seconds - logged_s, 1e-9)
        on_step(passed, rate)
        last = passed.step == total
        if passed.step % config.log_freq == 0 or last:
            line = {
                "step": passed.step,
                "loss": sum(losses) / len(losses),
                "grad_norm": passed.grad_norm,
                "lr": passed.lr,
                "samples_per_s": rate,
            }
            if processes.first:
                with _logged(output_dir, training.checkpoint), (output_dir / METRICS).open("a") as log:
                    log.write(json.dumps(line) + "\n")
            on_line(line)
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
            raise stopping.Stopped(stopping.requested() or signal.SIGTERM)
    assert training.checkpoint is not None
    if processes.first:
        # It may be a timed one, where fewer steps are asked for than before.
        keep(training.checkpoint)
    # The others then read what the first has written.
    processes.wait()
    return Trained(training.checkpoint, time.perf_counter() - began, training.passed.samples)


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The logged lines of a run, oldest first; a last line that was cut short is left out."""
    lines = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return lines


def _cut_metrics(output_dir: Path, step: int, checkpoint: Path | None) -> None:
    """Drops what a run logged after step `step`, that of the checkpoint that it resumes from."""
    file = output_dir / METRICS
    kept = [line for line in read_metrics(file) if line["step"] <= step]
    if file.is_file():
        with _logged(output_dir, checkpoint), whole_file(file, sync=False) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


@contextlib.contextmanager
def _logged(output_dir: Path, checkpoint: Path | None) -> Iterator[None]:
    """Context of writing the log of a run whose last good checkpoint is `checkpoint`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"output_dir={output_dir}: {METRICS} cannot be written ({error.strerror}); {last_good(checkpoint)}; make "
            "room and resume from it or start again."
        ) from error
