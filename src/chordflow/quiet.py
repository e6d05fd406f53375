"""Keeps what libraries print out of chordflow's output, and limits how long they wait."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator


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
