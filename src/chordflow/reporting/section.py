"""A table before it is drawn: the same rows for the terminal, for markdown and for the page."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from chordflow.results.actions import STUDENT, TEACHER, PolicyName
from chordflow.results.schema import Results
from chordflow.results.statistics import Estimate, Interval
from chordflow.results.wording import amount, clean, estimate, percentage, plural, span, steps

ABSENT = "-"
"""What stands where nothing was measured."""

MOST_ROWS = 10
"""Rows of a summary, which a terminal shows whole."""


@dataclass(frozen=True)
class Cell:
    """What stands in one place.

    Attributes:
        text: as it is read, plain text.
        value: what it is sorted by; None sorts by the text.
        repeats: it says what the cell above says; where rows cannot be sorted it may be left empty.
    """

    text: str
    value: float | None = None
    repeats: bool = False


@dataclass(frozen=True)
class Column[Row]:
    """One column of a table.

    Attributes:
        head: its head; a line break may part the words.
        cell: what it shows of a row; text alone is sorted as text.
        note: a sentence below the table, for where the column is shown.
    """

    head: str
    cell: Callable[[Row], Cell | str]
    note: str = ""


@dataclass
class Section:
    """One table: a title, column heads, rows of cells, and a line below. All plain text, nothing escaped.

    Attributes:
        key: short name, unique on the page.
        title: what the table shows.
        heads: column heads; a line break may part the words.
        left: columns of words, from the left; the others are figures.
        rows: cells, a list for each row.
        marked: rows of the student as saved.
        below: a line of explanation of the whole table.
        notes: sentences that follow it, each with the heads of the columns that it is about; see `note`.
        page_only: whether the page alone shows it.
        wide: columns that a summary leaves out.
    """

    key: str
    title: str
    heads: list[str]
    left: int
    rows: list[list[Cell]] = field(default_factory=list)
    marked: set[int] = field(default_factory=set)
    below: str = ""
    notes: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    page_only: bool = False
    wide: Collection[int] = ()

    def add(self, *cells: Cell | str, marked: bool = False) -> None:
        """Append a row; text alone is sorted as text."""
        if marked:
            self.marked.add(len(self.rows))
        self.rows.append([cell if isinstance(cell, Cell) else Cell(cell) for cell in cells])

    def note(self, text: str, *heads: str) -> None:
        """Add a sentence to the line below, for where these columns are shown."""
        self.notes.append((text, heads))

    def shown(self, *, short: bool = False) -> "Section":
        """The table without columns of figures in which nothing was measured, and without notes on those.

        Args:
            short: without its wide columns and the rows after `MOST_ROWS` either.
        """
        kept = [
            place
            for place in range(len(self.heads))
            if not (short and place in self.wide)
            and (place < self.left or any(row[place].text not in (ABSENT, "") for row in self.rows))
        ]
        heads = [self.heads[place] for place in kept]
        notes = [text for text, about in self.notes if all(head in heads for head in about)]
        more = len(self.rows) - MOST_ROWS if short else 0
        if more > 0:
            notes.append(f"{plural(more, 'more row')}: --verbose.")
        return replace(
            self,
            heads=heads,
            left=sum(place < self.left for place in kept),
            rows=[[row[place] for place in kept] for row in self.rows[: MOST_ROWS if short else None]],
            below=" ".join([self.below] * bool(self.below) + notes),
            notes=[],
            wide=(),
        )


def table[Row](
    key: str,
    title: str,
    rows: Iterable[Row],
    columns: Sequence[Column[Row]],
    *,
    left: int = 1,
    below: str = "",
    marked: Callable[[Row], bool] = lambda row: False,
    page_only: bool = False,
) -> Section | None:
    """A table of columns.

    Args:
        key: short name, unique on the page.
        title: what it shows.
        rows: what each row is of.
        columns: the columns; those in which nothing was measured are left out.
        left: columns of words, from the left.
        below: a line of explanation.
        marked: whether a row is of the student as saved.
        page_only: whether the page alone shows it.

    Returns:
        The table, or None without rows.
    """
    section = Section(key, title, [column.head for column in columns], left, below=below, page_only=page_only)
    for row in rows:
        section.add(*(column.cell(row) for column in columns), marked=marked(row))
    for column in columns:
        if column.note:
            section.note(column.note, column.head)
    return section.shown() if section.rows else None


def figure(text: str, value: float | None) -> Cell:
    """A cell that is sorted by a number."""
    return Cell(text, value)


def count(value: int | None) -> Cell:
    """A whole number."""
    if value is None:
        return absent()
    return Cell(f"{value:,}".replace(",", " ") if value >= 10_000 else str(value), value)


def absent() -> Cell:
    """Where nothing was measured: sorted after all that was."""
    return Cell(ABSENT, None)


def number(value: float | None, text: Callable[[float], str]) -> Cell:
    """A number, written by `text`."""
    return absent() if value is None else Cell(text(value), value)


def ends(interval: Interval | None, text: Callable[[float], str] = percentage) -> Cell:
    """An interval, sorted by its lower end."""
    return absent() if interval is None else Cell(span(interval, text).strip(), interval.low)


def measure(found: Estimate | None, text: Callable[[float], str] = amount) -> Cell:
    """A measure with its interval."""
    return absent() if found is None else Cell(estimate(found, text), found.value)


def ordered(results: Results, names: Iterable[PolicyName]) -> list[PolicyName]:
    """Each name once: the teacher, the student, then the others as the run lists them."""
    listed = [TEACHER, STUDENT, *(policy.name for policy in results.policies)]
    names = list(dict.fromkeys(names))
    known = [name for name in dict.fromkeys(listed) if name in names]
    return known + sorted(name for name in names if name not in listed)


def rank(results: Results, names: Iterable[PolicyName]) -> dict[PolicyName, int]:
    """Place of each name in that order."""
    return {name: place for place, name in enumerate(ordered(results, names))}


def way(policy: PolicyName, solver: str = "euler", grid_power: float = 1.0) -> str:
    """A policy with its solver and grid, where these are not even Euler steps."""
    if (solver, grid_power) == ("euler", 1):
        return clean(policy)
    return f"{clean(policy)}, {clean(solver)}{'' if grid_power == 1 else f' (grid {grid_power:g})'}"


def at(policy: PolicyName, num_steps: int, solver: str = "euler", grid_power: float = 1.0) -> str:
    """A way to act with its steps, such as `teacher at two steps`."""
    return f"{way(policy, solver, grid_power)} at {steps(num_steps)}"


def brief(
    policy: PolicyName, num_steps: int, solver: str = "euler", grid_power: float = 1.0, longest: int = 26
) -> str:
    """The same where there is little room, such as `teacher, 2 steps`: the name is cut, the steps are kept."""
    name, rest = way(policy, solver, grid_power), f", {num_steps} step{'' if num_steps == 1 else 's'}"
    room = longest - len(rest)
    return (name if len(name) <= room else name[: room - 1].rstrip() + "…") + rest


STOCK = "Stock LeRobot runs rows without a named solver alone: its sampler takes even Euler steps."
"""What stands below tables that have rows of other ways."""


def is_student(results: Results, policy: PolicyName, num_steps: int, solver: str = "euler") -> bool:
    """Whether this is the student as saved."""
    return (policy, solver, num_steps) == (STUDENT, "euler", results.student_num_steps)
