"""A study of rounds as one table: for the terminal and, with the same content, as markdown."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import RenderableType

from chordflow.reporting.section import ABSENT, Cell, Section, absent, figure
from chordflow.reporting.side_by_side import (
    SEEDS,
    document,
    gap_cell,
    gap_text,
    least_to_largest,
    measured_facts,
    success_cells,
    success_ranges,
    teacher_facts,
    terminal,
)
from chordflow.results.compare import STEP_COUNTS
from chordflow.results.rounds_study import Diversity, RoundArm, RoundRun, RoundsStudy
from chordflow.results.rounds_summary import (
    curvature_of,
    gap_of,
    headline,
    judged,
    modes_at_one,
    over_seeds,
    spread_at_one,
    success,
)
from chordflow.results.wording import clean, percent, percentage, plural, steps

HEADS = [
    "arm", "round", "curvature\n%", *(f"gap at {n}, %:\nRMS/median/\nflips" for n in STEP_COUNTS),
    "spread\n%", "modes\nkept %", "success at\none step, %", "points to the\nteacher", "p",
    "curvature\nfalls by %", "gap at\n1 falls\nby %", "pays\n(seeds)", "training\ns",
]  # fmt: skip

SHORT = {
    "curvature\n%": "curva-\nture %",
    "curvature\nfalls by %": "curva-\nture falls\nby %",
}
"""Heads of the terminal where words are longer than its columns."""

WIDE = {4, 5, 7, 9, 10, 14}
"""Columns that a terminal has no room for."""

FALLS = {11, 12}
"""Those that have to go as well where success takes their room."""


def render(study: RoundsStudy) -> RenderableType:
    """What the table says, the table and the facts below it, for a terminal of 100 columns."""
    return terminal(headline(study), [table(study, ranges=False)], facts(study))


def markdown(study: RoundsStudy) -> str:
    """The same content for a document, with all columns; ends with a line break."""
    return document(headline(study), [table(study)], facts(study))


def table(study: RoundsStudy, *, ranges: bool = True) -> Section:
    """The table: the untrained teacher, then a row for each round of each arm.

    Args:
        study: what was measured.
        ranges: whether a second row shows the least and the largest over several seeds.
    """
    below = ", and below it the least and the largest" if ranges else ""
    more = "" if ranges else " Ranges and further columns: rounds.md."
    episodes = any(run.success for run in study.runs)
    section = Section(
        "rounds",
        "Rounds of reflow",
        HEADS if ranges else [SHORT.get(head, head) for head in HEADS],
        left=1,
        wide=WIDE | (FALLS if episodes else {8}),
        below="Gap: distance to the first teacher's converged ODE from the same noise, relative to the spread of its "
        "endpoints, held out. Spread and modes: of the endpoints of one step over noise, beside the first teacher's as "
        f"deployed. Of several seeds the median{below}{f'; {SEEDS}' if episodes else ''}. Falls are against the round "
        f"before, those of the first round against the untrained teacher.{more}",
    )
    _add_teacher(section, study)
    for arm in study.arms:
        for round in range(1, arm.rounds_of(study.rounds) + 1):
            _add(section, study, arm, round, ranges)
    return section


def facts(study: RoundsStudy) -> list[tuple[str, str]]:
    """What is said below the table, name and value."""
    seeds = ", ".join(map(str, study.seeds))
    shared = [arm.name for arm in study.arms if arm.start_of(1) == "teacher"]
    lines = [
        *teacher_facts(study),
        ("each round", f"{plural(study.steps, 'step')}; seeds {seeds}"),
        (
            "a round pays",
            f"where curvature or the gap at one step falls by {percent(study.least_gain)} or more and the gap does not "
            "grow: yes or no by the medians over seeds, and in brackets the seeds where it does by themselves",
        ),
    ]
    if study.diversity:
        lines.append(("observations with several modes", str(study.diversity[0].several)))
    once = [arm.steps_of(study.steps, study.rounds) for arm in study.arms if arm.start == "once"]
    if once:
        lines.append(("once", f"one round of {plural(once[0], 'step')}"))
    if len(shared) > 1:
        lines.append(("arms", "round 1 is one run for all that differ in what later rounds begin as"))
    return [*lines, *measured_facts(study)]


def _add_teacher(section: Section, study: RoundsStudy) -> None:
    """The free alternative, which stands beside every student."""
    teacher = study.untrained
    if teacher is None:
        return
    acted = {row.num_steps: row for row in teacher.success if row.group == "all"}
    spread = next((row for row in study.diversity if row.num_steps == 1), None)
    nothing = [absent() for _ in range(4)]
    section.add(
        "teacher, untrained",
        figure("0", 0),
        figure(percentage(teacher.figures.curvature), teacher.figures.curvature),
        *(gap_cell(teacher.figures, n) for n in STEP_COUNTS),
        *_spread_cells(spread),
        *success_cells(acted.get(1)),
        *nothing,
    )
    for n in sorted({2, teacher.num_steps} - {1}):
        if n in acted:
            name = f"{'' if n != teacher.num_steps else 'deployed, '}at {steps(n)}"
            section.add(f"- {name}", *(absent() for _ in range(7)), *success_cells(acted[n]), *nothing)


def _spread_cells(row: Diversity | None) -> list[Cell]:
    if row is None:
        return [absent(), absent()]
    kept = row.modes_kept
    return [
        figure(percentage(row.spread), row.spread),
        absent() if kept is None else figure(percentage(kept), kept),
    ]


def _add(section: Section, study: RoundsStudy, arm: RoundArm, round: int, ranges: bool) -> None:
    runs = study.runs_of(arm, round)
    missing = f" ({len(runs)}/{len(study.seeds)} seeds)" if len(runs) < len(study.seeds) else ""

    def middle(value: Callable[[RoundRun], float | None], text: Callable[[float], str]) -> Cell:
        spread = over_seeds(study, arm, round, value)
        return absent() if spread is None else figure(text(spread.middle), spread.middle)

    def whole(value: Callable[[RoundRun], float | None], text: Callable[[float], str]) -> Cell:
        return Cell(least_to_largest(over_seeds(study, arm, round, value), text))

    found = judged(study, arm, round)
    falls = [absent(), absent(), absent()]
    if found is not None:
        answer = f"{'yes' if found.gain.pays else 'no'} ({found.pays}/{found.count})"
        falls = [
            figure(_fall(found.gain.curvature), found.gain.curvature),
            figure(_fall(found.gain.gap), found.gain.gap),
            Cell(answer),
        ]
    section.add(
        clean(arm.name) + missing,
        figure(str(round), round),
        middle(curvature_of, percentage),
        *(_gap_middle(study, arm, round, n) for n in STEP_COUNTS),
        middle(spread_at_one, percentage),
        middle(modes_at_one, percentage),
        *success_cells(success(study, arm, round)),
        *falls,
        middle(lambda run: run.training_s, _seconds),
    )
    if ranges and len(runs) > 1:
        section.add(
            "- least to largest",
            "",
            whole(curvature_of, percentage),
            *(
                Cell(
                    "/".join(
                        least_to_largest(over_seeds(study, arm, round, gap_of(name, n)), percentage) or ABSENT
                        for name in GAP
                    )
                )
                for n in STEP_COUNTS
            ),
            whole(spread_at_one, percentage),
            whole(modes_at_one, percentage),
            *success_ranges([run.success[0] for run in runs if run.success]),
            "",
            "",
            "",
            whole(lambda run: run.training_s, _seconds),
        )


GAP = ("rms", "median", "flip_rate")


def _gap_middle(study: RoundsStudy, arm: RoundArm, round: int, num_steps: int) -> Cell:
    rms, middle, flips = (over_seeds(study, arm, round, gap_of(name, num_steps)) for name in GAP)
    if rms is None or middle is None:
        return absent()
    return figure(gap_text(rms.middle, middle.middle, flips.middle if flips else None), rms.middle)


def _fall(reduction: float) -> str:
    """A relative reduction in percent; what grew has a sign."""
    return f"{100 * reduction:.0f}" if abs(reduction) < 100 else "-"


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
