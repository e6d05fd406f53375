"""A process of `chordflow` for tests to kill, forked from their own: it has imported everything already."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from chordflow.cli.main import main


def _run(arguments: list[str], change: Callable[[], None]) -> None:
    os.setsid()
    with open(os.devnull, "w") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    change()
    os._exit(main(arguments))


def forget_chordflow() -> None:
    """From here on this process can no longer import it."""
    for name in [name for name in sys.modules if name.split(".")[0] == "chordflow"]:
        del sys.modules[name]
    sys.modules["chordflow"] = None  # type: ignore[assignment]


@contextmanager
def forked(arguments: list[str], change: Callable[[], None] = lambda: None) -> Iterator[BaseProcess]:
    """Runs a command silently in a process group of its own, which is gone at the end; `change` goes before it.

    Of a command that needs no gradients: where a GPU is, its threads do not survive a fork.
    """
    process = multiprocessing.get_context("fork").Process(target=_run, args=(arguments, change))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
