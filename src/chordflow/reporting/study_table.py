"""A study as tables: for the terminal and, with the same content, as markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

from rich.console import Group, RenderableType
from rich.text import Text

from chordflow import console
from chordflow.reporting.section import ABSENT, MOST_ROWS, Cell, Column, Section, Value, Writes, table
from chordflow.reporting.table import Drawn, escape, held_out, written
from chordflow.results import study_summary as figures
from chordflow.results.episodes import SuccessRow
from chordflow.results.statistics import PairedSuccess
from chordflow.results.study import STEP_COUNTS, Arm, Study
from chordflow.results.study_summary import Figure, Measured
from chordflow.results.wording import clean, estimate, p_value, percentage, plural, points, span, steps

SEEDS = "Figures of episodes are those of the seed with the median success, since all seeds run the same episodes."
"""Printed below a table of the success of several seeds."""

RANGES = "- least to largest"
"""First cell of a row of ranges over seeds."""

# ---- Columns --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What one row shows: an arm, one round of a chain, or the untrained teacher.

    Attributes:
        study: the study.
        name: the first cell.
        measured: one student for each seed.
        chain: the rounds, this one among them; empty for the teacher.
        place: of the round, from 0; -1 for the teacher at one step, lower for it at more.
        ranges: whether it shows the least and the largest over seeds in place of the medians.
    """

    study: Study
    name: str
    measured: list[Measured]
    chain: Sequence[Arm] = ()
    place: int = -1
    ranges: bool = False

    @property
    def arm(self) -> Arm | None:
        """The arm; None for the teacher."""
        return self.chain[self.place] if self.chain else None


@dataclass(frozen=True)
class OverSeeds:
    """One column of the table of arms.

    Attributes:
        head: its heading.
        parts: figures and their texts; a cell holds the medians over seeds, and below it the ranges.
        own: makes the cell in place of the medians.
        needs: the trait of the studies that have such a column; one in which nothing was measured is left out anyway.
        narrow: the trait of the studies in which a terminal has room for it.
        note: a sentence below the table, for where the column is shown.
        joint: between the least and the largest.
    """

    head: str
    parts: Sequence[tuple[Figure, Writes]] = ()
    own: Callable[[Row], Value] | None = None
    needs: str = "any"
    narrow: str = ""
    note: str = ""
    joint: str = "-"

    def value(self, row: Row) -> Value:
        """What it has of a row."""
        if self.own is not None and not row.ranges:
            return self.own(row)
        spreads = [(figures.spread_of(map(of, row.measured)), text) for of, text in self.parts]
        if row.ranges:
            texts = [f"{text(s.low)}{self.joint}{text(s.high)}" if s else ABSENT for s, text in spreads]
            return "/".join(texts) if any(spread for spread, _ in spreads) else ""
        texts = [text(spread.middle) if spread else ABSENT for spread, text in spreads]
        first, _ = spreads[0]
        return Cell("/".join(texts), first.middle) if first is not None else None


def _traits(study: Study) -> set[str]:
    """What decides over columns: several looks, chains, neither; arms that settings make."""
    found = {"looks"} if study.looks_often else set()
    found |= {"chains"} if any(len(chain) > 1 for chain in study.chains) else set()
    found = found or {"neither"}
    return found | {"any"} | ({"settings"} if study.preset not in ("methods", "rounds") else set())


def _pairs(value: Callable[[PairedSuccess], float]) -> Figure:
    """A figure of the paired comparison with the deployed teacher."""

    def of(one: Measured) -> float | None:
        pairs = one.look.success[0].versus_teacher if one.look.success else None
        return value(pairs) if pairs is not None else None

    return of


def _acted(text: Callable[[SuccessRow], str]) -> Callable[[Row], Value]:
    def own(row: Row) -> Value:
        found = figures.middle_seed([one.look.success[0] for one in row.measured if one.look.success])
        return Cell(text(found), found.rate) if found is not None else None

    return own


def _reached(row: Row) -> Value:
    if row.arm is None:
        return None
    found = [figures.reached(row.study, row.arm, name) for name in ("rms", "median")]
    return "; ".join(filter(None, found)) or None


def _fall(name: str) -> Callable[[Row], Value]:
    def own(row: Row) -> Value:
        found = figures.judged(row.study, row.chain, row.place) if row.chain else None
        if found is None:
            return None
        if name == "pays":
            return f"{'yes' if found.gain.pays else 'no'} ({found.pays}/{found.count})"
        value: float = getattr(found.gain, name)
        return Cell(f"{100 * value:.0f}" if abs(value) < 100 else ABSENT, value)

    return own


def _of_arm(text: Callable[[Arm], str]) -> Callable[[Row], Value]:
    return lambda row: text(row.arm) if row.arm is not None else None


def _differs(row: Row) -> Value:
    """The settings of an arm that are not the same in all arms."""
    if row.arm is None:
        return None
    taught = {"teacher": row.arm.teacher} if row.arm.teacher is not None else {}
    values = {
        name: " ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in (taught | row.arm.differs).items()
        if name in taught or len({str(arm.differs.get(name)) for arm in row.study.arms}) > 1
    }
    return clean(", ".join(f"{name}={value}" for name, value in values.items()))


def _small(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def _floor(one: Measured) -> float | None:
    row = one.look.gap(1)
    return row.ratio_to_floor.value if row is not None and row.ratio_to_floor is not None else None


GAPS = [
    OverSeeds(
        f"gap at {n}, %:\nRMS/median/\nflips",
        [(figures.gap(n, name), percentage) for name in ("rms", "median", "flip_rate")],
        narrow={1: "any", 10: "neither"}.get(n, ""),
    )
    for n in STEP_COUNTS
]
COLUMNS = [
    OverSeeds("differs in", own=_differs, needs="settings"),
    OverSeeds(
        "round", needs="chains", narrow="any",
        own=lambda row: Cell(str(row.place + 1), row.place) if row.place >= -1 else None,
    ),
    OverSeeds("curvature\n%", [(figures.curvature, percentage)], narrow="any"),
    *GAPS,
    OverSeeds(
        "to the floor\nat 1: RMS/\nnearer, %",
        [(_floor, "{:.2f}".format), (figures.gap(1, "nearer_than_deployed"), percentage)],
    ),
    OverSeeds("steps to {level}:\nRMS; median", own=_reached, needs="looks", narrow="any"),
    OverSeeds("spread\n%", [(figures.diversity("spread"), percentage)],
              note="Spread: of the endpoints of one step over noise, compared with the deployed teacher's."),
    OverSeeds("modes\nkept %", [(figures.diversity("modes_kept"), percentage)], note="Modes: of the same endpoints."),
    OverSeeds(
        "success at\none step, %", [(figures.solved, percentage)], narrow="any",
        own=_acted(lambda row: f"{percentage(row.rate)}{span(row.interval, percentage)}"),
    ),
    # Figures with a sign are not joined by a dash.
    OverSeeds(
        "points to the\nteacher", [(_pairs(lambda pairs: pairs.difference.value), points)], joint=" to ",
        own=_acted(lambda row: estimate(row.versus_teacher.difference, points) if row.versus_teacher else ABSENT),
    ),
    OverSeeds(
        "p", [(_pairs(lambda pairs: pairs.p_value), p_value)], joint=" to ",
        own=_acted(lambda row: p_value(row.versus_teacher.p_value) if row.versus_teacher else ABSENT),
    ),
    OverSeeds("curvature\nfalls by %", own=_fall("curvature"), needs="chains"),
    OverSeeds("gap at 1\nfalls by %", own=_fall("gap"), needs="chains"),
    OverSeeds("pays\n(seeds)", own=_fall("pays"), needs="chains", narrow="any"),
    OverSeeds("training\ns", [(lambda one: getattr(one.trial, "training_s", None), _small)]),
    OverSeeds("samples", [(lambda one: getattr(one.trial, "samples", None), "{:,.0f}".format)], needs="neither"),
    OverSeeds("stock\ncheckpoint", own=_of_arm(lambda a: "yes" if a.stock_checkpoint else "no"), needs="neither"),
    OverSeeds(
        "for\nsteps", own=_of_arm(lambda a: ", ".join(map(str, a.step_counts)) if a.step_counts else "any"),
        needs="neither",
    ),
]  # fmt: skip
"""All columns but the first, in their order."""

# ---- Tables ---------------------------------------------------------------------------------------------


def render(study: Study, *, verbose: bool | None = None) -> RenderableType:
    """The answer and the table, for a terminal; all tables with `verbose`, by default as the user asks."""
    if verbose if verbose is not None else console.verbose():
        shown = sections(study)
    else:
        shown = [section.short() for section in [by_arm(study, ranges=False)] if section is not None]
    first, *others = figures.answers(study)
    return Group(Text(first, style="bold"), *map(Text, others), Text(), *map(Drawn, shown))


def markdown(study: Study) -> str:
    """The same content for a document, with all columns; ends with a line break."""
    blocks = [block for section in sections(study) for block in written(section)]
    lines = [f"- {name}: {escape(value)}" for name, value in facts(study)]
    first, *others = map(escape, figures.answers(study))
    return "\n\n".join([f"**{first}**", *others, *blocks, "\n".join(lines)]) + "\n"


def sections(study: Study) -> list[Section]:
    """All tables: the arms after all training, then gap, loss and success by look where there are several."""
    found = [by_arm(study)]
    if study.looks_often:
        found += [
            _by_look(study, "gap", "Gap at one step to the converged ODE, RMS, %", figures.gap(), percentage),
            _by_look(study, "loss", "Training loss", figures.loss, "{:.3g}".format),
            _by_look(study, "success", "Success at one step, %", figures.solved, percentage),
        ]
    return [section for section in found if section is not None]


def by_arm(study: Study, *, ranges: bool = True) -> Section | None:
    """The untrained teacher, then a row for each arm and each round of a chain, and one of its ranges over seeds."""
    traits = _traits(study)
    own = [f"{clean(a.way)} after {figures.budget(study, a)}" for a in study.arms if a.steps is not None]
    students = _students(study)
    rows = [*_teacher(study), *students]
    below = (
        "Gap: distance to the converged ODE of the study's teacher from the same noise, relative to the spread of its "
        f"endpoints, held out. Of several seeds the median{', and below it the least and the largest' * ranges}."
    )
    below += f" {SEEDS}" * any(one.look.success for row in students for one in row.measured)
    below += " --verbose adds ranges, further columns and figures by look." * (not ranges)
    if not ranges:
        # The rows shown first hold the arms that the answer names.
        said = [None, *figures.leaders(study)]
        first = sorted(rows, key=lambda row: row.arm not in said)[:MOST_ROWS]
        rows.sort(key=lambda row: row not in first)
    shown = []
    for row in rows:
        shown.append(row)
        if ranges and len(row.measured) > 1:
            shown.append(replace(row, name=RANGES, ranges=True))
    columns = [
        Column(column.head.replace("{level}", figures.level(study)), column.value, note=column.note)
        for column in COLUMNS
        if column.needs in traits and (ranges or column.narrow in traits)
    ]
    return table(
        "study", "; ".join([f"Students after {figures.budget(study)} each", *dict.fromkeys(own)]), shown,
        Column("arm", lambda row: row.name),
        *columns,
        left=1 + (ranges and "settings" in traits), below=below,
    )  # fmt: skip


def _teacher(study: Study) -> list[Row]:
    """The free alternative, which stands above every student: at one step, then success at two and as deployed."""
    found, deployed = [], study.untrained.num_steps if study.untrained is not None else 1
    for n in sorted({1, 2, deployed}):
        name = f"- {'deployed, ' * (n == deployed)}at {steps(n)}" if n > 1 else "teacher, untrained"
        teacher = figures.untrained(study, n)
        if teacher and n > 1:
            teacher = Measured(None, replace(teacher.look, figures=None))
        if teacher and (n == 1 or teacher.look.success):
            found.append(Row(study, name, [teacher], place=-n))
    return found


def _students(study: Study) -> list[Row]:
    found, own = [], set()
    for chain in study.chains:
        for place, arm in enumerate(chain):
            # An arm of a file keeps its own name, and has one row however many it teaches.
            if arm.name in own:
                continue
            own |= {arm.name} & {arm.way}
            students, seeds = figures.measured(study, arm), study.planned(arm)
            missing = f" ({len(students)} of {plural(seeds, 'seed')})" if len(students) < seeds else ""
            missing += " (no step)" * figures.without_steps(study, arm)
            way = clean(study.label(arm if arm.name in own else chain[-1], by_round=False))
            found.append(Row(study, way + missing, students, chain, place))
    return found


def _by_look(study: Study, key: str, title: str, of: Figure, text: Writes) -> Section | None:
    """A figure at every look, a row for each arm that has it; None where nothing has it."""
    rows: list[list[Value]] = []
    for arm in study.arms:
        spreads = [figures.over_seeds(study, arm, of, mark) for mark in study.looks]
        cells = [Cell(text(s.middle), s.middle) if s else None for s in spreads]
        rows += [[clean(study.label(arm)), *cells]] if any(spreads) else []
        if any(s.count > 1 for s in spreads if s):
            rows.append([RANGES, *(f"{text(s.low)}-{text(s.high)}" if s else None for s in spreads)])
    heads = ["arm", *(f"{mark:,g}" for mark in study.looks)]
    columns = [Column(head, itemgetter(place)) for place, head in enumerate(heads)]
    unit = "optimiser steps" if study.seconds is None else "seconds"
    return table(key, f"{title}, by {unit}", rows, *columns)


def facts(study: Study) -> list[tuple[str, str]]:
    """Lines below the tables, name and value."""
    teacher, same = study.untrained, figures.same_couplings(study)
    deployed = f", deployed at {steps(teacher.num_steps)}" if teacher is not None else ""
    lines = [("teacher", f"{clean(study.teacher)}{deployed}")]
    if teacher is not None and (floor := teacher.figures.gap(teacher.num_steps)) is not None:
        flips = percentage(floor.flip_rate) if floor.flip_rate is not None else ABSENT
        text = f"{percentage(floor.rms)}/{percentage(floor.median)}/{flips} % (RMS/median/flips)"
        lines.append(("gap of the teacher as deployed (the floor)", text))
    lines.append(("each arm", f"{figures.budget(study)}; seeds {', '.join(map(str, study.seeds))}"))
    lines += [(clean(arm.way), figures.budget(study, arm)) for arm in study.arms if arm.steps is not None]
    if "chains" in _traits(study):
        lines.append(("a round pays", (
            f"if curvature or the gap at one step falls by {100 * study.least_gain:g} % or more and the gap does not "
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
