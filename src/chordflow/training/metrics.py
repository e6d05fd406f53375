"""The log of a run: a line of JSON for every few steps, written by one process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from chordflow.disk import whole_file
from chordflow.errors import UserError

METRICS = "metrics.jsonl"


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


def append_metrics(output_dir: Path, line: dict[str, float], checkpoint: Path | None) -> None:
    """Adds a line.

    Args:
        output_dir: of the run.
        line: what is logged.
        checkpoint: the last good one, for the error's sentence.

    Raises:
        UserError: if it cannot be written.
    """
    with (
        _can_be_written(output_dir, checkpoint),
        (output_dir / METRICS).open("a", encoding="utf-8") as handle,
    ):
        handle.write(json.dumps(line) + "\n")


def cut_metrics(output_dir: Path, step: int, checkpoint: Path | None) -> None:
    """Drops what a run logged after the checkpoint that it resumes from.

    Args:
        output_dir: of the run.
        step: of that checkpoint.
        checkpoint: itself, for the error's sentence.

    Raises:
        UserError: if it cannot be written.
    """
    file = output_dir / METRICS
    kept = [line for line in read_metrics(file) if line["step"] <= step]
    if file.is_file():
        with _can_be_written(output_dir, checkpoint), whole_file(file, sync=False) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def last_good(checkpoint: Path | None) -> str:
    """What there is to go back to, as messages say it."""
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written yet"


@contextlib.contextmanager
def _can_be_written(output_dir: Path, checkpoint: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"output_dir={output_dir}: {METRICS} cannot be written ({error.strerror}); {last_good(checkpoint)}; make "
            "room and resume from it or start again."
        ) from error
