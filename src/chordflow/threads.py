"""Threads on a CPU: operations of a small network are too short to be divided among threads, whole batches are not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

ALLOWED = torch.get_num_threads()
"""What torch was given when it was imported, by the machine's cores or by `OMP_NUM_THREADS`."""

MOST = 4
"""Batches that run at a time: each takes memory."""

SMALL = 10_000_000
"""Parameters of a network that one thread runs as fast as two, which wait for each other most of the time."""


def in_parallel[P, T](
    function: Callable[[P, threading.Event], T], parts: Sequence[P], module: torch.nn.Module
) -> Iterator[T]:
    """Calls a function for each part; on a CPU for several at a time, each with its share of the threads.

    What comes out, and in which order, does not depend on that.

    Args:
        function: of a part, and of an event that is set once the result is not needed any more: long work then
            raises InterruptedError. Gradients are off.
        parts: of the work.
        module: the network that does it; a small one takes one thread for each part.
    """
    stopped = threading.Event()

    def call(part: P) -> T:
        # The switch belongs to a thread.
        with torch.no_grad():
            return function(part, stopped)

    small, threads = is_small(module), torch.get_num_threads()
    workers = min(threads, MOST, len(parts)) if next(module.parameters()).device.type == "cpu" else 1
    if workers <= 1:
        with one_thread(small):
            yield from map(call, parts)
        return
    each = 1 if small else threads // workers
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,))
    try:
        yield from pool.map(call, parts)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def is_small(module: torch.nn.Module) -> bool:
    """Whether one thread runs a network as fast as several: on a CPU, up to `SMALL` parameters."""
    parameters = list(module.parameters())
    return parameters[0].device.type == "cpu" and sum(p.numel() for p in parameters) <= SMALL


@contextlib.contextmanager
def one_thread(small: bool) -> Iterator[None]:
    """One thread within, where the network at work is small."""
    threads = torch.get_num_threads()
    try:
        if small:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)
