"""A study as tables: for the terminal and, with the same content, as markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from chordflow import console
from chordflow.reporting.section import ABSENT, Cell, Section, absent, figure
from chordflow.reporting.table import drawn, escape, held_out, written
from chordflow.results.episodes import SuccessRow
from chordflow.results.study import STEP_COUNTS, Arm, Look, Study
from chordflow.results.study_summary import (
    Figure,
    Measured,
    budget,
    curvature,
    diversity,
    gap,
    headline,
    judged,
    level,
    loss,
    measured,
    middle_seed,
    over_seeds,
    reached,
    same_couplings,
    solved,
    spread_of,
    untaken,
)
from chordflow.results.wording import (
    clean,
    counted,
    p_value,
    percent,
    percentage,
    plural,
    points,
    span,
    steps,
)

SEEDS = "Success, points and p are those of the seed with the median success, since all seeds run the same episodes."
"""What is said below a table of the success of several seeds."""


@dataclass(frozen=True)
class Row:
    """What one row shows: an arm, one round of a chain, or the untrained teacher.

    Attributes:
        study: the study.
        name: the first cell.
        measured: one student for each seed.
        chain: the rounds, this one among them; empty for the teacher.
        place: of the round, from 0; -1 for the teacher at one step, lower for it at more.
    """

    study: Study
    name: str
    measured: list[Measured]
    chain: Sequence[Arm] = ()
    place: int = -1

    @property
    def arm(self) -> Arm | None:
        """The arm; None for the teacher."""
        return self.chain[self.place] if self.chain else None


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        head: its heading.
        parts: figures and their texts; a cell holds the medians over seeds, and below it the ranges.
        own: makes the cell in place of the medians.
        needs: the trait of the studies that have such a column; one in which nothing was measured is left out anyway.
        narrow: the trait of the studies in which a terminal has room for it.
        joint: between the least and the largest.
    """

    head: str
    parts: Sequence[tuple[Figure, Callable[[float], str]]] = ()
    own: Callable[[Row], Cell] | None = None
    needs: str = "any"
    narrow: str = ""
    joint: str = "-"

    def cell(self, row: Row) -> Cell:
        """The medians of a row."""
        if self.own is not None:
            return self.own(row)
        spreads = [(spread_of(map(of, row.measured)), text) for of, text in self.parts]
        first = spreads[0][0]
        texts = [text(spread.middle) if spread else ABSENT for spread, text in spreads]
        return figure("/".join(texts), first.middle) if first is not None else absent()

    def range(self, row: Row) -> Cell:
        """The least and the largest; empty where there are none."""
        spreads = [(spread_of(map(of, row.measured)), text) for of, text in self.parts]
        texts = [f"{text(s.low)}{self.joint}{text(s.high)}" if s else ABSENT for s, text in spreads]
        return Cell("/".join(texts) if any(spread for spread, _ in spreads) else "")


def _traits(study: Study) -> set[str]:
    """What decides over columns: several looks, chains, neither; arms that settings make."""
    found = {"looks"} if study.looks_often else set()
    found |= {"chains"} if any(len(chain) > 1 for chain in study.chains) else set()
    return {
        "any",
        *(found or {"neither"}),
        *({"settings"} if study.preset not in ("methods", "rounds") else set()),
    }


def _pairs(name: str) -> Figure:
    """A figure of the paired comparison with the deployed teacher."""

    def of(one: Measured) -> float | None:
        pairs = one.look.success[0].versus_teacher if one.look.success else None
        if pairs is None:
            return None
        return pairs.difference.value if name == "difference" else pairs.p_value

    return of


def _acted(text: Callable[[SuccessRow], str]) -> Callable[[Row], Cell]:
    def own(row: Row) -> Cell:
        found = middle_seed([one.look.success[0] for one in row.measured if one.look.success])
        return figure(text(found), found.rate) if found is not None else absent()

    return own


def _points(row: SuccessRow) -> str:
    difference = row.versus_teacher.difference if row.versus_teacher is not None else None
    return (
        f"{points(difference.value)}{span(difference.interval, points)}" if difference is not None else ABSENT
    )


def _reached(row: Row) -> Cell:
    found = [reached(row.study, row.arm, name) for name in ("rms", "median")] if row.arm is not None else []
    return Cell("; ".join(one.text for one in found if one is not None)) if any(found) else absent()


def _fall(name: str) -> Callable[[Row], Cell]:
    def own(row: Row) -> Cell:
        found = judged(row.study, row.chain, row.place) if row.chain else None
        if found is None:
            return absent()
        if name == "pays":
            return Cell(f"{'yes' if found.gain.pays else 'no'} ({found.pays}/{found.count})")
        value: float = getattr(found.gain, name)
        return figure(f"{100 * value:.0f}" if abs(value) < 100 else ABSENT, value)

    return own


def _of_arm(text: Callable[[Arm], str]) -> Callable[[Row], Cell]:
    return lambda row: Cell(text(row.arm)) if row.arm is not None else absent()


def _differs(row: Row) -> Cell:
    """The settings of an arm that are not the same in all arms."""
    if row.arm is None:
        return absent()
    names = [n for n in row.arm.differs if len({str(arm.differs.get(n)) for arm in row.study.arms}) > 1]
    values = [row.arm.differs[name] for name in names]
    texts = [" ".join(map(str, value)) if isinstance(value, list) else value for value in values]
    return Cell(clean(", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))))


def _round(row: Row) -> Cell:
    return figure(str(row.place + 1), row.place) if row.place >= -1 else absent()


def _small(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def _floor(one: Measured) -> float | None:
    row = one.look.gap(1)
    return row.ratio_to_floor.value if row is not None and row.ratio_to_floor is not None else None


_nearer = gap(1, "nearer_than_deployed")
GAPS = [
    Column(
        f"gap at {n}, %:\nRMS/median/\nflips",
        [(gap(n, name), percentage) for name in ("rms", "median", "flip_rate")],
        narrow={1: "any", 10: "neither"}.get(n, ""),
    )
    for n in STEP_COUNTS
]
COLUMNS = [
    Column("arm", own=lambda row: Cell(row.name), narrow="any"),
    Column("differs in", own=_differs, needs="settings"),
    Column("round", own=_round, needs="chains", narrow="any"),
    Column("curvature\n%", [(curvature, percentage)], narrow="any"),
    *GAPS,
    Column("to the floor\nat 1: RMS/\nnearer, %", [(_floor, "{:.2f}".format), (_nearer, percentage)]),
    Column("steps to {level}:\nRMS; median", own=_reached, needs="looks", narrow="any"),
    Column("spread\n%", [(diversity("spread"), percentage)]),
    Column("modes\nkept %", [(diversity("modes_kept"), percentage)]),
    Column(
        "success at\none step, %", [(solved, percentage)],
        own=_acted(lambda row: f"{percentage(row.rate)}{span(row.interval, percentage)}"), narrow="any",
    ),
    # Figures with a sign are not joined by a dash.
    Column("points to the\nteacher", [(_pairs("difference"), points)], own=_acted(_points), joint=" to "),
    Column(
        "p", [(_pairs("p"), p_value)], joint=" to ",
        own=_acted(lambda row: p_value(row.versus_teacher.p_value) if row.versus_teacher is not None else ABSENT),
    ),
    Column("curvature\nfalls by %", own=_fall("curvature"), needs="chains"),
    Column("gap at 1\nfalls by %", own=_fall("gap"), needs="chains"),
    Column("pays\n(seeds)", own=_fall("pays"), needs="chains", narrow="any"),
    Column("training\ns", [(lambda one: getattr(one.trial, "training_s", None), _small)]),
    Column("samples", [(lambda one: getattr(one.trial, "samples", None), "{:,.0f}".format)], needs="neither"),
    Column("stock\ncheckpoint", own=_of_arm(lambda arm: "yes" if arm.stock_checkpoint else "no"), needs="neither"),
    Column(
        "for\nsteps", needs="neither",
        own=_of_arm(lambda arm: "any" if arm.step_counts is None else counted(arm.step_counts)),
    ),
]  # fmt: skip
"""All columns, in their order."""


def render(study: Study, *, verbose: bool | None = None) -> RenderableType:
    """What the table says and the table, for a terminal; all tables with `verbose`, by default as the user asks."""
    if verbose if verbose is not None else console.verbose():
        shown: list[RenderableType] = [drawn(section) for section in sections(study)]
    else:
        shown = [drawn(table(study, ranges=False), short=True)]
    return Group(Text(headline(study), style="bold"), Text(), *shown)


def markdown(study: Study) -> str:
    """The same content for a document, with all columns; ends with a line break."""
    blocks = [block for section in sections(study) for block in written(section)]
    lines = [f"- {name}: {escape(value)}" for name, value in facts(study)]
    return "\n\n".join([f"**{escape(headline(study))}**", *blocks, "\n".join(lines)]) + "\n"


def sections(study: Study) -> list[Section]:
    """All tables: the arms after all training, then gap, loss and success by look where there are several."""
    found = [table(study)]
    if study.looks_often:
        found += [
            _by_look(study, "gap", "Gap at one step, RMS, %", gap(), percentage),
            _by_look(study, "loss", "Training loss", loss, "{:.3g}".format),
            _by_look(study, "success", "Success at one step, %", solved, percentage),
        ]
    return [section for section in found if section.rows]


def table(study: Study, *, ranges: bool = True) -> Section:
    """The table: the untrained teacher, then a row for each arm and each round of a chain.

    Args:
        study: what was measured.
        ranges: whether a second row shows the least and the largest over several seeds.
    """
    traits = _traits(study)
    own = [f"{clean(arm.way)} after {budget(study, arm)}" for arm in study.arms if arm.steps is not None]
    columns = [column for column in COLUMNS if column.needs in traits]
    rows = [*_teacher(study), *_rows(study)]
    below = (
        "Gap: distance to the converged ODE of the study's teacher from the same noise, relative to the spread of its "
        f"endpoints, held out. Of several seeds the median{', and below it the least and the largest' * ranges}."
    )
    below += f" {SEEDS}" * any(one.look.success for row in rows[1:] for one in row.measured)
    if any(one.look.figures and one.look.figures.diversity for row in rows for one in row.measured):
        below += " Spread and modes: of the endpoints of one step over noise, compared with the deployed teacher's."
    section = Section(
        "study",
        "; ".join([f"Students after {budget(study)} each", *own]),
        [column.head.replace("{level}", level(study)) for column in columns],
        left=1 + ("settings" in traits),
        wide={place for place, column in enumerate(columns) if column.narrow not in traits},
        below=below + " Ranges, further columns and figures by look: study.md." * (not ranges),
    )
    for row in rows:
        section.add(*(column.cell(row) for column in columns))
        if ranges and len(row.measured) > 1:
            section.add("- least to largest", *(column.range(row) for column in columns[1:]))
    return section


def _teacher(study: Study) -> list[Row]:
    """The free alternative, which stands above every student: at one step, then success at two and as deployed."""
    teacher, found = study.untrained, []
    if teacher is None:
        return []
    acted = {row.num_steps: row for row in teacher.success if row.group == "all"}
    for n in sorted({1, 2, teacher.num_steps}):
        figures, success = teacher.figures if n == 1 else None, [acted[n]] if n in acted else []
        name = f"- {'deployed, ' * (n == teacher.num_steps)}at {steps(n)}" if n > 1 else "teacher, untrained"
        if n == 1 or success:
            look = Look(0, 0, None, "", study.teacher_sha256, figures, success)
            found.append(Row(study, name, [Measured(None, look)], place=-n))
    return found


def _rows(study: Study) -> list[Row]:
    found, seeds = [], len(study.seeds)
    for chain in study.chains:
        for place, arm in enumerate(chain):
            students = measured(study, arm)
            missing = f" ({len(students)} of {plural(seeds, 'seed')})" if len(students) < seeds else ""
            name = clean(chain[-1].way) + missing + " (no step)" * untaken(study, arm)
            found.append(Row(study, name, students, chain, place))
    return found


def _by_look(study: Study, key: str, title: str, of: Figure, text: Callable[[float], str]) -> Section:
    """A figure at every look, a row for each arm; without rows where nothing has it."""
    unit = "optimiser steps" if study.seconds is None else "seconds"
    section = Section(key, f"{title}, by {unit}", ["arm", *(f"{mark:,g}" for mark in study.looks)], left=1)
    for arm in study.arms:
        spreads = [over_seeds(study, arm, of, mark) for mark in study.looks]
        if any(spreads):
            medians = [figure(text(s.middle), s.middle) if s else absent() for s in spreads]
            section.add(clean(arm.way), *medians)
        if any(s.count > 1 for s in spreads if s):
            texts = [f"{text(s.low)}-{text(s.high)}" if s else ABSENT for s in spreads]
            section.add("- least to largest", *texts)
    return section


def facts(study: Study) -> list[tuple[str, str]]:
    """What is said below the tables, name and value."""
    teacher, same = study.untrained, same_couplings(study)
    deployed = f", deployed at {steps(teacher.num_steps)}" if teacher is not None else ""
    lines = [("teacher", f"{clean(study.teacher)}{deployed}")]
    if teacher is not None and (floor := teacher.figures.gap(teacher.num_steps)) is not None:
        flips = percentage(floor.flip_rate) if floor.flip_rate is not None else ABSENT
        text = f"{percentage(floor.rms)}/{percentage(floor.median)}/{flips} % (RMS/median/flips)"
        lines.append(("gap of the teacher as deployed (the floor)", text))
    lines.append(("each arm", f"{budget(study)}; seeds {', '.join(map(str, study.seeds))}"))
    lines += [(clean(arm.way), budget(study, arm)) for arm in study.arms if arm.steps is not None]
    if "chains" in _traits(study):
        lines.append(("a round pays", (
            f"if curvature or the gap at one step falls by {percent(study.least_gain)} or more and the gap does not "
            "grow: by the medians over seeds, and in brackets in how many seeds by themselves"
        )))  # fmt: skip
    if teacher is not None and teacher.figures.diversity:
        lines.append(("observations with several modes", str(teacher.figures.diversity[0].several)))
    if same is not None:
        lines.append(("couplings", f"{'' if same else 'not '}the same to the bit for all arms of a seed"))
    lines += [("left out", f"{clean(left.name)}: {clean(left.reason)}") for left in study.left_out]
    if study.held_out is not None:
        lines.append(("held out", held_out(study.held_out)))
    if study.env:
        lines.append(("episodes", f"{clean(study.env)}; paired noise"))
    versions = ", ".join(f"{name} {clean(value)}" for name, value in study.versions.items())
    return [*lines, ("device", clean(study.device)), ("versions", versions)]
