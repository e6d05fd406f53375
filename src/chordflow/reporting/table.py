"""The measures as tables: for the terminal and, with the same content, as markdown."""

import re
from collections.abc import Collection

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from chordflow.reporting import core_tables, free_table, more_tables, rollout_tables
from chordflow.reporting.glance import few_episodes
from chordflow.reporting.section import ABSENT, Section
from chordflow.results import findings as rules
from chordflow.results.schema import CouplingSummary, HeldOut, Latency, Results, Rollouts
from chordflow.results.verdict import beside_ceiling, verdict
from chordflow.results.wording import UNRELIABLE, clean, estimate, number, percent, plural, size, steps

__all__ = [
    "ABSENT", "drawn", "escape", "facts", "markdown", "render", "sections", "sentence", "written",
]  # fmt: skip

_GPU = re.compile(r"nvidia|geforce|\brtx\b|quadro|tesla|radeon|instinct|\barc\b", re.IGNORECASE)


LONGEST = 32
"""Characters of a name on a terminal."""


def render(results: Results) -> RenderableType:
    """The verdict, the findings, the tables and the facts below them, for a terminal of 100 columns (80 do).

    Args:
        results: What was measured; what was not is left out.

    Returns:
        Something for ``rich.print``. Names out of files are shown as they are, never read as markup.
    """
    parts: list[RenderableType] = [Text(sentence(results), style="bold"), Text()]
    for finding in findings(results):
        parts.append(Text(f"- {finding}"))
    if findings(results):
        parts.append(Text())
    for section in sections(results):
        if section.terminal:
            parts += [drawn(section), Text()]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, value in facts(results):
        grid.add_row(name, Text(value))
    parts.append(grid)
    return Group(*parts)


def drawn(section: Section) -> Table:
    """A table for a terminal."""
    section = section.shown(narrow=True)
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
    rows = [["" if cell.repeats else cell.text for cell in row] for row in section.rows]
    for row in rows:
        row[: section.left] = [
            t if len(t) <= LONGEST else f"{t[: LONGEST - 1]}…" for t in row[: section.left]
        ]
    for place, head in enumerate(section.heads):
        words = place < section.left
        table.add_column(
            Text(head),
            justify="left" if words else "right",
            # Words take more lines where a terminal is narrow; a figure that is cut is a wrong figure.
            no_wrap=not words,
            overflow="fold",
            min_width=None if words else max(map(len, [*head.split("\n"), *(row[place] for row in rows)])),
            vertical="bottom",
        )
    for index, row in enumerate(rows):
        style = "bold" if index in section.marked else ""
        table.add_row(*(Text(cell, style=style) for cell in row))
    return table


def markdown(results: Results, keys: Collection[str] | None = None) -> str:
    """The same content for a README or a model card.

    Args:
        results: What was measured; what was not is left out.
        keys: Tables to show, by ``Section.key``, without the findings beyond the verdict; everything by default.

    Returns:
        Markdown that ends with a line break. Names out of files are escaped.
    """
    blocks = [f"**{escape(sentence(results))}**"]
    if findings(results) and keys is None:
        blocks.append("\n".join(f"- {escape(text)}" for text in findings(results)))
    for section in sections(results):
        if not section.markdown or (keys is not None and section.key not in keys):
            continue
        blocks += written(section)
    lines = [f"- {name}: {escape(value)}" for name, value in facts(results)]
    if lines:
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def written(section: Section) -> list[str]:
    """A table as blocks of markdown: its title, its rows and the line below."""
    section = section.shown()
    rule = ["---"] * section.left + ["---:"] * (len(section.heads) - section.left)
    heads = [escape(head.replace("\n", " ")) for head in section.heads]
    rows = [["" if cell.repeats else escape(cell.text) for cell in row] for row in section.rows]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [heads, rule, *rows])
    return [f"{escape(section.title)}:", table, *([escape(section.below)] if section.below else [])]


def sentence(results: Results) -> str:
    """The verdict as the file has it, or by the rules where it has none or was written before they saw to its times."""
    stored = "" if results.timings_unreliable else clean(results.verdict)
    return stored or verdict(results)


def findings(results: Results) -> list[str]:
    """What the measures say beyond the verdict, the most important first."""
    said = sentence(results)
    found = results.findings
    if found and results.timings_unreliable:
        # Why rounds stopped is what no rule finds; it speaks of no times.
        found = [finding for finding in found if finding.rule == rules.ROUNDS_AUTO] + rules.findings(results)
    return [text for finding in found if (text := clean(finding.text)) and text not in said]


def sections(results: Results) -> list[Section]:
    """Every table that there is something for, the page's own included, in the order of reading."""
    gaps, free = core_tables.gaps(results) if results.gaps else None, free_table.free(results)
    reflow = results.kind == "reflow"
    found = [
        # What reflow is about comes first, and rollouts where they are what was asked for.
        gaps if reflow else None,
        free if reflow else None,
        core_tables.success(results) if results.success else None,
        core_tables.noninferiority(results),
        core_tables.sequential(results),
        None if reflow else gaps,
        None if reflow else free,
        core_tables.flip_checks(results),
        more_tables.curvature(results),
        more_tables.curvature_over_time(results),
        more_tables.curvature_over_dims(results),
        more_tables.spread_summary(results),
        more_tables.spread_list(results),
        more_tables.latency(results),
        rollout_tables.motion(results),
        rollout_tables.delays(results),
        rollout_tables.timing(results),
        more_tables.policies(results),
    ]
    return [section for section in found if section is not None]


# ---- Facts ----------------------------------------------------------------------------------------------


def held_out(held: HeldOut) -> str:
    """What was measured on, and what that cannot say."""
    text = (
        f"{held.observations} observations of {plural(len(held.episodes), 'episode')}, "
        f"{plural(held.noises, 'noise')} each"
    )
    if held.whole_tasks:
        text += (
            f"; the tasks of {held.whole_tasks} of them have no other episode, so training has none of these"
        )
    if held.maybe_seen_by_teacher:
        text += "; the teacher may have seen them in its own training"
    return text + few_episodes(held)


def facts(results: Results) -> list[tuple[str, str]]:
    """What is said in a line below the tables, name and value."""
    lines = [
        ("gap to untrained", _ratios(results)),
        ("gap to floor", _to_floor(results)),
        ("curvature", _curvature(results)),
    ]
    if results.timings_unreliable:
        lines.append(("time", UNRELIABLE))
    elif results.timed is not None:
        lines.append(("time", _time(results.timed, results)))
    if results.held_out is not None:
        lines.append(("held out", held_out(results.held_out)))
    for check in results.flip_checks:
        lines.append(
            (
                "flips seen",
                f"{clean(check.policy)} at {steps(check.num_steps)}: {check.flips} first chunks at another mode, "
                f"{plural(check.other_side, 'episode')} by the other side, the two agree in {check.agree} of "
                f"{check.episodes}",
            )
        )
    if results.couplings is not None:
        made = results.couplings
        lines.append(
            (
                "couplings",
                f"{made.observations} observations with {plural(made.noises_per_observation, 'noise')} each, "
                f"by {clean(made.solver)} with {steps(made.num_steps)}{_grid(made)}; buffer {size(made.buffer_bytes)}",
            )
        )
        if made.rollouts is not None:
            acted = made.rollouts
            lines.append(
                (
                    "collected",
                    f"{percent(acted.share)} of the observations, in {plural(acted.episodes, 'episode')} "
                    f"of {clean(acted.env)}, {plural(acted.collections, 'time')}; {_duration(acted.seconds)} of "
                    "the training",
                )
            )
    if results.training_s is not None:
        lines.append(("training", f"{_duration(results.training_s)} on {clean(results.device)}"))
    if results.latency is not None and results.latency.memory is not None:
        lines.append(("memory", ", ".join(f"{name} {value}" for name, value in more_tables.memory(results))))
    if results.rollouts is not None:
        lines.append(("rollouts", rollouts(results.rollouts)))
    lines.append(("teacher", clean(results.teacher)))
    if results.student is not None:
        lines.append(("student", clean(results.student)))
    return [(name, value) for name, value in lines if value]


def _ratios(results: Results) -> str:
    """The student's RMS gap over the untrained teacher's, at each number of steps."""
    rows = [
        r
        for r in results.gaps
        if r.policy == "student" and r.reference == "deployed" and r.ratio_to_untrained
    ]
    parts = [
        f"{estimate(row.ratio_to_untrained, _ratio)} at {number(row.num_steps)}"
        for row in sorted(rows, key=lambda row: row.num_steps)
        if row.ratio_to_untrained is not None and row.solver == "euler"
    ]
    return f"{', '.join(parts)} solver steps (RMS to the deployed teacher)" if parts else ""


def _to_floor(results: Results) -> str:
    """The student's RMS gap over the teacher's as deployed, both to the converged ODE."""
    rows = [r for r in results.gaps if r.policy == "student" and r.solver == "euler" and r.ratio_to_floor]
    parts = [
        f"{estimate(row.ratio_to_floor, _ratio)} at {number(row.num_steps)}, nearer on "
        f"{percent(row.nearer_than_deployed)} of pairs"
        for row in sorted(rows, key=lambda row: row.num_steps)
        if row.ratio_to_floor is not None and row.nearer_than_deployed is not None
    ]
    return f"{'; '.join(parts)} (RMS to the converged ODE)" if parts else ""


def rollouts(ran: Rollouts) -> str:
    """How episodes were run, in a line."""
    noise = "paired noise" if ran.noise == "paired" else "noise as lerobot-eval draws it"
    workers = "no workers" if ran.num_workers == 0 else plural(ran.num_workers, "worker")
    return f"{clean(ran.env)}; {noise}; seeds from {ran.first_seed}; {ran.batch_size} side by side, {workers}"


def _grid(made: CouplingSummary) -> str:
    return "" if made.grid_power in (None, 1) else f", grid power {made.grid_power:g}"


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _curvature(results: Results) -> str:
    rows = more_tables.curvature_rows(results)
    parts = [
        f"{clean(row.policy)} {percent(row.curvature)} ({percent(row.curvature_all_dims)} over all dimensions)"
        for row in rows
    ]
    return f"{', '.join(parts)}; Euler, {rows[0].num_steps} steps" if rows else ""


def _time(latency: Latency, results: Results) -> str:
    """Relative times anywhere; absolute ones only where the reader knows the device they are of."""
    share = percent(latency.encode_share(latency.student_num_steps), 0)
    whose = "the student's" if results.student is not None else "that chunk's"
    text = (
        f"{latency.speedup:.2f} times as fast at {steps(latency.student_num_steps)}, {beside_ceiling(latency, 2)}; "
        f"encoding is {share} of {whose} time"
    )
    if not _GPU.search(results.device):
        return text
    name = clean(results.device)
    split = f"{1000 * latency.encode_s:.1f} ms to encode and {1000 * latency.step_s:.1f} ms a step"
    return f"{text}; {split} on {name}, batch {latency.batch_size}"


# ---- Text -----------------------------------------------------------------------------------------------


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def escape(text: str) -> str:
    """Plain text as markdown that reads like it."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)
