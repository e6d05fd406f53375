"""How much memory a device has, how much of it is free, and what a user can lower when it runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

from chordflow.errors import UserError, ran_out_of_memory

_MEMBERSHIP, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class ShortOfMemoryError(MemoryError):
    """Memory ran out in work that takes as much as a setting says (see `sized_by`)."""

    def __init__(self, option: str, size: int, doing: str) -> None:
        super().__init__(f"{option}={size}")
        self.option, self.size, self.doing = option, size, doing

    def __str__(self) -> str:
        """What was being done, and what to do."""
        less = f"give --{self.option}={self.size // 2}" if self.size > 1 else "use a larger device"
        return f"while {self.size} {self.doing} at a time; {less}"


@contextlib.contextmanager
def sized_by(option: str, size: int, doing: str) -> Iterator[None]:
    """Context of work whose memory depends on a setting; of nested ones the innermost counts.

    Args:
        option: its name.
        size: its value.
        doing: what is done to that many things, such as "noises were measured".

    Raises:
        ShortOfMemoryError: where memory runs out.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ShortOfMemoryError) or not ran_out_of_memory(error):
            raise
        raise ShortOfMemoryError(option, size, doing) from error


@contextlib.contextmanager
def enough_memory(device: torch.device, advice: Callable[[ShortOfMemoryError | None], str]) -> Iterator[None]:
    """Turns an out-of-memory error into a UserError.

    `advice` says what was being done and what to do, given the work that ran out of memory, where that is known.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        short = error if isinstance(error, ShortOfMemoryError) else None
        raise UserError(f"out of memory on {device} {advice(short)}.") from error


def enough_memory_at(
    option: str, size: int, doing: str, device: torch.device
) -> contextlib.AbstractContextManager[None]:
    """Context of work sized by one setting (see `sized_by`): out of memory, a UserError names half its value."""
    return enough_memory(device, lambda _: str(ShortOfMemoryError(option, size, doing)))


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on a device."""
    if device.type == "cuda":
        # What torch has taken and does not use it gives out again before it asks for more.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    of_groups = [max(limit - used, 0) for limit, used in container_limits()]
    return min([psutil.virtual_memory().available, *of_groups])


def total_memory(device: torch.device) -> int:
    """Bytes that a device has, or that this process's container lets it take."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min([psutil.virtual_memory().total, *(limit for limit, _ in container_limits())])


def container_limits(membership: Path = _MEMBERSHIP, mount: Path = _CGROUPS) -> Iterator[tuple[int, int]]:
    """The limits of all control groups that this process is in: psutil knows the whole machine alone.

    Yields:
        Bytes that may be taken, and bytes that are, but for files in the page cache that the kernel would give up;
        from the innermost group on.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        # Not on Linux.
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            place, names = mount, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            place = mount / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path may be that of the host, whose own groups are not to be seen there.
        own = place / path.strip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(place) and (limit := _limit(group, *names)) is not None:
                yield limit


def _limit(group: Path, limit: str, used: str, reclaimable: str) -> tuple[int, int] | None:
    """A group's limit and use in bytes; None where it has none, or does not report it."""
    try:
        most, taken = int((group / limit).read_text()), int((group / used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most, taken - int(stat.get(reclaimable, 0))
    except (OSError, ValueError):
        # "max" is no number.
        return None
