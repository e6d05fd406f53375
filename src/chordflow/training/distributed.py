"""Training in several processes: joining them, adding up over them, and ending together.

`torchrun` and `accelerate launch` start the same command several times and tell each process its number. The
processes meet here before anything else happens. From then on an error in one of them is printed once and ends all,
each with the exit code of the error, and nobody waits for a process that is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from chordflow import stopping
from chordflow.console import console
from chordflow.couplings import Share
from chordflow.errors import UserError, reason

# How long a process waits for the others at most: as long as one of them may write a checkpoint or make couplings
# alone. A process that has ended is noticed at once, whatever this is.
TIMEOUT = timedelta(hours=1)
# How long the others wait for the one that has failed to say so.
PATIENCE_S = 3.0
_FAILED = "chordflow/failed"
_LOST = re.compile(r"gloo|nccl|connection|broken pipe|socket|peer|timed? ?out", re.IGNORECASE)


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        index: of this process, from 0.
        count: of all.
    """

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, measures and talks."""
        return self.index == 0

    @property
    def share(self) -> Share:
        """Of the couplings, this process's."""
        return Share(self.index, self.count)

    def wait(self) -> None:
        """Waits until all processes have come here."""
        self.sum([0.0])

    def sum(self, values: Sequence[float]) -> list[float]:
        """Adds numbers up over all processes; each has to call it, and each gets the sums."""
        if self.count == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        # Processes on GPUs have a group for the CPU as well (see `joined`).
        dist.all_reduce(summed)
        return summed.tolist()


def current() -> Processes:
    """The processes that this one has joined; one alone where it has joined none."""
    if not (dist.is_available() and dist.is_initialized()):
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Meets the processes that were started with this one, if any, and parts from them in the end.

    Only the first process talks. Where one fails, its error is raised in it alone; the others leave with
    `SystemExit` and say nothing.

    Raises:
        UserError: in one process, where another has ended without a word.
    """
    count = _number("WORLD_SIZE", 1)
    if count == 1 or dist.is_initialized():
        yield current()
        return
    index, local = _number("RANK", 0), _number("LOCAL_RANK", 0)
    if torch.cuda.is_available() and local < torch.cuda.device_count():
        # From here on `cuda` is this process's GPU.
        torch.cuda.set_device(local)
    spoke, console.quiet = console.quiet, console.quiet or index > 0
    store: dist.Store | None = None
    try:
        with stopping.heeded():
            try:
                store, index, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                    store=dist.PrefixStore("chordflow", store),
                    rank=index,
                    world_size=count,
                    timeout=TIMEOUT,
                )
                yield Processes(index, count)
            except BaseException as error:
                if isinstance(error, SystemExit) and not error.code:
                    raise
                # What comes now must not be cut short by those who clear up after the first that ended.
                with contextlib.suppress(ValueError):
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                _fail(error, store, count)
        dist.destroy_process_group()
    finally:
        console.quiet = spoke


def _fail(error: BaseException, store: dist.Store | None, count: int) -> NoReturn:
    """Raises the error in one process, and leaves quietly in the others."""
    lost = isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
    if lost:
        # Whoever went has had its reasons: let it tell them.
        deadline = time.monotonic() + PATIENCE_S
        while not _told(store) and time.monotonic() < deadline:
            time.sleep(0.05)
    if not _tells(store):
        code = error.code if isinstance(error, stopping.Stopped) else 130
        raise SystemExit(code if isinstance(error, KeyboardInterrupt) else 2) from None
    if isinstance(error, stopping.Stopped) and error.number == signal.SIGTERM:
        error.args = (f"{error} (as a launcher does, too, where one of {count} processes is gone)",)
    if lost:
        raise UserError(
            f"another of the {count} processes of this run has ended without a word ({reason(error)}), as it does "
            "when it is killed or the machine runs out of memory; checkpoints that were written are whole: go on "
            "from the last one or start again."
        ) from error
    raise error


def _told(store: dist.Store | None) -> bool:
    """Whether some process has reported an error."""
    try:
        return store is not None and store.add(_FAILED, 0) > 0
    except Exception:
        # Without a store nobody can tell anybody.
        return False


def _tells(store: dist.Store | None) -> bool:
    """Whether this process is the one that tells an error: the first that asks."""
    try:
        return store is None or store.add(_FAILED, 1) == 1
    except Exception:
        return True


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default
