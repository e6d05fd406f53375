"""Ctrl-C and SIGTERM, which clusters send: what is whole is kept, and a second signal ends the process at once.

The first signal raises `Stopped` where the program stands, or, within `held`, waits until a step is whole. A signal
that comes again after `SAME_S` seconds ends the process as it would without chordflow.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

SAME_S = 0.5
"""Signals that follow one another within these seconds are one: `timeout` and launchers send theirs twice."""

WORKER_GRACE_S = 60
"""How long a worker outlives a SIGTERM that was sent to all processes, its parent's included."""


class Stopped(KeyboardInterrupt):
    """The signal of this number has stopped the program; `code` is the exit code that shells expect after it."""

    def __init__(self, number: int) -> None:
        by = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        super().__init__(by)
        self.number, self.code = number, 128 + number


class _State:
    """The signals of this process."""

    installed = False
    number = 0
    since = 0.0
    held = 0
    raised = False
    finished = False
    message = ""


_state = _State()


def requested() -> int:
    """The signal that is to stop the program; 0 where none has come."""
    return _state.number


def check() -> None:
    """Raises `Stopped` again where a library has swallowed it, unless signals are held."""
    if _state.number and not _state.held:
        _state.raised = True
        raise Stopped(_state.number)


@contextlib.contextmanager
def taken(handler: Callable[[int, FrameType | None], object]) -> Iterator[bool]:
    """Context in which `handler` takes the signals; yields whether it does: in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    # Whoever starts a process with a signal ignored, as nohup does, means it.
    before = {n: h for n in SIGNALS if (h := signal.getsignal(n)) is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handler)
        yield True
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Context in which signals stop the program as this module says; a nested one changes nothing."""
    if _state.installed:
        yield
        return
    with taken(_take) as _state.installed:
        try:
            yield
        except Stopped as stopped:
            if _state.finished and not hasattr(stopped, "__notes__"):
                stopped.add_note("all is saved.")
            raise
        except Exception as error:
            if _state.raised:
                raise Stopped(_state.number) from error
            raise
        finally:
            _state.installed, _state.number, _state.raised, _state.finished = False, 0, False, False


@contextlib.contextmanager
def held(message: str = "") -> Iterator[None]:
    """Context in which the first signal waits, prints `message`, and stops the program at the end."""
    with handled():
        outer, _state.message = _state.message, message or _state.message
        _state.held += 1
        try:
            yield
        finally:
            _state.held -= 1
            _state.message = outer
        check()


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Context within `held`, for work that may be broken off: signals stop the program at once."""
    depth, _state.held = _state.held, 0
    try:
        check()
        yield
    finally:
        _state.held = depth


@contextlib.contextmanager
def noting(how: Callable[[], str]) -> Iterator[None]:
    """Context of work that a signal may stop: the outermost `how` then notes what is kept and how to resume."""
    try:
        yield
        _state.finished = True
    except KeyboardInterrupt as interrupt:
        interrupt.__notes__ = [how()]
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, Stopped):
            cause = cause.__cause__ or cause.__context__
        if cause is None and not _state.raised:
            raise
        # A library has made an error of its own of the signal; one in C may leave no trace of it.
        stopped = Stopped(cause.number if cause is not None else _state.number)
        stopped.add_note(how())
        raise stopped from error


@contextlib.contextmanager
def starting_worker() -> Iterator[None]:
    """Context to start a worker process in, which gets no signals until it calls `leave_to_parent`."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """In a worker: signals that reach all processes of a terminal or a job are the parent's, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        # Not ignored: Python ends workers by it that do not end by themselves.
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_S))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _take(number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if _state.number:
        if now - _state.since > SAME_S:
            if os.isatty(1):
                # Which a progress bar has hidden.
                os.write(1, b"\x1b[?25h")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    _state.number, _state.since = number, now
    check()
    if _state.message and os.environ.get("RANK", "0") == "0":
        # Not by print, in the midst of which this may be.
        os.write(2, f"{_state.message}\n".encode())
