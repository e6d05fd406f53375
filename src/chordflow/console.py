"""What chordflow prints while it works."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from chordflow import stopping

PIPED_WIDTH = 120
"""Columns of what goes to a file or a pipe, where no terminal says how many there are."""


console = Console(highlight=False)
if not console.is_terminal and "COLUMNS" not in os.environ:
    # The tables are made for 100 columns; with the 80 that are assumed otherwise their names would be cut.
    console.width = PIPED_WIDTH

PATIENCE_S = 3.0
"""Work that takes longer is named on the terminal."""

_shown = {"all": False}


def show_all(on: bool) -> None:
    """Sets whether all findings and tables are to be printed, as `--verbose` asks for, or the summary alone."""
    _shown["all"] = on


def verbose() -> bool:
    """Whether all tables are to be printed."""
    return _shown["all"]


@contextmanager
def doing(text: str) -> Iterator[None]:
    """Prints the name of work that takes more than `PATIENCE_S` seconds; also a decorator of a function."""
    timer = threading.Timer(PATIENCE_S, say, [f"{text} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Bar:
    """A progress bar, or a line now and then where the output is not a terminal."""

    def __init__(self, progress: Progress | None, description: str) -> None:
        self._progress = progress
        self._description = description
        self._task = progress.add_task(description, total=None, note="") if progress else None
        self._shown = 0.0
        self._began = time.monotonic()

    def update(self, done: float, total: float, note: str = "") -> None:
        """Shows that `done` of `total` is done."""
        stopping.check()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=note)
        elif total and (done / total - self._shown >= 0.25 or done >= total > self._shown * total):
            self._shown = done / total
            left = (time.monotonic() - self._began) * (total - done) / done
            parts = [f"{100 * self._shown:.0f} %", note, f"{left:.0f} s left" * (done < total)]
            say(f"  {self._description}: {', '.join(filter(None, parts))}")


@contextmanager
def bar(description: str) -> Iterator[Bar]:
    """A bar that shows its note, the time gone and the time left."""
    if not console.is_terminal:
        with doing(f"  {description}"):
            yield Bar(None, description)
        return
    cut = Column(no_wrap=True, overflow="ellipsis")
    columns = (
        TextColumn("{task.description:>9}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", "cyan", markup=False, table_column=cut),
        TimeElapsedColumn(table_column=Column(min_width=7)),
        TextColumn("left"),
        TimeRemainingColumn(compact=True, table_column=Column(min_width=5)),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        yield Bar(progress, description)


def say(text: str) -> None:
    """One line to the user; no markup is read from `text`."""
    # A terminal breaks the line: a path in it can then be copied whole.
    console.print(text, markup=False, soft_wrap=True)
