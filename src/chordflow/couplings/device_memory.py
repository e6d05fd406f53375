"""How much memory a device has, and how much of it is free, for this process.

A container's limit is a control group's, and /proc/meminfo, which psutil reads, tells of the whole machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil
import torch

from chordflow.errors import ran_out_of_memory

Stage = Literal["read", "encode", "solve", "make"]
"""Of the making of a block: observations are read and encoded, noises solved, and what lies between."""

_NOTE = "while a block of couplings was made: "
_MEMBERSHIP, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@contextlib.contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Notes in an error of memory that runs out what was being done; the innermost stage counts."""
    try:
        yield
    except Exception as error:
        if ran_out_of_memory(error) and stage_of(error) is None:
            error.add_note(f"{_NOTE}{name}")
        raise


def stage_of(error: BaseException) -> str | None:
    """The stage in which memory ran out; None where it was in none."""
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith(_NOTE)]
    return notes[0].removeprefix(_NOTE) if notes else None


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on a device."""
    if device.type == "cuda":
        # What torch has taken and does not use it gives out again before it asks for more.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return min(
        [psutil.virtual_memory().available, *(max(limit - used, 0) for limit, used in container_limits())]
    )


def total_memory(device: torch.device) -> int:
    """Bytes that a device has, or that this process's container lets it take."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min([psutil.virtual_memory().total, *(limit for limit, _ in container_limits())])


def container_limits(membership: Path = _MEMBERSHIP, mount: Path = _CGROUPS) -> Iterator[tuple[int, int]]:
    """The limits of all control groups that this process is in, from the innermost one on.

    Args:
        membership: the file that says which groups those are.
        mount: where the groups' files are.

    Yields:
        Bytes that may be taken, and bytes that are; of those, files in the page cache that the kernel gives up where
        memory gets short do not count.
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
            if not group.is_relative_to(place):
                break
            limit = _limit(group, *names)
            if limit is not None:
                yield limit


def _limit(group: Path, limit: str, used: str, reclaimable: str) -> tuple[int, int] | None:
    """A group's limit and use in bytes; None where it has none, or tells nothing of it."""
    try:
        most, taken = int((group / limit).read_text()), int((group / used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most, taken - int(stat.get(reclaimable, 0))
    except (OSError, ValueError):
        # "max" is no number.
        return None
