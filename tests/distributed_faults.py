"""Two processes that train together, and what they do where something goes wrong in one of them.

Run as a script (`python distributed_faults.py FOLDER TEACHER DATASET`) it forks two processes for the training and for
each fault, so that the imports are paid once, and leaves what they said, their exit codes and how long they took in
FOLDER/ended.json.
"""

import errno
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_optimizer  # noqa: F401  # takes seconds, and every process that trains by SOAP needs it
import torch
import torch.distributed as dist
from torch import Tensor

from chordflow.cli import jobs
from chordflow.cli import main as cli
from chordflow.errors import UserError
from chordflow.training import checkpoints
from chordflow.training.distributed import current, joined
from chordflow.training.methods import ReflowMethod, ReflowMethodConfig
from distributed_worker import train_gaussian, work
from small_jobs import measured_in_few_steps


class Faulty(ReflowMethod):
    """Reflow until, at the third look of the second process at its loss, something happens."""

    def __init__(self, fault: Callable[[], float]) -> None:
        super().__init__(ReflowMethodConfig())
        self.fault = fault
        # In two steps there is no checkpoint by number.
        self.fault_at = 2 if fault is asked_to_stop else 3
        self.calls = 0

    def loss(self, *arguments: Any) -> Tensor:
        self.calls += 1
        loss = super().loss(*arguments)
        return loss * self.fault() if self.calls == self.fault_at and current().index == 1 else loss


def dies() -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def no_memory() -> float:
    raise torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB")


def is_a_fault_of_ours() -> float:
    raise KeyError("a fault of chordflow's own")


def interrupted() -> float:
    raise KeyboardInterrupt


def asked_to_stop() -> float:
    signal.raise_signal(signal.SIGTERM)
    return 1.0


FAULTS: dict[str, Callable[[], float]] = {
    "dies": dies, "nan": lambda: float("nan"), "no_memory": no_memory, "own_fault": is_a_fault_of_ours,
    "interrupted": interrupted, "stopped": asked_to_stop,
}  # fmt: skip


def run(options: list[str]) -> None:
    """A verb of the command line that trains the Gaussian student with a fault."""
    name, folder, *inputs = options
    if name == "work":
        with measured_in_few_steps():
            work(Path(folder) / name, *map(Path, inputs))
        return
    with joined() as processes:
        if name == "disk" and processes.first:

            def full(*_: object, **__: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            checkpoints.save_training_state = full
        if name == "early" and not processes.first:
            raise UserError("teacher.path=x: no such folder on this machine")
        method = Faulty(FAULTS[name]) if name in FAULTS else None
        train_gaussian(Path(folder) / name, batch_size=8, method=method)


def _process(rank: int, port: int, name: str, folder: Path, inputs: list[str]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}.{rank}.{stream}", os.O_CREAT | os.O_WRONLY), number)
    code = 1
    try:
        code = cli.main(["faulty", name, str(folder), *inputs])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(folder: Path, inputs: list[str]) -> None:
    """The training, then every fault, one after the other."""
    cli.VERBS["faulty"] = "fail"
    jobs.faulty = run
    context = multiprocessing.get_context("fork")
    ended = {}
    for name in ("work", *FAULTS, "disk", "early"):
        # As under torchrun, the store outlives the processes.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        began = time.monotonic()
        processes = [
            context.Process(target=_process, args=(rank, store.port, name, folder, inputs)) for rank in (0, 1)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(400 if name == "work" else 60)
        ended[name] = {
            "codes": [process.exitcode for process in processes],
            "seconds": time.monotonic() - began,
            "said": [(folder / f"{name}.{rank}.err").read_text() for rank in (0, 1)],
            "out": [(folder / f"{name}.{rank}.out").read_text() for rank in (0, 1)],
        }
        for process in processes:
            process.kill()
    (folder / "ended.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
