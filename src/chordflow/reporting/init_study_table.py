"""A study of beginnings as tables: for the terminal and, with the same content, as markdown."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import RenderableType

from chordflow.reporting.section import ABSENT, Cell, Section, absent, figure
from chordflow.reporting.side_by_side import (
    SEEDS,
    document,
    gap_cell,
    measured_facts,
    success_cells,
    success_ranges,
    teacher_facts,
    terminal,
)
from chordflow.results.compare import STEP_COUNTS, Figures
from chordflow.results.compare_summary import Spread, spread_of
from chordflow.results.init_study import Arm, InitStudy
from chordflow.results.init_study_summary import (
    TOLD_GAPS,
    TOLD_LOSSES,
    gap,
    headline,
    level,
    looked_at,
    loss,
    rates,
    reached,
    same_couplings,
    success,
    told_gap,
)
from chordflow.results.wording import clean, percentage, plural

HEADS = [
    "arm", "trained", *(f"gap at {n}, %:\nRMS/median/\nflips" for n in STEP_COUNTS), "told, %",
    "steps to {level}:\nRMS; median", "success at\none step, %", "points to the\nteacher", "p", "training\ns",
]  # fmt: skip

WIDE = {1, 4, 8, 9, 10}
"""Columns that a terminal has no room for."""


def render(study: InitStudy) -> RenderableType:
    """What the tables say, the tables and the facts below them, for a terminal of 100 columns."""
    return terminal(headline(study), sections(study, ranges=False), facts(study))


def markdown(study: InitStudy) -> str:
    """The same content for a document, with all columns; ends with a line break."""
    return document(headline(study), sections(study), facts(study))


def sections(study: InitStudy, *, ranges: bool = True) -> list[Section]:
    """All tables: the arms at the last checkpoint, then gap, loss and success by step.

    Args:
        study: what was measured.
        ranges: whether the least and the largest over several seeds are shown.
    """
    found = [
        _arms(study, ranges),
        _by_step(study, "gap", "Gap at one step by optimiser steps, RMS, %", gap, percentage, ranges),
        _by_step(study, "loss", "Training loss by optimiser steps", loss, _small, ranges),
    ]
    if study.env:
        title = "Success at one step by optimiser steps, %"
        found.append(_by_step(study, "success", title, rates, percentage, ranges))
    return found


def facts(study: InitStudy) -> list[tuple[str, str]]:
    """What is said below the tables, name and value."""
    gaps = ", ".join(f"from {init} {told_gap(init)} %" for init in TOLD_GAPS)
    losses = "; ".join(f"from {init} {values}" for init, values in TOLD_LOSSES.items())
    lines = [
        *teacher_facts(study),
        ("told of the distance to the teacher's actions", gaps),
        ("told of the training loss", losses),
        ("a run", f"{plural(study.steps, 'step')}; seeds {', '.join(map(str, study.seeds))}"),
    ]
    same = same_couplings(study)
    if same is not None:
        text = (
            "the same to the bit for all arms of a seed"
            if same
            else "of a seed not the same to the bit in all arms"
        )
        lines.append(("couplings", text))
    lines += [("left out", f"{arm.beginning}: {clean(arm.reason)}") for arm in study.left_out]
    return [*lines, *measured_facts(study)]


def _arms(study: InitStudy, ranges: bool) -> Section:
    below = (
        "Gap: distance to the teacher's converged ODE from the same noise, relative to the spread of its endpoints, "
        f"held out. Steps to {level(study)}: the first checkpoint at which the gap at one step is below it. Of several "
        f"seeds the median{', and below it the least and the largest' if ranges else ''}"
        f"{f'; {SEEDS}' if study.env else ''}."
    )
    section = Section(
        "arms",
        f"Students after {study.steps:,} steps",
        [head.format(level=level(study)) for head in HEADS],
        left=2,
        wide=WIDE if study.env else WIDE | {7},
        below=below,
    )
    _add_teacher(section, study)
    for arm in study.arms:
        _add(section, study, arm, ranges)
    return section


def _add_teacher(section: Section, study: InitStudy) -> None:
    """The free alternative, which stands above every student."""
    teacher = study.untrained
    if teacher is None:
        return
    gaps = [gap_cell(teacher.figures, n) for n in STEP_COUNTS]
    rows = {row.num_steps: row for row in teacher.success if row.group == "all"}
    section.add("teacher, untrained", "-", *gaps, absent(), absent(), *success_cells(rows.get(1)), absent())
    for n in sorted({2, teacher.num_steps} - {1}):
        if n in rows:
            nothing = [absent() for _ in range(5)]
            section.add(f"- at {n} steps", "-", *nothing, *success_cells(rows[n]), absent())


def _add(section: Section, study: InitStudy, arm: Arm, ranges: bool) -> None:
    last = study.at[-1]
    runs, seeds = len(looked_at(study, arm, last)), len(study.seeds)
    missing = f" ({runs} of {plural(seeds, 'seed')})" if runs < seeds else ""
    within, middle = reached(study, arm), reached(study, arm, "median")
    seconds = spread_of(run.training_s for run in study.runs_of(arm.name))
    row = success(study, arm, last)
    section.add(
        arm.name + missing,
        " ".join(arm.train) if ranges else "",
        *(_triple(study, arm, n) for n in STEP_COUNTS),
        told_gap(arm.init) or absent(),
        f"{within.text}; {middle.text}" if within and middle else absent(),
        *success_cells(row),
        figure(f"{seconds.middle:.0f}", seconds.middle) if seconds else absent(),
    )
    if ranges and runs > 1:
        section.add(
            "- least to largest",
            "",
            *(_triple(study, arm, n, _range) for n in STEP_COUNTS),
            "",
            "",
            *success_ranges([c.success[0] for c in looked_at(study, arm, last) if c.success]),
            Cell(_range(seconds, lambda value: f"{value:.0f}")),
        )


def _middle(spread: Spread | None, text: Callable[[float], str]) -> str:
    return text(spread.middle) if spread is not None else ABSENT


def _range(spread: Spread | None, text: Callable[[float], str]) -> str:
    return f"{text(spread.low)}-{text(spread.high)}" if spread is not None else ABSENT


def _triple(
    study: InitStudy,
    arm: Arm,
    num_steps: int,
    of: Callable[[Spread | None, Callable[[float], str]], str] = _middle,
) -> Cell:
    """RMS, median and flip rate at the last checkpoint, each over seeds."""
    found: list[Figures] = [c.figures for c in looked_at(study, arm, study.at[-1]) if c.figures is not None]
    rows = [row for figures in found if (row := figures.gap(num_steps)) is not None]
    spreads = [spread_of(getattr(row, name) for row in rows) for name in ("rms", "median", "flip_rate")]
    if spreads[0] is None:
        return absent()
    return figure("/".join(of(spread, percentage) for spread in spreads), spreads[0].middle)


def _by_step(
    study: InitStudy,
    key: str,
    title: str,
    of: Callable[[InitStudy, Arm, int], Spread | None],
    text: Callable[[float], str],
    ranges: bool,
) -> Section:
    """A figure at every checkpoint, a row for each arm."""
    section = Section(key, title, ["arm", *(f"{step:,}" for step in study.at)], left=1)
    for arm in study.arms:
        spreads = [of(study, arm, step) for step in study.at]
        section.add(arm.name, *(figure(_middle(s, text), s.middle) if s else absent() for s in spreads))
        if ranges and any(s is not None and s.count > 1 for s in spreads):
            section.add("- least to largest", *(Cell(_range(spread, text)) for spread in spreads))
    return section


def _small(value: float) -> str:
    return f"{value:.3g}"
