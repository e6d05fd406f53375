"""A comparison of methods as one table: for the terminal and, with the same content, as markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import RenderableType

from chordflow.reporting.section import ABSENT, Cell, Section, absent, figure
from chordflow.reporting.side_by_side import (
    SEEDS,
    document,
    gap_cell,
    least_to_largest,
    measured_facts,
    success_cells,
    success_ranges,
    teacher_facts,
    terminal,
)
from chordflow.results.compare import STEP_COUNTS, Comparison, Entry, Figures, Run
from chordflow.results.compare_summary import (
    Spread,
    headline,
    over_seeds,
    shown,
    success,
    trained_for,
    untaken,
)
from chordflow.results.wording import clean, percentage, plural, steps

HEADS = [
    "method", "curvature\n%", *(f"gap at {n}, %:\nRMS/median/\nflips" for n in STEP_COUNTS),
    "to the floor\nat 1: RMS/\nnearer, %", "success at\none step, %",
    "points to the\nteacher", "p", "training\ns", "samples", "stock\ncheckpoint",
    "for\nsteps",
]  # fmt: skip

SHORT = {"curvature\n%": "curva-\nture %", "training\ns": "train-\ning s"}
"""Heads that are wider than their figures, for a terminal."""

TRAINING = 9
"""The column of seconds."""

WIDE = {5, 7, 8, 10, 11, 12}
"""Columns that a terminal has no room for."""


def render(comparison: Comparison) -> RenderableType:
    """What the table says, the table and the facts below it, for a terminal of 100 columns."""
    return terminal(headline(comparison), [table(comparison, ranges=False)], facts(comparison))


def markdown(comparison: Comparison) -> str:
    """The same content for a document, with all columns; ends with a line break."""
    return document(headline(comparison), [table(comparison)], facts(comparison))


def table(comparison: Comparison, *, ranges: bool = True) -> Section:
    """The table: the untrained teacher, then a row for each method.

    Args:
        comparison: what was measured.
        ranges: whether a second row shows the least and the largest over several seeds.
    """
    below = (
        f"Of several seeds the median{', and below it the least and the largest' if ranges else ''}"
        f"{f'; {SEEDS}' if comparison.env else ''}."
    )
    if not ranges:
        below += " Ranges and further columns: compare.md."
    section = Section(
        "compare",
        "Methods at one budget",
        HEADS if ranges else [SHORT.get(head, head) for head in HEADS],
        left=1,
        # Beside the intervals of episodes there is no room for seconds.
        wide=WIDE | ({TRAINING} if any(run.success for run in comparison.runs) else set()),
        below="Gap: distance to the teacher's converged ODE from the same noise, relative to the spread of its "
        f"endpoints, held out. {below}",
    )
    _add_teacher(section, comparison)
    for entry in shown(comparison):
        _add(section, comparison, entry, ranges)
    return section


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What is said below the table, name and value."""
    budget = plural(comparison.steps, "step") if comparison.steps is not None else f"{comparison.seconds:g} s"
    return [
        *teacher_facts(comparison),
        ("budget of a run", f"{budget}; seeds {', '.join(map(str, comparison.seeds))}"),
        *measured_facts(comparison),
    ]


def _add_teacher(section: Section, comparison: Comparison) -> None:
    """The free alternative, which stands beside every student."""
    teacher = comparison.untrained
    if teacher is None:
        return
    rows = {row.num_steps: row for row in teacher.success if row.group == "all"}
    nothing = [absent() for _ in range(4)]
    section.add(
        "teacher, untrained",
        figure(percentage(teacher.figures.curvature), teacher.figures.curvature),
        *(gap_cell(teacher.figures, n) for n in STEP_COUNTS),
        _floor_cell(teacher.figures),
        *success_cells(rows.get(1)),
        *nothing,
    )
    for n in sorted({2, teacher.num_steps} - {1}):
        if n in rows:
            name = f"{'' if n != teacher.num_steps else 'deployed, '}at {steps(n)}"
            section.add(f"- {name}", *(absent() for _ in range(5)), *success_cells(rows[n]), *nothing)


def _add(section: Section, comparison: Comparison, entry: Entry, ranges: bool) -> None:
    runs, seeds = comparison.runs_of(entry.name), len(comparison.seeds)
    missing = f" ({len(runs)} of {plural(seeds, 'seed')})" if ranges else f" ({len(runs)}/{seeds})"
    missing = missing if len(runs) < seeds else ""
    own = Row(comparison, entry.name)
    section.add(
        clean(entry.name) + missing + (" (no step)" if untaken(comparison, entry.name) else ""),
        own.middle(lambda run: run.figures.curvature if run.figures else None, percentage),
        *(own.gap_middle(n) for n in STEP_COUNTS),
        own.floor_middle(),
        *success_cells(success(comparison, entry.name)),
        own.middle(lambda run: run.training_s, _plain),
        own.middle(lambda run: run.samples, _whole),
        "yes" if entry.stock_checkpoint else "no",
        trained_for(entry),
    )
    if ranges and len(runs) > 1:
        section.add(
            "- least to largest",
            own.range(lambda run: run.figures.curvature if run.figures else None, percentage),
            *(own.gap_range(n) for n in STEP_COUNTS),
            own.floor_range(),
            *success_ranges([run.success[0] for run in runs if run.success]),
            own.range(lambda run: run.training_s, _plain),
            own.range(lambda run: run.samples, _whole),
            "",
            "",
        )


@dataclass(frozen=True)
class Row:
    """The figures of one method over its seeds, as cells.

    Attributes:
        comparison: the comparison.
        method: whose.
    """

    comparison: Comparison
    method: str

    def middle(self, value: Callable[[Run], float | None], text: Callable[[float], str]) -> Cell:
        """The median."""
        spread = over_seeds(self.comparison, self.method, value)
        return absent() if spread is None else figure(text(spread.middle), spread.middle)

    def range(self, value: Callable[[Run], float | None], text: Callable[[float], str]) -> Cell:
        """The least and the largest; empty where there is none."""
        return Cell(least_to_largest(over_seeds(self.comparison, self.method, value), text))

    def gap_middle(self, num_steps: int) -> Cell:
        """The medians of RMS, median and flip rate."""
        found = self._gaps(num_steps)
        if found[0] is None:
            return absent()
        return figure("/".join(percentage(s.middle) if s else ABSENT for s in found), found[0].middle)

    def gap_range(self, num_steps: int) -> Cell:
        """The ranges of the three."""
        return Cell(
            "/".join(least_to_largest(spread, percentage) or ABSENT for spread in self._gaps(num_steps))
        )

    def floor_middle(self) -> Cell:
        """The medians of the ratio to the floor and of the share of pairs nearer than the deployed teacher's."""
        ratio, nearer = self._floor()
        if ratio is None or nearer is None:
            return absent()
        return figure(f"{_ratio(ratio.middle)}/{percentage(nearer.middle)}", ratio.middle)

    def floor_range(self) -> Cell:
        """The ranges of the two."""
        ratio, nearer = self._floor()
        return Cell(
            "/".join(
                [least_to_largest(ratio, _ratio) or ABSENT, least_to_largest(nearer, percentage) or ABSENT]
            )
        )

    def _floor(self) -> tuple[Spread | None, Spread | None]:
        def ratio(run: Run) -> float | None:
            row = run.figures.gap(1) if run.figures is not None else None
            return row.ratio_to_floor.value if row is not None and row.ratio_to_floor is not None else None

        def nearer(run: Run) -> float | None:
            row = run.figures.gap(1) if run.figures is not None else None
            return row.nearer_than_deployed if row is not None else None

        return over_seeds(self.comparison, self.method, ratio), over_seeds(
            self.comparison, self.method, nearer
        )

    def _gaps(self, num_steps: int) -> list[Spread | None]:
        def of(name: str) -> Callable[[Run], float | None]:
            def value(run: Run) -> float | None:
                row = run.figures.gap(num_steps) if run.figures is not None else None
                return getattr(row, name) if row is not None else None

            return value

        return [over_seeds(self.comparison, self.method, of(n)) for n in ("rms", "median", "flip_rate")]


def _floor_cell(figures: Figures) -> Cell:
    row = figures.gap(1)
    if row is None or row.ratio_to_floor is None or row.nearer_than_deployed is None:
        return absent()
    return figure(
        f"{_ratio(row.ratio_to_floor.value)}/{percentage(row.nearer_than_deployed)}", row.ratio_to_floor.value
    )


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _plain(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")
