"""Sub-environments in processes of their own, so that simulators run side by side.

Which episode runs in which sub-environment, and which share a batch in the network, does not depend on the number of
workers: episodes are the same to the bit.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from chordflow import stopping
from chordflow.errors import MACHINE_ERRORS, UserError, ran_out_of_memory, reason
from chordflow.rollouts.environments import (
    ChunkOrder,
    LocalHost,
    Outcome,
    Spaces,
    Started,
    StartOrder,
    TaskKey,
)

GRACE_S = 2.0
"""How long a worker may take to close its environments before it is ended."""


class WorkerPool:
    """What `LocalHost` is, in other processes: sub-environment i lives in worker i modulo the number of workers.

    The processes start at once and load their libraries while the caller continues. `env_cfg` must be picklable.
    """

    def __init__(self, env_cfg: Any, num_workers: int) -> None:
        self._workers: list[_Worker] = []
        try:
            with stopping.starting_worker():
                for _ in range(num_workers):
                    self._workers.append(_Worker(env_cfg))
        except BaseException:
            self.close()
            raise

    def make(self, count: int) -> dict[TaskKey, int | None]:
        """Makes sure that there are at least `count` sub-environments; gives the tasks with their starts."""
        size = len(self._workers)
        # Every worker makes at least one: how many it needs may grow later, its tasks stay.
        return self._ask({i: max(1, -(-(count - i) // size)) for i in range(size)}, "make")[0]

    def select(self, task: TaskKey) -> Spaces:
        """Opens a task; the sub-environments of the one before are closed."""
        return self._ask(dict.fromkeys(range(len(self._workers)), task), "select")[0]

    def start(self, orders: Sequence[StartOrder]) -> list[Started]:
        """Begins episodes; answers in the order of `orders`."""
        return self._share(orders, "start")

    def step(self, orders: Sequence[ChunkOrder]) -> list[Outcome]:
        """Executes chunks; answers in the order of `orders`."""
        return self._share(orders, "step")

    def close(self) -> None:
        """Ends all workers: those that do not close their environments in time are killed."""
        workers, self._workers = self._workers, []
        try:
            for worker in workers:
                worker.line.close()
            for worker in workers:
                worker.process.join(GRACE_S)
        finally:
            for worker in workers:
                worker.end()

    def _ask(self, given: dict[int, Any], method: str) -> dict[int, Any]:
        """Calls a method of some hosts, each with its argument; where one fails the others still answer."""
        for number, argument in given.items():
            self._workers[number].send(method, argument)
        answers: dict[int, Any] = {}
        first: Exception | None = None
        for number in given:
            try:
                answers[number] = self._workers[number].receive()
            except (UserError, MemoryError, OSError) as error:
                first = first or error
        if first is not None:
            raise first
        return answers

    def _share(self, orders: Sequence[Any], method: str) -> list[Any]:
        """Sends each worker the orders of its slots in one message; answers in the order of `orders`."""
        size = len(self._workers)
        own: dict[int, list[Any]] = {}
        for order in orders:
            own.setdefault(order.slot % size, []).append(replace(order, slot=order.slot // size))
        answers = {number: iter(given) for number, given in self._ask(own, method).items()}
        return [next(answers[order.slot % size]) for order in orders]


Host = LocalHost | WorkerPool
"""Sub-environments by number, all of one task at a time, here or in other processes."""


@contextlib.contextmanager
def open_host(env_cfg: Any, batch_size: int, num_workers: int = 0) -> Iterator[Host]:
    """Holds sub-environments, and the processes that they live in; see `runner.open_runner`."""
    # More workers than episodes side by side would only wait.
    workers = min(num_workers, batch_size)
    with contextlib.closing(WorkerPool(env_cfg, workers) if workers else LocalHost(env_cfg)) as host:
        yield host


class _Worker:
    """A process and its connection."""

    def __init__(self, env_cfg: Any) -> None:
        self.name = f"env.type={env_cfg.type}"
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, env_cfg), daemon=True)
        try:
            self.process.start()
        finally:
            # Only the worker holds this end from here on: its death is then seen as the line's end.
            theirs.close()

    def send(self, method: str, argument: Any) -> None:
        try:
            self.line.send((method, argument))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death() from error

    def receive(self) -> Any:
        try:
            answer, error = self.line.recv()
        except (EOFError, ConnectionResetError) as broken:
            raise self._death() from broken
        if error is not None:
            raise error
        return answer

    def end(self) -> None:
        if self.process.pid is None:
            return
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.process.close()

    def _death(self) -> UserError:
        self.process.join(GRACE_S)
        code = self.process.exitcode
        how = f"exit code {code}" if code is None or code >= 0 else f"killed by {signal.Signals(-code).name}"
        return UserError(
            f"{self.name}: a process that holds environments ended by itself ({how}); where memory ran out lower "
            "--num_workers or --batch_size, else run with --num_workers=0."
        )


def _serve(line: Connection, env_cfg: Any) -> None:
    """What a worker runs: answers messages until the line ends."""
    stopping.leave_to_parent()
    import torch

    from chordflow.quiet import silence_libraries
    from chordflow.rollouts.environments import register_environments

    silence_libraries()
    torch.set_num_threads(1)
    # Plugins register their environments as they are imported, as in the process that read the command line.
    register_environments()
    host = LocalHost(env_cfg)
    # A line that breaks means that the pool is gone.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError), contextlib.closing(host):
        while True:
            method, argument = line.recv()
            line.send(_answer(host, method, argument))


def _answer(host: LocalHost, method: str, argument: Any) -> tuple[Any, Exception | None]:
    """What a call gives, or the error that the parent is to raise: one that any process can unpickle."""
    try:
        return getattr(host, method)(argument), None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            return None, OSError(error.errno, error.strerror, error.filename)
        if ran_out_of_memory(error):
            return None, MemoryError(str(error))
        if isinstance(error, UserError):
            return None, UserError(str(error))
        return None, UserError(
            f"{host.name}: the environment failed ({reason(error)}); check the env options."
        )
