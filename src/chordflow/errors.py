"""The one error that a user is meant to see, and the reasons of others."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator

# What the machine refuses, as against what a program gets wrong, and what to do about it.
MACHINE_ERRORS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "make room",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n) or lower --num_workers",
    errno.ENFILE: "close other programs or lower --num_workers",
    errno.ENOMEM: "free memory or lower --num_workers",
}


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that names the field, the value it had and what to do. The command line
    prints it without a traceback and exits with code 2.
    """


@contextlib.contextmanager
def named(where: str, kind: type[Exception] = UserError) -> Iterator[None]:
    """Says which option a sentence is about, such as `policy.path=NAME`, of a `UserError` or another kind of error."""
    try:
        yield
    except (UserError, kind) as error:
        raise UserError(f"{where}: {error}") from error


@contextlib.contextmanager
def explained(sentence: Callable[[Exception], str]) -> Iterator[None]:
    """Makes a `UserError` of an error, by a sentence about it; what the machine refuses is left as it is."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or machine_refuses(error) or ran_out_of_memory(error):
            raise
        raise UserError(sentence(error)) from error


def machine_refuses(error: BaseException) -> bool:
    """Whether an error is the machine's: a full or read-only disk, missing permissions, too many open files."""
    return isinstance(error, OSError) and error.errno in MACHINE_ERRORS


_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator: |MPS backend out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|Storage size calculation overflowed"
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of whatever device.

    PyTorch raises `torch.OutOfMemoryError` where its own allocators of accelerators refuse. For memory of the CPU, of
    MPS and of CUDA's libraries it raises a plain RuntimeError, of which only its message is different.
    """
    # By name: this module is imported before PyTorch, which takes seconds.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def worker_died(error: BaseException) -> str:
    """The sentence about a data loader's worker that died, which torch raises wherever the program is; else nothing."""
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
        return ""
    return (
        f"a process that reads observations died ({reason(error)}), as it does where memory or /dev/shm runs out; "
        "lower --num_workers, down to 0."
    )


def reason(error: BaseException) -> str:
    """The innermost cause of an error, in a few words on one line."""
    seen = error
    while (cause := seen.__cause__ or seen.__context__) is not None:
        seen = cause
    # Where an object lies in memory tells nobody anything.
    text = re.sub(r" ?<[^<>]* object at 0x\w+>", "", (str(seen).strip().splitlines() or [""])[0])
    text = text if len(text) <= 200 else text[:200] + " ..."
    return f"{type(seen).__name__}: {text}" if text else type(seen).__name__
