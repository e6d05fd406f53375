"""A table before it is drawn: the same rows for the terminal, for markdown and for the page."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from chordflow.results.schema import STUDENT, TEACHER, PolicyName, Results
from chordflow.results.wording import clean, steps

ABSENT = "-"
"""What stands where nothing was measured."""


@dataclass(frozen=True)
class Cell:
    """What stands in one place.

    Attributes:
        text: As it is read, plain text.
        value: What it is sorted by; None sorts by the text.
        repeats: It says what the cell above says; where rows cannot be sorted it may be left empty.
    """

    text: str
    value: float | None = None
    repeats: bool = False


@dataclass
class Section:
    """One table: a title, column heads, rows of cells, and a line below. All plain text, nothing escaped.

    Attributes:
        key: Short name, unique on the page.
        title: What the table shows.
        heads: Column heads; a line break may part the words.
        left: Columns of words, from the left; the others are figures.
        rows: Cells, a list for each row.
        marked: Rows of the student as saved.
        below: A line of explanation of the whole table.
        notes: Sentences that follow it, each with the heads of the columns that it is about; see ``note``.
        wide: Columns that the terminal leaves out.
        terminal: Whether the terminal shows it.
        markdown: Whether markdown and the model card show it; the page shows all.
    """

    key: str
    title: str
    heads: list[str]
    left: int
    rows: list[list[Cell]] = field(default_factory=list)
    marked: set[int] = field(default_factory=set)
    below: str = ""
    notes: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    wide: set[int] = field(default_factory=set)
    terminal: bool = True
    markdown: bool = True

    def add(self, *cells: Cell | str, marked: bool = False) -> None:
        """Append a row; text alone is sorted as text."""
        if marked:
            self.marked.add(len(self.rows))
        self.rows.append([cell if isinstance(cell, Cell) else Cell(cell) for cell in cells])

    def note(self, text: str, *heads: str) -> None:
        """Add a sentence to the line below, for where these columns are shown."""
        self.notes.append((text, heads))

    def shown(self, *, narrow: bool = False) -> "Section":
        """The table without columns of figures in which nothing was measured, and without notes on columns left out.

        Args:
            narrow: Leave the wide columns out as well.
        """
        kept = [
            place
            for place in range(len(self.heads))
            if not (narrow and place in self.wide)
            and (place < self.left or any(row[place].text not in (ABSENT, "") for row in self.rows))
        ]
        heads = [self.heads[place] for place in kept]
        notes = [text for text, about in self.notes if all(head in heads for head in about)]
        return replace(
            self,
            heads=heads,
            rows=[[row[place] for place in kept] for row in self.rows],
            left=sum(place < self.left for place in kept),
            wide={new for new, place in enumerate(kept) if place in self.wide},
            below=" ".join([self.below] * bool(self.below) + notes),
            notes=[],
        )


def figure(text: str, value: float | None) -> Cell:
    """A cell that is sorted by a number."""
    return Cell(text, value)


def count(value: int) -> Cell:
    """A whole number."""
    return Cell(f"{value:,}".replace(",", " ") if value >= 10_000 else str(value), value)


def absent() -> Cell:
    """Where nothing was measured: sorted after all that was."""
    return Cell(ABSENT, None)


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
    """A way to act with its steps, such as ``teacher at two steps``."""
    return f"{way(policy, solver, grid_power)} at {steps(num_steps)}"


def brief(
    policy: PolicyName, num_steps: int, solver: str = "euler", grid_power: float = 1.0, longest: int = 26
) -> str:
    """The same where there is little room, such as ``teacher, 2 steps``: the name is cut, the steps are kept."""
    name, rest = way(policy, solver, grid_power), f", {num_steps} step{'' if num_steps == 1 else 's'}"
    room = longest - len(rest)
    return (name if len(name) <= room else name[: room - 1].rstrip() + "…") + rest


STOCK = "Stock LeRobot runs rows without a named solver alone: its sampler takes even Euler steps."
"""What is said below tables that have rows of other ways."""


def is_student(results: Results, policy: PolicyName, num_steps: int, solver: str = "euler") -> bool:
    """Whether this is the student as saved."""
    return (policy, solver, num_steps) == (STUDENT, "euler", results.student_num_steps)
