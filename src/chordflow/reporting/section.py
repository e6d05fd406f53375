"""A table before it is drawn: the same rows for the terminal, for markdown and for the page."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from chordflow.results.actions import STUDENT, TEACHER, PolicyName
from chordflow.results.schema import Results
from chordflow.results.statistics import Estimate, Interval
from chordflow.results.wording import amount, clean, estimate, percentage, plural, span, steps

ABSENT = "-"
"""What stands where nothing was measured."""

KEYS = ("round", "steps", "nfe")
"""Heads of columns of figures that tell rows apart; every part of a table that is parted has them."""

MOST_ROWS = 10
"""Rows of a summary, which a terminal shows whole."""

STOCK = "Stock LeRobot runs rows without a named solver alone: its sampler takes even Euler steps."
"""What stands below tables that have rows of other ways."""

# ---- Cells, columns, tables -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """What stands in one place.

    Attributes:
        text: as it is read.
        value: what it is sorted by; None sorts by the text.
        repeats: whether it says what the cell above says; where rows cannot be sorted it may be left empty.
    """

    text: str
    value: float | None = None
    repeats: bool = False


type Value = Cell | str | float | Estimate | Interval | None
"""What a column has of a row: text is sorted as text, an interval by its lower end; None was not measured."""

type Writes = Callable[[Any], str]


def cell(value: Value, text: Writes | None = None) -> Cell:
    """A value as it is read, its numbers written by `text`."""
    if value is None:
        return Cell(ABSENT)
    if isinstance(value, Cell):
        return value
    if isinstance(value, str):
        return Cell(value)
    if isinstance(value, Estimate):
        return Cell(estimate(value, text or amount), value.value)
    if isinstance(value, Interval):
        return Cell(span(value, text or percentage).strip(), value.low)
    return Cell((text or _whole)(value), value)


def _whole(value: float) -> str:
    return f"{value:,}".replace(",", " ") if value >= 10_000 else str(value)


@dataclass(frozen=True)
class Column[Row]:
    """One column of a table.

    Attributes:
        head: its head; a line break may part the words.
        value: what it has of a row.
        text: writes its numbers; whole numbers need none.
        note: a sentence below the table, for where the column is shown.
    """

    head: str
    value: Callable[[Row], Value]
    text: Writes | None = None
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One table: a title, column heads, rows of cells, and a line below. All plain text, nothing escaped.

    Attributes:
        key: short name, unique on the page.
        title: what the table shows.
        heads: column heads; a line break may part the words.
        left: columns of words, from the left; the others are figures.
        rows: cells, a list for each row.
        marked: rows of the student as saved.
        below: a line of explanation.
        page_only: whether the page alone shows it.
    """

    key: str
    title: str
    heads: list[str]
    left: int
    rows: list[list[Cell]]
    marked: set[int]
    below: str
    page_only: bool

    def short(self) -> "Section":
        """The table without the rows after `MOST_ROWS`."""
        more = plural(len(self.rows) - MOST_ROWS, "more row")
        below = f"{self.below} {more}: --verbose.".strip() if len(self.rows) > MOST_ROWS else self.below
        return replace(self, rows=self.rows[:MOST_ROWS], below=below)


def table[Row](
    key: str,
    title: str,
    rows: Iterable[Row],
    *columns: Column[Row],
    left: int = 1,
    below: str = "",
    marked: Callable[[Row], bool] = lambda row: False,
    page_only: bool = False,
) -> Section | None:
    """A table of columns; arguments as the attributes of `Section`.

    Args:
        key: short name.
        title: what it shows.
        rows: what each row is of.
        columns: those of figures in which nothing was measured are left out, with their notes.
        left: columns of words.
        below: a line of explanation; the columns' notes follow it.
        marked: whether a row is of the student as saved.
        page_only: whether the page alone shows it.

    Returns:
        The table, or None without rows.
    """
    rows = list(rows)
    cells = [[cell(column.value(row), column.text) for row in rows] for column in columns]
    measured = [any(one.text not in (ABSENT, "") for one in found) for found in cells]
    kept = [place for place in range(len(columns)) if place < left or measured[place]]
    if not rows:
        return None
    return Section(
        key=key,
        title=title,
        heads=[columns[place].head for place in kept],
        left=left,
        rows=[[cells[place][row] for place in kept] for row in range(len(rows))],
        marked={place for place, row in enumerate(rows) if marked(row)},
        below=" ".join(text for text in (below, *(columns[place].note for place in kept)) if text),
        page_only=page_only,
    )


# ---- Ways to act, by name and in order ------------------------------------------------------------------
# A row has a `policy`; where the way it acts may be another than even Euler steps, a `solver` and a `grid_power`.


def ordered(results: Results, names: Iterable[PolicyName]) -> list[PolicyName]:
    """Each name once: the teacher, the student, then the others as the run lists them."""
    listed = [TEACHER, STUDENT, *(policy.name for policy in results.policies)]
    names = set(names)
    return [name for name in dict.fromkeys(listed) if name in names] + sorted(names - set(listed))


def in_order[Row](results: Results, rows: Iterable[Row]) -> list[Row]:
    """Rows by policy, each first by even Euler steps, then by other ways, from many steps to few."""
    found: list[Any] = list(rows)
    names = ordered(results, (row.policy for row in found))
    return sorted(
        found,
        key=lambda row: (names.index(row.policy), _solver(row) != EVEN, _solver(row)[0], -row.num_steps),
    )


EVEN: tuple[str, float] = ("euler", 1.0)


def _solver(row: Any) -> tuple[str, float]:
    return getattr(row, "solver", "euler"), getattr(row, "grid_power", 1)


def way(row: Any) -> str:
    """A policy with its solver and grid, where these are not even Euler steps."""
    solver, power = _solver(row)
    if (solver, power) == EVEN:
        return clean(row.policy)
    return f"{clean(row.policy)}, {clean(solver)}{'' if power == 1 else f' (grid {power:g})'}"


def at(row: Any) -> str:
    """A way to act with its steps, such as `teacher at two steps`."""
    return f"{way(row)} at {steps(row.num_steps)}"


def brief(row: Any, longest: int = 26) -> str:
    """The same where there is little room, such as `teacher, 2 steps`: the name is cut, the steps are kept."""
    name, rest = way(row), f", {plural(row.num_steps, 'step')}"
    room = longest - len(rest)
    return (name if len(name) <= room else name[: room - 1].rstrip() + "…") + rest


def as_saved(results: Results, row: Any) -> bool:
    """Whether a row is of the student as saved."""
    own = results.way(STUDENT)
    solver, power = (getattr(row, name, of) for name, of in zip(("solver", "grid_power"), own, strict=True))
    return (row.policy, row.num_steps, solver, power) == (STUDENT, results.student_num_steps, *own)


POLICY: Column[Any] = Column("policy", way)
STEPS: Column[Any] = Column("steps", lambda row: row.num_steps)
