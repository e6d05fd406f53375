"""Keeps the libraries' own talk out of chordflow's output."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator


def silence_libraries() -> None:
    """Takes the word from libraries for the rest of the process; chordflow itself does not log.

    LeRobot prints some sixty lines where ffmpeg is missing, and transformers warns about settings that a
    LeRobot checkpoint fixes on purpose. What goes wrong still reaches the user as an exception.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    # Above the level of any single logger: libraries set theirs anew as they are imported, and some log an
    # error that they then raise as well.
    logging.disable(logging.ERROR)


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Swallows what a library prints; for short calls into code that prints unconditionally."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
