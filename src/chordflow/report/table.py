"""The measures as tables: for the terminal and, with the same content, as markdown."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from chordflow.results.schema import GapRow, Latency, PolicyName, Results, SuccessRow
from chordflow.results.statistics import Estimate
from chordflow.results.verdict import verdict
from chordflow.results.wording import amount, number, percent, points, steps

ABSENT = "-"
"""What stands where nothing was measured."""

_GPU = re.compile(r"nvidia|geforce|\brtx\b|quadro|tesla|radeon|instinct|\barc\b", re.IGNORECASE)


@dataclass
class _Section:
    """One table: a title, column heads, rows of cells, and a line below. All plain text."""

    title: str
    heads: list[str]
    left: int  # Columns of words, from the left; the others are figures.
    rows: list[list[str]] = field(default_factory=list)
    marked: set[int] = field(default_factory=set)  # Rows of the student as saved.
    below: str = ""


def render(results: Results) -> RenderableType:
    """The verdict, the tables and the facts below them, for a terminal of 100 columns (80 do).

    Args:
        results: What was measured; what was not is left out.

    Returns:
        Something for ``rich.print``. Names out of files are shown as they are, never read as markup.
    """
    parts: list[RenderableType] = [Text(_verdict(results), style="bold"), Text()]
    for section in _sections(results):
        table = Table(
            title=Text(section.title, style="bold"),
            title_justify="left",
            caption=Text(section.below, style="dim") if section.below else None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            show_edge=False,
            collapse_padding=True,
            padding=(0, 1),
        )
        for index, head in enumerate(section.heads):
            words = index < section.left
            table.add_column(
                Text(head),
                justify="left" if words else "right",
                no_wrap=True,
                overflow="ellipsis",
                # Words may be cut where a terminal is narrow; a figure that is cut is a wrong figure.
                max_width=32 if words else None,
                min_width=None if words else max(len(row[index]) for row in section.rows),
                vertical="bottom",
            )
        for index, row in enumerate(section.rows):
            style = "bold" if index in section.marked else ""
            table.add_row(*(Text(cell, style=style) for cell in row))
        parts += [table, Text()]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, value in _facts(results):
        facts.add_row(name, Text(value))
    parts.append(facts)
    return Group(*parts)


def markdown(results: Results) -> str:
    """The same content for a README or a model card.

    Args:
        results: What was measured; what was not is left out.

    Returns:
        Markdown that ends with a line break. Names out of files are escaped.
    """
    blocks = [f"**{_escape(_verdict(results))}**"]
    for section in _sections(results):
        blocks.append(f"{_escape(section.title)}:")
        rule = ["---"] * section.left + ["---:"] * (len(section.heads) - section.left)
        heads = [_escape(head.replace("\n", " ")) for head in section.heads]
        rows = [[_escape(cell) for cell in row] for row in section.rows]
        blocks.append("\n".join(f"| {' | '.join(row)} |" for row in [heads, rule, *rows]))
        if section.below:
            blocks.append(_escape(section.below))
    facts = [f"- {name}: {_escape(value)}" for name, value in _facts(results)]
    if facts:
        blocks.append("\n".join(facts))
    return "\n\n".join(blocks) + "\n"


def _verdict(results: Results) -> str:
    return _clean(results.verdict) or verdict(results)


def _sections(results: Results) -> Iterable[_Section]:
    if results.gaps:
        yield _gaps(results)
    if results.success:
        yield _success(results)


# ---- Action gaps ----------------------------------------------------------------------------------------


def _gaps(results: Results) -> _Section:
    fine = next((str(r.reference_num_steps) for r in results.gaps if r.reference == "converged"), "many")
    section = _Section(
        title="Action gap to the teacher from the same noise, relative to its spread, held out",
        heads=[
            "policy", "steps", f"RMS\nto {results.teacher_num_steps}", "median", "flips", f"RMS\nto {fine}",
            "mean\ndiff.", "max\ndiff.",
        ],
        left=1,
    )  # fmt: skip
    solvers_need_evaluations = any(row.nfe != row.num_steps for row in results.gaps)
    if solvers_need_evaluations:
        section.heads.insert(2, "nfe")
    if results.latency is not None:
        section.heads.append("time")
    for policy, solver, num_steps in _ways(results):
        near, far = (
            results.gap(policy, num_steps, reference, solver) for reference in ("deployed", "converged")
        )
        row = near or far
        assert row is not None
        cells = [_name(policy, solver), str(num_steps)]
        if solvers_need_evaluations:
            cells.append(str(row.nfe))
        cells += _gap_cells(near, far)
        if results.latency is not None:
            cells.append(_relative_time(results.latency, row.nfe))
        if (policy, solver, num_steps) == ("student", "euler", results.student_num_steps):
            section.marked.add(len(section.rows))
        section.rows.append(cells)
    floor = results.floor
    if floor is not None:
        cells = ["floor", str(floor.num_steps), *([str(floor.nfe)] if solvers_need_evaluations else [])]
        cells += _gap_cells(None, floor)
        section.rows.append(cells + [ABSENT] * (len(section.heads) - len(cells)))
    section.below = _below_the_gaps(results)
    return section


def _ways(results: Results) -> list[tuple[PolicyName, str, int]]:
    """Every policy, solver and step count that has a gap: the teacher first, Euler first, few steps last."""
    ways = {(row.policy, row.solver, row.num_steps) for row in results.gaps}
    return sorted(ways, key=lambda way: (way[0] != "teacher", way[1] != "euler", way[1], -way[2]))


def _gap_cells(near: GapRow | None, far: GapRow | None) -> list[str]:
    detailed = near or far
    flips = detailed.flip_rate if detailed else None
    return [
        percent(near.rms, 1) if near else ABSENT,
        percent(detailed.median, 1) if detailed else ABSENT,
        percent(flips, 1) if flips is not None else ABSENT,
        percent(far.rms, 1) if far else ABSENT,
        amount(detailed.mean_abs) if detailed else ABSENT,
        amount(detailed.max_abs) if detailed else ABSENT,
    ]


def _below_the_gaps(results: Results) -> str:
    notes = []
    if results.floor is not None:
        notes.append(
            f"Floor: the teacher at {steps(results.floor.num_steps)} to its own converged ODE, "
            "below which a gap means little."
        )
    notes.append(
        "Median, flips and differences (robot's units) are to the deployed teacher; the floor's to the ODE."
    )
    if results.latency is not None:
        notes.append("Time of a chunk: 1 is the teacher's as deployed.")
    return " ".join(notes)


def _relative_time(latency: Latency, nfe: int) -> str:
    return f"{latency.chunk_s(nfe) / latency.chunk_s(latency.teacher_num_steps):.2f}"


# ---- Success --------------------------------------------------------------------------------------------


def _success(results: Results) -> _Section:
    section = _Section(
        title="Success in episodes",
        heads=[
            "episodes",
            "policy",
            "steps",
            "success %,\n95 % interval",
            "points to\nthe teacher",
            "p",
        ],
        left=2,
        below="Differences are paired: same episodes and noise as the deployed teacher; p is McNemar's exact test.",
    )
    groups: dict[str, list[SuccessRow]] = {}
    for row in results.success:
        groups.setdefault(row.group, []).append(row)
    for group, rows in groups.items():
        ordered = sorted(
            rows, key=lambda r: (r.policy != "teacher", r.solver != "euler", r.solver, -r.num_steps)
        )
        for index, row in enumerate(ordered):
            counts = sorted({r.episodes for r in rows})
            label = (
                f"{_clean(group)} ({counts[0]})" if len(counts) == 1 else f"{_clean(group)} ({row.episodes})"
            )
            first = index == 0 or len(counts) > 1
            if (row.policy, row.solver, row.num_steps) == ("student", "euler", results.student_num_steps):
                section.marked.add(len(section.rows))
            section.rows.append(
                [
                    label if first else "",
                    _name(row.policy, row.solver),
                    str(row.num_steps),
                    f"{100 * row.rate:.1f} [{100 * row.interval.low:.1f}, {100 * row.interval.high:.1f}]",
                    *_paired(row),
                ]
            )
    return section


def _paired(row: SuccessRow) -> list[str]:
    if row.versus_teacher is None:
        return [ABSENT] * 2
    paired = row.versus_teacher
    interval = paired.difference.interval
    p = "<.001" if paired.p_value < 0.001 else f"{paired.p_value:.3f}"
    span = f" [{points(interval.low)}, {points(interval.high)}]" if interval else ""
    return [points(paired.difference.value) + span, p]


# ---- Facts ----------------------------------------------------------------------------------------------


def _facts(results: Results) -> list[tuple[str, str]]:
    facts = [("gap to untrained", _ratios(results)), ("curvature", _curvature(results))]
    if results.latency is not None:
        facts.append(("time", _time(results.latency, results.device)))
    if results.held_out is not None:
        held = results.held_out
        seen = "; the teacher may have seen them in its own training" if held.maybe_seen_by_teacher else ""
        episodes = len(held.episodes)
        facts.append(
            (
                "held out",
                f"{held.observations} observations of {_plural(episodes, 'episode')}, "
                f"{_plural(held.noises, 'noise')} each{seen}",
            )
        )
    for check in results.flip_checks:
        facts.append(
            (
                "flips seen",
                f"{check.policy} at {steps(check.num_steps)}: {check.flips} first chunks at another mode, "
                f"{_plural(check.other_side, 'episode')} by the other side, the two agree in {check.agree} of "
                f"{check.episodes}",
            )
        )
    if results.couplings is not None:
        made = results.couplings
        facts.append(
            (
                "couplings",
                f"{made.observations} observations with {_plural(made.noises_per_observation, 'noise')} each, "
                f"by {_clean(made.solver)} with {steps(made.num_steps)}; buffer {_size(made.buffer_bytes)}",
            )
        )
    if results.training_s is not None:
        facts.append(("training", f"{_duration(results.training_s)} on {_clean(results.device)}"))
    facts.append(("teacher", _clean(results.teacher)))
    if results.student is not None:
        facts.append(("student", _clean(results.student)))
    return [(name, value) for name, value in facts if value]


def _ratios(results: Results) -> str:
    """The student's RMS gap over the untrained teacher's, at each number of steps."""
    rows = [
        r
        for r in results.gaps
        if r.policy == "student" and r.reference == "deployed" and r.ratio_to_untrained
    ]
    parts = [
        f"{_estimate(row.ratio_to_untrained)} at {number(row.num_steps)}"
        for row in sorted(rows, key=lambda row: row.num_steps)
        if row.ratio_to_untrained is not None and row.solver == "euler"
    ]
    return f"{', '.join(parts)} solver steps (RMS to the deployed teacher)" if parts else ""


def _estimate(estimate: Estimate) -> str:
    if estimate.interval is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.interval.low:.2f}, {estimate.interval.high:.2f}]"


def _curvature(results: Results) -> str:
    rows = [row for policy in ("teacher", "student") if (row := results.curvature_of(policy)) is not None]
    parts = [
        f"{row.policy} {percent(row.curvature)} ({percent(row.curvature_all_dims)} over all dimensions)"
        for row in rows
    ]
    return f"{', '.join(parts)}; Euler, {rows[0].num_steps} steps" if rows else ""


def _time(latency: Latency, device: str) -> str:
    """Relative times anywhere; absolute ones only where the reader knows the device they are of."""
    share = percent(latency.encode_s / latency.chunk_s(latency.student_num_steps), 0)
    text = (
        f"{latency.speedup:.2f} times as fast at {steps(latency.student_num_steps)}, of at most "
        f"{latency.ceiling:.2f}; encoding is {share} of the student's time"
    )
    if not _GPU.search(device):
        return text
    name = _clean(device)
    split = f"{1000 * latency.encode_s:.1f} ms to encode and {1000 * latency.step_s:.1f} ms a step"
    return f"{text}; {split} on {name}, batch {latency.batch_size}"


# ---- Text -----------------------------------------------------------------------------------------------


def _name(policy: PolicyName, solver: str) -> str:
    return policy if solver == "euler" else f"{policy}, {_clean(solver)}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _size(count: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count = count / 1000  # type: ignore[assignment]
    return f"{count:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _clean(text: str) -> str:
    """One line of printable text: names may hold line breaks and terminal codes."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _escape(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)
