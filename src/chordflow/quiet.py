"""Keeps what libraries print out of chordflow's output, and limits how long they wait."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType


def load(module: str, what: str = "PyTorch and LeRobot") -> ModuleType:
    """Imports what takes seconds, says so, and keeps `what` it imports quiet for the rest of the process."""
    # Read when torch is first imported. OpenMP's threads otherwise spin while they wait for each other, and on a
    # machine that does something else as well a small network then runs many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # What torch's C++ side warns of, such as of parameters that all had gradients.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    silence_libraries()
    limit_waiting()
    from chordflow.console import doing

    with doing(f"Loading {what}"):
        return import_module(module)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Gives a caller from Python its own warnings and logs back at the end."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        try:
            yield
        finally:
            logging.disable(disabled)


def silence_libraries() -> None:
    """Stops libraries from logging for the rest of the process; chordflow itself does not log.

    LeRobot prints some sixty lines where ffmpeg is missing, and transformers warns about settings that a
    LeRobot checkpoint fixes on purpose. What goes wrong still reaches the user as an exception.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    # Above the level of any single logger: libraries set theirs again as they are imported, and some log an
    # error that they then raise as well.
    logging.disable(logging.ERROR)


def limit_waiting(seconds: float = 20.0) -> None:
    """Lets a request to the Hub fail after `seconds` of silence; by itself its client waits for ever.

    Requests that set a limit of their own, such as downloads, keep it.
    """
    import httpx
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def limit(request: httpx.Request) -> None:
        given = request.extensions.get("timeout", {})
        limits = {part: given.get(part) or seconds for part in ("connect", "read", "write", "pool")}
        request.extensions["timeout"] = limits

    def impatient() -> httpx.Client:
        client = default_client_factory()
        # Some calls ask for no limit by name, so that the client's own would not reach them.
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks["request"], limit]}
        return client

    set_client_factory(impatient)


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Swallows what a library prints; for short calls into code that prints unconditionally."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
