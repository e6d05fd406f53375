"""The measures as text: for the terminal and, with the same content, as markdown."""

import re
from collections.abc import Collection, Iterator

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from chordflow import console
from chordflow.reporting import gap_tables, policy_tables, rollout_tables
from chordflow.reporting.facts import facts, held_out
from chordflow.reporting.section import ABSENT, Section
from chordflow.results import findings as rules
from chordflow.results.findings import next_command, verdict
from chordflow.results.schema import Results
from chordflow.results.wording import clean

__all__ = ["ABSENT", "drawn", "escape", "findings", "held_out", "markdown", "render", "sections", "written"]


NAME = 16
"""Characters of a name that a terminal shows in one line, where the name has as many."""


def render(results: Results, *, verbose: bool | None = None) -> RenderableType:
    """The verdict, what to type next and the summary, for a terminal of any width.

    Args:
        results: what was measured; what was not is left out.
        verbose: all findings, tables and facts as well; by default as the user asks for.

    Returns:
        Something for `rich.print`. Names out of files are shown as they are, never read as markup.
    """
    verbose = console.verbose() if verbose is None else verbose
    parts: list[RenderableType] = [Text(verdict(results), style="bold")]
    if (command := next_command(results)) is not None:
        parts.append(Text(": ".join(command), no_wrap=True, overflow="ignore"))
    parts.append(Text())
    shown = sections(results)
    if not verbose:
        shown = [section for section in shown if section.key == "summary"]
    elif found := findings(results):
        parts += [*(Text(f"- {finding}") for finding in found), Text()]
    for section in shown:
        if not section.page_only:
            parts += [drawn(section), Text()]
    if verbose:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column()
        for name, value in facts(results):
            grid.add_row(name, Text(value))
        parts.append(grid)
    elif results.held_out is not None and "no intervals" in (text := held_out(results.held_out)):
        # Whoever reads the summary alone is to know how little it stands on.
        parts.append(Text(f"Held out: {text}.", style="dim"))
    return Group(*parts)


class Drawn:
    """A table for a terminal: where it is too wide, further columns follow below, each time after the words."""

    def __init__(self, section: Section, *, short: bool = False) -> None:
        self.section = section.shown(short=short)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yields the table in as few blocks as the terminal's width allows."""
        section, width = self.section, options.max_width

        def needed(places: Collection[int]) -> int:
            # What is measured is never wider than what there is.
            return Measurement.get(console, options.update(width=10_000), _block(section, places)).minimum

        yield Text(section.title, style="bold")
        keys = list(range(section.left or 1))
        if needed(keys) > width / 2:
            keys = keys[:1]
        rest = [place for place in range(len(section.heads)) if place not in keys]
        while True:
            taken = min(1, len(rest))
            while taken < len(rest) and needed([*keys, *rest[: taken + 1]]) <= width:
                taken += 1
            yield _block(section, [*keys, *rest[:taken]])
            if not (rest := rest[taken:]):
                break
            yield Text()
        if section.below:
            yield Text(section.below, style="dim")


def _block(section: Section, places: Collection[int]) -> Table:
    """Some columns of a table."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, padding=(0, 1))
    for place in places:
        texts = [section.heads[place], *(row[place].text for row in section.rows)]
        longest = max(len(word) for text in texts for word in text.split() or [""])
        words, natural = place < section.left, max(len(line) for text in texts for line in text.split("\n"))
        made.add_column(
            Text(section.heads[place]),
            justify="left" if words else "right",
            vertical="bottom",
            overflow="fold",
            # A name may take several lines, parted between its words; a figure that is parted is a wrong figure.
            no_wrap=not words,
            min_width=max(longest, min(NAME, natural)) if words else natural,
        )
    for index, row in enumerate(section.rows):
        style = "bold" if index in section.marked else ""
        made.add_row(*(Text("" if row[place].repeats else row[place].text, style=style) for place in places))
    return made


def drawn(section: Section, *, short: bool = False) -> Drawn:
    """A table for a terminal.

    Args:
        section: the table.
        short: without its wide columns and the rows after the tenth.
    """
    return Drawn(section, short=short)


def markdown(results: Results, keys: Collection[str] | None = None) -> str:
    """The same content for a README or a model card.

    Args:
        results: what was measured; what was not is left out.
        keys: tables to show, by `Section.key`, without the findings beyond the verdict; everything by default.

    Returns:
        Markdown that ends with a line break. Names out of files are escaped.
    """
    blocks = [f"**{escape(verdict(results))}**"]
    if findings(results) and keys is None:
        blocks.append("\n".join(f"- {escape(text)}" for text in findings(results)))
    for section in sections(results):
        if not section.page_only and (keys is None or section.key in keys):
            blocks += written(section)
    blocks.append("\n".join(f"- {name}: {escape(value)}" for name, value in facts(results)))
    return "\n\n".join(blocks) + "\n"


def written(section: Section) -> list[str]:
    """A table as blocks of markdown: its title, its rows and the line below."""
    section = section.shown()
    rule = ["---"] * section.left + ["---:"] * (len(section.heads) - section.left)
    heads = [escape(head.replace("\n", " ")) for head in section.heads]
    rows = [["" if cell.repeats else escape(cell.text) for cell in row] for row in section.rows]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in [heads, rule, *rows])
    return [f"{escape(section.title)}:", lines, *([escape(section.below)] if section.below else [])]


def findings(results: Results) -> list[str]:
    """What the measures say beyond the verdict, the most important first."""
    said = verdict(results)
    texts = [clean(found.text) for found in rules.findings(results)]
    # In a verdict a finding may follow a yes or no, without its capital.
    return [text for text in texts if text and text[1:] not in said]


def sections(results: Results) -> list[Section]:
    """Every table that there is something for, the page's own included, in the order of reading."""
    gaps = [gap_tables.gaps(results), gap_tables.free(results)]
    reflow = results.kind == "reflow"
    found = [
        gap_tables.summary(results),
        # What reflow is about comes first, and rollouts where they are what was asked for.
        *(gaps if reflow else []),
        rollout_tables.success(results),
        rollout_tables.noninferiority(results),
        rollout_tables.sequential(results),
        *([] if reflow else gaps),
        rollout_tables.flip_checks(results),
        policy_tables.curvature(results),
        policy_tables.curvature_over_time(results),
        policy_tables.curvature_over_dims(results),
        policy_tables.spread_summary(results),
        policy_tables.spread_list(results),
        policy_tables.latency(results),
        rollout_tables.motion(results),
        rollout_tables.delays(results),
        rollout_tables.timing(results),
        policy_tables.policies(results),
    ]
    return [section for section in found if section is not None]


def escape(text: str) -> str:
    """Plain text as markdown that reads like it."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)
