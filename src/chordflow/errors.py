"""The one error that a user is meant to see, and what is said of others."""

import errno

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


def machine_refuses(error: BaseException) -> bool:
    """Whether an error is the machine's: a full or read-only disk, missing permissions, too many open files."""
    return isinstance(error, OSError) and error.errno in MACHINE_ERRORS


def reason(error: BaseException) -> str:
    """The innermost cause of an error, in a few words on one line."""
    seen = error
    while (cause := seen.__cause__ or seen.__context__) is not None:
        seen = cause
    text = (str(seen).strip().splitlines() or [""])[0]
    text = text if len(text) <= 200 else text[:200] + " ..."
    return f"{type(seen).__name__}: {text}" if text else type(seen).__name__
