"""Sub-environments in processes of their own, so that simulators run side by side.

A worker makes its share by LeRobot's factory and serves it as a `LocalHost` would. Which episode runs in which
sub-environment, and which share a batch in the network, does not depend on the number of workers: episodes
are the same to the bit.
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
from chordflow.checks import check_range
from chordflow.errors import MACHINE_ERRORS, UserError, ran_out_of_memory, reason
from chordflow.rollouts.hosts import (
    ChunkOrder,
    Host,
    LocalHost,
    Outcome,
    Spaces,
    Started,
    StartOrder,
    TaskKey,
)

GRACE_S = 2.0
"""How long a worker may take to close its environments before it is ended."""


class WorkerPool(Host):
    """Hosts in other processes. Sub-environment number i lives in worker i modulo the number of workers.

    The processes start at once and load their libraries while the caller goes on.

    Args:
        env_cfg: a LeRobot `EnvConfig`, which must be picklable.
        num_workers: how many, at least 1.
    """

    def __init__(self, env_cfg: Any, num_workers: int) -> None:
        self.name = f"env.type={env_cfg.type}"
        self._workers: list[_Worker] = []
        try:
            with stopping.starting_worker():
                for _ in range(num_workers):
                    self._workers.append(_Worker(env_cfg, self.name))
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def make(self, count: int) -> dict[TaskKey, int | None]:
        """Makes sure that there are at least `count` sub-environments; gives the tasks with their starts."""
        size = len(self._workers)
        # Every worker makes at least one: how many it needs may grow later, the tasks that it tells stay.
        return self._all("make", [(max(1, -(-(count - i) // size)),) for i in range(size)])[0]

    def select(self, task: TaskKey) -> Spaces:
        """Turns to a task; the sub-environments of the one before are closed."""
        return self._all("select", [(task,)] * len(self._workers))[0]

    def start(self, orders: Sequence[StartOrder]) -> list[Started]:
        """Begins episodes."""
        return self._shared("start", orders)

    def step(self, orders: Sequence[ChunkOrder]) -> list[Outcome]:
        """Executes chunks."""
        return self._shared("step", orders)

    def close(self) -> None:
        """Ends all workers: those that do not close their environments in time are killed."""
        workers, self._workers = self._workers, []
        try:
            for worker in workers:
                worker.hang_up()
            for worker in workers:
                worker.process.join(GRACE_S)
        finally:
            for worker in workers:
                worker.end()

    def _all(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        for worker, given in zip(self._workers, arguments, strict=True):
            worker.send(method, *given)
        return _receive(self._workers)

    def _shared(self, method: str, orders: Sequence[Any]) -> list[Any]:
        """Sends each worker the orders of its slots in one message; answers in the order of `orders`."""
        size = len(self._workers)
        places = [[k for k, order in enumerate(orders) if order.slot % size == i] for i in range(size)]
        busy = [(worker, own) for worker, own in zip(self._workers, places, strict=True) if own]
        for worker, own in busy:
            worker.send(method, [replace(orders[k], slot=orders[k].slot // size) for k in own])
        answers: list[Any] = [None] * len(orders)
        for (_, own), received in zip(busy, _receive([worker for worker, _ in busy]), strict=True):
            for k, answer in zip(own, received, strict=True):
                answers[k] = answer
        return answers


@contextlib.contextmanager
def open_host(env_cfg: Any, batch_size: int, num_workers: int = 0) -> Iterator[Host]:
    """Holds sub-environments, and the processes that they live in.

    Args:
        env_cfg: a LeRobot `EnvConfig`.
        batch_size: episodes that run side by side.
        num_workers: processes that hold the environments, each its share; 0 for this one.

    Raises:
        UserError: for numbers out of range.
    """
    check_range("batch_size", batch_size, at_least=1)
    check_range("num_workers", num_workers, at_least=0)
    # More workers than episodes side by side would only wait.
    workers = min(num_workers, batch_size)
    host: Host = WorkerPool(env_cfg, workers) if workers else LocalHost(env_cfg)
    try:
        yield host
    finally:
        host.close()


class _Worker:
    """A process and the line to it."""

    def __init__(self, env_cfg: Any, name: str) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, env_cfg), daemon=True)
        try:
            self.process.start()
        finally:
            # Only the worker holds this end from here on: its death is then seen as the line's end.
            theirs.close()

    def send(self, method: str, *arguments: Any) -> None:
        try:
            self.line.send((method, arguments))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death() from error

    def receive(self) -> Any:
        try:
            kind, answer = self.line.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._death() from error
        if kind == "user error":
            raise UserError(answer)
        if kind == "machine error":
            raise OSError(*answer)
        if kind == "memory error":
            raise MemoryError(answer)
        return answer

    def hang_up(self) -> None:
        self.line.close()

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
        how = (
            f"killed by {signal.Signals(-code).name}"
            if code is not None and code < 0
            else f"exit code {code}"
        )
        return UserError(
            f"{self.name}: a process that holds environments ended by itself ({how}); where memory ran out lower "
            "--num_workers or --batch_size, else run with --num_workers=0."
        )


def _receive(workers: Sequence[_Worker]) -> list[Any]:
    """One answer of each; where one is an error the others are read before it is raised."""
    answers: list[Any] = []
    first: Exception | None = None
    for worker in workers:
        try:
            answers.append(worker.receive())
        except (UserError, MemoryError, OSError) as error:
            first = first or error
    if first is not None:
        raise first
    return answers


def _serve(line: Connection, env_cfg: Any) -> None:
    """What a worker runs: answers messages until the line ends."""
    stopping.leave_to_parent()
    import torch

    from chordflow.quiet import silence_libraries
    from chordflow.rollouts.plugins import register_environments

    silence_libraries()
    torch.set_num_threads(1)
    # Plugins register their environments as they are imported, as in the process that read the command line.
    register_environments()
    host = LocalHost(env_cfg)
    # A line that breaks means that the pool is gone.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError), contextlib.closing(host):
        while True:
            method, arguments = line.recv()
            line.send(_answer(host, method, arguments))


def _answer(host: LocalHost, method: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "answer", getattr(host, method)(*arguments)
    except UserError as error:
        return "user error", str(error)
    except OSError as error:
        if error.errno in MACHINE_ERRORS:
            return "machine error", (error.errno, error.strerror, error.filename)
        return "user error", f"{host.name}: the environment failed ({reason(error)}); check the env options."
    except Exception as error:
        if ran_out_of_memory(error):
            return "memory error", str(error)
        return "user error", f"{host.name}: the environment failed ({reason(error)}); check the env options."
