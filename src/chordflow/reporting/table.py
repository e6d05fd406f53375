"""The measures as text: for the terminal and, with the same content, as markdown."""

import re
from collections.abc import Collection, Iterator

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from chordflow import console
from chordflow.reporting import flow_tables, rollout_tables
from chordflow.reporting.section import KEYS, Section
from chordflow.results import findings as rules
from chordflow.results.actions import HeldOut
from chordflow.results.findings import next_commands, verdict
from chordflow.results.schema import Results
from chordflow.results.wording import clean, percent, plural, seconds, size, steps

NAME = 16
"""Characters of a name that a terminal shows in one line, where the name has as many."""


def sections(results: Results) -> list[Section]:
    """Every table that there is something for, the page's own included, in the order of reading."""
    gaps = [flow_tables.gaps, flow_tables.free]
    rollouts = [rollout_tables.success, rollout_tables.noninferiority, rollout_tables.sequential]
    makers = [
        flow_tables.summary,
        # What reflow is about comes first, and rollouts where they are what was asked for.
        *([*gaps, *rollouts] if results.kind == "reflow" else [*rollouts, *gaps]),
        rollout_tables.flip_checks,
        flow_tables.curvature, flow_tables.curvature_over_time, flow_tables.curvature_over_dims,
        flow_tables.spread_summary, flow_tables.spread_list,
        rollout_tables.latency, rollout_tables.motion, rollout_tables.delays, rollout_tables.timing,
        rollout_tables.policies,
    ]  # fmt: skip
    return [section for make in makers if (section := make(results)) is not None]


def findings(results: Results) -> list[str]:
    """What the measures say beyond the verdict, the most important first."""
    answer = verdict(results)
    texts = [clean(found.text) for found in rules.findings(results)]
    # In a verdict a finding may follow a yes or no, without its capital.
    return [text for text in texts if text and text[1:] not in answer]


# ---- For a terminal -------------------------------------------------------------------------------------


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
    for command in next_commands(results):
        parts.append(Text(": ".join(command), no_wrap=True, overflow="ignore"))
    parts.append(Text())
    if verbose and (found := findings(results)):
        parts += [*(Text(f"- {finding}") for finding in found), Text()]
    for section in sections(results):
        if not section.page_only and (verbose or section.key == "summary"):
            parts += [Drawn(section), Text()]
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
    """A table for a terminal: where it is too wide, further columns follow below, each time after words and `KEYS`."""

    def __init__(self, section: Section) -> None:
        self.section = section

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yields the table in as few blocks as the terminal's width allows."""
        section, width = self.section, options.max_width

        def needed(places: Collection[int]) -> int:
            # What is measured is never wider than what there is.
            return Measurement.get(console, options.update(width=10_000), self._block(places)).minimum

        yield Text(section.title, style="bold")
        counts = [place for place, head in enumerate(section.heads) if head in KEYS]
        keys = sorted({*range(section.left or 1), *counts})
        if needed(keys) > width / 2:
            keys = sorted({0, *counts})
        rest = [place for place in range(len(section.heads)) if place not in keys]
        while True:
            taken = min(1, len(rest))
            while taken < len(rest) and needed([*keys, *rest[: taken + 1]]) <= width:
                taken += 1
            places = [*keys, *rest[:taken]]
            yield self._block(places, spare=max(width - needed(places), 0))
            if not (rest := rest[taken:]):
                break
            yield Text()
        if section.below:
            yield Text(section.below, style="dim")

    def _block(self, places: Collection[int], spare: int = 0) -> Table:
        """Some columns of the table; those of words share what is spare beyond the narrowest, the first one first."""
        section = self.section
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
        for place in places:
            texts = [section.heads[place], *(row[place].text for row in section.rows)]
            longest = max(cell_len(word) for text in texts for word in text.split() or [""])
            natural = max(cell_len(line) for text in texts for line in text.split("\n"))
            words = place < section.left
            least = max(longest, min(NAME, natural)) if words else natural
            more = min(spare, natural - least)
            spare -= more
            made.add_column(
                Text(section.heads[place]),
                justify="left" if words else "right",
                vertical="bottom",
                overflow="fold",
                # A name may take several lines, parted between its words; a figure that is parted is a wrong figure.
                no_wrap=not words,
                # Rich takes from the widest column first, below the least that its words need.
                width=least + more,
            )
        for index, row in enumerate(section.rows):
            style = "bold" if index in section.marked else ""
            made.add_row(*(Text("" if row[place].repeats else row[place].text, style) for place in places))
        return made


# ---- As markdown ----------------------------------------------------------------------------------------


def markdown(results: Results) -> str:
    """The same content for a document or a model card: what was measured, what was not is left out.

    Returns:
        Markdown that ends with a line break. Names out of files are escaped.
    """
    blocks = [f"**{escape(verdict(results))}**"]
    if found := findings(results):
        blocks.append("\n".join(f"- {escape(text)}" for text in found))
    for section in sections(results):
        if not section.page_only:
            blocks += written(section)
    blocks.append("\n".join(f"- {name}: {escape(value)}" for name, value in facts(results)))
    return "\n\n".join(blocks) + "\n"


def written(section: Section) -> list[str]:
    """A table as blocks of markdown: its title, its rows and the line below."""
    rule = ["---"] * section.left + ["---:"] * (len(section.heads) - section.left)
    heads = [escape(head.replace("\n", " ")) for head in section.heads]
    rows = [["" if cell.repeats else escape(cell.text) for cell in row] for row in section.rows]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in [heads, rule, *rows])
    title = escape(section.title) + ":" * (not section.title.endswith("?"))
    return [title, lines, *([escape(section.below)] if section.below else [])]


def escape(text: str) -> str:
    """Plain text as markdown that reads like it."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)


# ---- What was measured, on how much, and how ------------------------------------------------------------


def facts(results: Results) -> list[tuple[str, str]]:
    """The lines below the tables, each a name and a value; what was not measured is left out."""
    held, timed, device = results.held_out, results.timed, clean(results.device)
    made, ran = results.couplings, results.rollouts
    lines = {}
    if held is not None:
        bootstrapped = any(row.interval or row.ratio_to_untrained for row in results.gaps)
        bootstrapped = bootstrapped or any(row.interval for row in results.curvature)
        lines["held out"] = held_out(held, intervals=bootstrapped)
    if results.success:
        paired = any(row.versus_teacher is not None for row in results.success)
        how = "confidence sequences" if results.sequential else "Newcombe's"
        counted = rollout_tables.how_many([row for row in results.success if row.group == "all"])
        lines["success"] = f"{counted} for each way to act; Wilson's 95 % intervals"
        lines["success"] += f", paired differences with {how}" * paired
    if ran is not None:
        noise = "paired noise" if ran.noise == "paired" else "noise as lerobot-eval draws it"
        workers = "no workers" if ran.num_workers == 0 else plural(ran.num_workers, "worker")
        lines["rollouts"] = (
            f"{clean(ran.env)}; {noise}; seeds from {ran.first_seed}; {ran.batch_size} side by side, {workers}"
        )
    if timed is not None:
        lines["time"] = (
            f"medians of {plural(timed.repeats, 'repetition')} on {device}, "
            f"{plural(timed.batch_size, 'observation')} at a time"
        )
    if made is not None:
        grid = "" if made.grid_power in (None, 1) else f", grid power {made.grid_power:g}"
        lines["couplings"] = (
            f"{made.observations} observations with {plural(made.noises_per_observation, 'noise')} each, "
            f"by {clean(made.solver)} with {steps(made.num_steps)}{grid}; buffer {size(made.buffer_bytes)}"
        )
    if made is not None and (acted := made.rollouts):
        lines["collected"] = (
            f"{percent(acted.share)} of the observations, in {plural(acted.episodes, 'episode')} of "
            f"{clean(acted.env)}, {plural(acted.collections, 'time')}; {seconds(acted.seconds)} of the training"
        )
    if results.training_s is not None:
        lines["training"] = f"{seconds(results.training_s)} on {device}"
    if results.latency is not None and (memory := results.latency.memory) is not None:
        where = "the accelerator" if memory.kind == "accelerator" else "the whole process"
        lines["memory"] = (
            f"weights {size(memory.weights_bytes)}, most in use, {where} {size(memory.peak_bytes)}"
        )
    lines |= {"teacher": clean(results.teacher), "student": clean(results.student or "")}
    return [(name, value) for name, value in lines.items() if value]


def held_out(held: HeldOut, *, intervals: bool = False) -> str:
    """What was measured on, and what that cannot say.

    Args:
        held: the observations.
        intervals: whether figures have intervals over episodes.
    """
    episodes = plural(len(held.episodes), "episode")
    text = f"{held.observations} observations of {episodes}, {plural(held.noises, 'noise')} each"
    if held.whole_tasks:
        text += (
            f"; the tasks of {held.whole_tasks} of them have no other episode, so training has none of these"
        )
    if held.maybe_seen_by_teacher:
        text += "; the teacher may have seen them in its own training"
    if min(len(held.episodes), held.observations) < 2:
        more = "--dataset.eval_split" if len(held.episodes) < 2 else "--measure.num_observations"
        return f"{text}; no intervals, which need observations of two episodes or more (raise {more})"
    return text + ("; 95 % bootstrap intervals over episodes" if intervals else "")
