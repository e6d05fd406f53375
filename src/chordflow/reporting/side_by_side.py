"""What tables of students side by side have in common: cells of gaps and success, and the facts below."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from rich.console import Group, RenderableType
from rich.text import Text

from chordflow.reporting.section import ABSENT, Cell, Section, absent, figure
from chordflow.reporting.table import drawn, escape, held_out, written
from chordflow.results.compare import Figures, Untrained
from chordflow.results.compare_summary import Spread, spread_of
from chordflow.results.schema import HeldOut, SuccessRow
from chordflow.results.wording import clean, p_value, percentage, points, span, steps

Facts = list[tuple[str, str]]
"""What stands below tables: names and values."""

SEEDS = "success, points and p are those of the seed with the median success, since all seeds run the same episodes"
"""What is said below a table of the success of several seeds (`compare_summary.middle_seed`)."""


class Record(Protocol):
    """What is read here of a comparison or a study."""

    @property
    def teacher(self) -> str:
        """The checkpoint."""

    @property
    def untrained(self) -> Untrained | None:
        """What was measured of it."""

    @property
    def held_out(self) -> HeldOut | None:
        """The observations measured on."""

    @property
    def env(self) -> str:
        """The environment of episodes."""

    @property
    def device(self) -> str:
        """Its name."""

    @property
    def versions(self) -> dict[str, str]:
        """Of what it was made by."""


def teacher_facts(record: Record) -> Facts:
    """The teacher and its floor, name and value."""
    teacher = record.untrained
    deployed = f", deployed at {steps(teacher.num_steps)}" if teacher is not None else ""
    lines = [("teacher", f"{clean(record.teacher)}{deployed}")]
    if teacher is not None and (floor := teacher.figures.gap(teacher.num_steps)) is not None:
        floor_text = gap_text(floor.rms, floor.median, floor.flip_rate)
        lines.append(("gap of the teacher as deployed (the floor)", f"{floor_text} % (RMS/median/flips)"))
    return lines


def measured_facts(record: Record) -> Facts:
    """On what, where and by what it was measured, name and value."""
    lines = []
    if (held := record.held_out) is not None:
        lines.append(("held out", held_out(held)))
    if record.env:
        lines.append(("episodes", f"{clean(record.env)}; paired noise"))
    lines.append(("device", clean(record.device)))
    versions = ", ".join(f"{name} {clean(value)}" for name, value in record.versions.items())
    return [*lines, ("versions", versions)]


def gap_text(rms: float, middle: float, flips: float | None) -> str:
    """RMS, median and flip rate of a gap in percent."""
    return "/".join([percentage(rms), percentage(middle), percentage(flips) if flips is not None else ABSENT])


def gap_cell(figures: Figures, num_steps: int) -> Cell:
    """The gap at a number of Euler steps."""
    row = figures.gap(num_steps)
    return absent() if row is None else figure(gap_text(row.rms, row.median, row.flip_rate), row.rms)


def success_cells(row: SuccessRow | None) -> list[Cell]:
    """Success with its interval, the paired difference to the deployed teacher with its own, and the test."""
    if row is None:
        return [absent(), absent(), absent()]
    rate = figure(f"{percentage(row.rate)}{span(row.interval, percentage)}", row.rate)
    pairs = row.versus_teacher
    if pairs is None:
        return [rate, absent(), absent()]
    difference = pairs.difference
    text = f"{points(difference.value)}{span(difference.interval, points)}"
    return [rate, figure(text, difference.value), figure(p_value(pairs.p_value), pairs.p_value)]


def success_ranges(rows: Sequence[SuccessRow]) -> list[Cell]:
    """The least and the largest of the same three figures over seeds; each empty where it is not known.

    Args:
        rows: of one way to act, one for each seed.
    """
    pairs = [row.versus_teacher for row in rows if row.versus_teacher is not None]
    return [
        Cell(least_to_largest(spread_of(row.rate for row in rows), percentage)),
        # Figures with a sign are not joined by a dash.
        Cell(least_to_largest(spread_of(pair.difference.value for pair in pairs), points, " to ")),
        Cell(least_to_largest(spread_of(pair.p_value for pair in pairs), p_value, " to ")),
    ]


def least_to_largest(spread: Spread | None, text: Callable[[float], str], joint: str = "-") -> str:
    """The range of a figure over seeds; empty where it is not known."""
    return "" if spread is None else f"{text(spread.low)}{joint}{text(spread.high)}"


def terminal(head: str, sections: Iterable[Section], facts: Facts) -> RenderableType:
    """What tables say, the tables and the facts below them, for a terminal of 100 columns."""
    parts: list[RenderableType] = [Text(head, style="bold"), Text()]
    for section in sections:
        parts += [drawn(section), Text()]
    return Group(*parts, *(Text(f"{name}: {value}") for name, value in facts))


def document(head: str, sections: Iterable[Section], facts: Facts) -> str:
    """The same for a document; ends with a line break."""
    blocks = [f"**{escape(head)}**", *(block for section in sections for block in written(section))]
    blocks.append("\n".join(f"- {name}: {escape(value)}" for name, value in facts))
    return "\n\n".join(blocks) + "\n"
