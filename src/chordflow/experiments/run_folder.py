"""The folder of a run: made new, found again, and not left behind empty; a `UserError` where that cannot be."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR

from chordflow import disk
from chordflow.console import doing
from chordflow.disk import point_link
from chordflow.errors import UserError
from chordflow.experiments.share import WANDB
from chordflow.policies.files import TRAIN_CONFIG
from chordflow.training.distributed import current
from chordflow.training.loop import METRICS

REFLOW_CONFIG = "reflow_config.json"

OBSERVATIONS_DIR = "observations"
"""Folder of what was collected in an environment, in a run's folder."""


def refuse_existing(output_dir: Path, go_on: str | None = None) -> None:
    """Makes sure that a new run would not write into a folder that is there.

    `go_on` says how to resume what is there, and is empty where that cannot be; by default as a run of reflow.
    """
    if go_on is None:
        go_on = how_to_resume(output_dir) if has_checkpoint(output_dir) else ""
    if go_on or output_dir.exists():
        instead = f", or {go_on}" if go_on else "."
        raise UserError(f"output_dir={output_dir} exists already; name a new folder{instead}")


def has_checkpoint(output_dir: Path) -> bool:
    """Whether a run has written a checkpoint."""
    return (output_dir / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK).exists()


@contextlib.contextmanager
def made_folder(folder: Path, *, new: bool = True) -> Iterator[None]:
    """Makes a folder, `new` or not, and takes away what it made of it and of those above if it is empty in the end."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, made)
        try:
            folder.mkdir(parents=True, exist_ok=not new)
        except OSError as error:
            raise UserError(
                f"output_dir={folder} cannot be made ({error.strerror}); name a folder in a place that can be written "
                "to."
            ) from error
        yield


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        # The system refuses where something is inside.
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def new_folder(
    output_dir: Path,
    resumes: Callable[[Path], bool] = has_checkpoint,
    others: Sequence[str] = (METRICS, OBSERVATIONS_DIR, WANDB),
) -> Iterator[None]:
    """Makes the folder of a run, and takes it away again if the run fails before anything is in it.

    Where it holds nothing from which a run `resumes`, the same command must work again: `others` in it are removed.
    """
    with made_folder(output_dir):
        try:
            yield
        except BaseException:
            for path in (output_dir / name for name in others) if not resumes(output_dir) else ():
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    path.unlink()
            _remove_empty([output_dir / CHECKPOINTS_DIR])
            raise


@contextlib.contextmanager
def only_run(output_dir: Path, option: str = "output_dir") -> Iterator[None]:
    """Locks a run's folder, which the user gives by `option`, for one process; the lock ends with the process."""
    if sys.platform == "win32":
        # Windows has no such locks.
        yield
        return
    import fcntl

    handle = os.open(output_dir, os.O_RDONLY)
    try:
        last = time.monotonic() + disk.LET_GO_S
        with doing("Waiting for another process to let go of the folder"):
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if time.monotonic() >= last:
                        raise UserError(
                            f"{option}={output_dir}: another process works in this folder; wait for it to end."
                        ) from error
                    time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def resume_command(output_dir: Path) -> str:
    """The command line that resumes a run of reflow."""
    config_path = output_dir / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR / TRAIN_CONFIG
    return command_to_resume("reflow", config_path)


def command_to_resume(verb: str, config_path: Path) -> str:
    """The command line that resumes a run by a file, with as many processes as work on it now."""
    count = current().count
    start = f"torchrun --nproc-per-node={count} -m chordflow" if count > 1 else "chordflow"
    return f"{start} {verb} --resume=true --config_path={shlex.quote(str(config_path))}"


def how_to_resume(output_dir: Path) -> str:
    """How to resume a run that was stopped, for the user."""
    if has_checkpoint(output_dir):
        return f"resume with: {resume_command(output_dir)}"
    return "no checkpoint was written yet, so start a new run."


@contextlib.contextmanager
def resumable(output_dir: Path) -> Iterator[None]:
    """Context that adds how to resume where a run that has a checkpoint fails."""
    try:
        yield
    except UserError as error:
        if not has_checkpoint(output_dir) or "--resume=true" in str(error):
            raise
        raise UserError(
            f"{str(error).rstrip('.')}; the checkpoints are whole: resume with: {resume_command(output_dir)}"
        ) from error
    except Exception as error:
        error.add_note(how_to_resume(output_dir))
        raise


def round_folder(output_dir: Path, number: int) -> Path:
    """Where a round of a run of several lies; it is laid out as a run of its own."""
    return output_dir / f"round_{number}"


def folder_of_run(checkpoint_dir: Path, number: int, rounds: int | str) -> Path:
    """The folder of the run, of so many rounds or auto, that the checkpoint of a round is of."""
    folder = checkpoint_dir.parent.parent
    if rounds == 1:
        return folder
    if folder != round_folder(folder.parent, number):
        raise UserError(
            f"config_path: {checkpoint_dir} is of round {number} of several, whose folder is named round_{number} and "
            f"lies beside those of the other rounds; rename {folder}, or put it back there."
        )
    return folder.parent


def show_round(output_dir: Path, number: int) -> None:
    """Makes OUTPUT_DIR/checkpoints those of a round, by rename of a link."""
    point_link(output_dir / CHECKPOINTS_DIR, round_folder(Path(), number) / CHECKPOINTS_DIR)


def resume_folder(config_path: str | Path) -> Path:
    """The checkpoint folder of a `train_config.json` of a chordflow run, or of the folder that holds it."""
    path = Path(config_path)
    if not path.exists():
        raise UserError(f"config_path={config_path}: there is no such file; {_WHERE}")
    folder = path.parent if path.name == TRAIN_CONFIG else path
    if not (folder / REFLOW_CONFIG).is_file():
        raise UserError(f"config_path={config_path}: no {REFLOW_CONFIG} is beside it; {_WHERE}")
    return folder.resolve().parent


_WHERE = "give OUTPUT_DIR/checkpoints/last/pretrained_model/train_config.json of a chordflow run."
