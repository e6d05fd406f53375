"""The report: one HTML file that holds all it needs and fetches nothing."""

import base64
import dataclasses
import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from chordflow.reporting import curvature_plots, flow_plots, rollout_plots, spread_plots, time_plots
from chordflow.reporting.clips import Embedded, embed, picture
from chordflow.reporting.facts import facts
from chordflow.reporting.plots import Plot
from chordflow.reporting.section import Section
from chordflow.reporting.table import findings, sections
from chordflow.results.findings import next_command, verdict
from chordflow.results.schema import Results
from chordflow.results.wording import UNRELIABLE, capital, clean

IN_SIGHT = 5
"""Findings that are shown before one asks for more."""

NO_TIMES = f"{capital(UNRELIABLE)}."
"""What is shown in place of unreliable times."""

TITLES = {"reflow": "Reflow", "diagnose": "Diagnosis", "evaluate": "Evaluation"}


@dataclass(frozen=True)
class Wide:
    """An observation at which endpoints spread most, as the page shows it."""

    title: str
    pictures: list[tuple[str, str]]
    plot: Plot


@dataclass
class Part:
    """A part of the page under a heading that opens it.

    Attributes:
        key: anchor.
        title: heading.
        intro: a sentence before the plots.
        plots: groups of plots; those of one group stand side by side.
        tables: tables.
        clips: moving pictures.
        wide: observations with their pictures.
    """

    key: str
    title: str
    intro: str = ""
    plots: list[list[Plot]] = field(default_factory=list)
    tables: list[Section] = field(default_factory=list)
    clips: list[Embedded] = field(default_factory=list)
    wide: list[Wide] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(any(self.plots) or self.tables or self.clips or self.wide or self.intro == NO_TIMES)

    def all_plots(self) -> Iterator[Plot]:
        """Every plot of the part."""
        for group in self.plots:
            yield from group
        for wide in self.wide:
            yield wide.plot


def page(results: Results, folder: str | Path) -> str:
    """The report's HTML.

    Args:
        results: what was measured; what was not is left out.
        folder: where the results lie: clips are read from below it.

    Returns:
        The text of a whole file. Whatever comes out of the results is escaped.
    """
    tables = {section.key: section for section in sections(results)}
    parts = [part for part in _parts(results, Path(folder), tables) if part]
    found = findings(results)
    plots = {plot.key: json.loads(plot.figure.to_json()) for part in parts for plot in part.all_plots()}
    scripts = {name: asset(f"{name}.js") for name in ("theme", "report")} | {"plotly": get_plotlyjs()}
    name = clean(results.student or results.teacher)
    text = environment().get_template("report.html.j2").render(
        title=f"{TITLES[results.kind]}: {name}",
        kind=TITLES[results.kind],
        results=results,
        policy=policy(scripts.values()),
        style=asset("style.css"),
        scripts=scripts,
        plots=json_in_html(plots),
        verdict=verdict(results),
        next=next_command(results),
        summary=tables.get("summary"),
        findings=found[:IN_SIGHT],
        more=found[IN_SIGHT:],
        parts=parts,
        facts=facts(results),
        command=command_lines(results.command),
        settings=list(flat(results.settings)),
    )  # fmt: skip
    return text


def write_text(text: str) -> bytes:
    """A file's bytes: names that are not valid Unicode, which a command line may hold, become question marks."""
    return text.encode("utf-8", errors="replace")


def policy(scripts: Iterable[str]) -> str:
    """A content security policy that runs these scripts alone and forbids the network."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "media-src data:; base-uri 'none'; form-action 'none'"
    )


def json_in_html(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or begin another."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def command_lines(command: list[str]) -> str:
    """The command as one would type it, an option a line."""
    words = [shlex.quote(clean(word)) for word in command]
    begin = next((i for i, word in enumerate(words) if word.startswith(("--", "'--"))), len(words))
    return " \\\n    ".join([" ".join(words[:begin]), *words[begin:]])


def flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and values."""
    for key, value in settings.items():
        name = f"{prefix}{clean(key)}"
        if isinstance(value, dict) and value:
            yield from flat(value, f"{name}.")
        else:
            yield name, clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def asset(name: str) -> str:
    """The text of a file of the templates' folder."""
    return (files("chordflow.reporting") / "templates" / name).read_text(encoding="utf-8")


def environment() -> jinja2.Environment:
    """Templates by name, with everything escaped that is put into them."""
    found = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["clean"] = clean
    # A figure stays whole; its interval may stand below it.
    found.filters["unbroken"] = lambda text: text.replace(" ", "\u00a0").replace("\u00a0[", " [")
    return found


# ---- Parts ----------------------------------------------------------------------------------------------


def _parts(results: Results, folder: Path, tables: dict[str, Section]) -> Iterator[Part]:
    def shown(*keys: str) -> list[Section]:
        return [tables[key] for key in keys if key in tables]

    episodes = [
        Part(
            "success",
            "Success",
            "How often each way to act solves an episode, and whether it falls behind the deployed teacher.",
            [rollout_plots.success(results), rollout_plots.success_by_group(results)],
            shown("success", "noninferiority"),
        ),
        Part(
            "sequential", "Sequential decision", "", [rollout_plots.sequential(results)], shown("sequential")
        ),
        Part("clips", "Rollouts side by side", clips=[embed(clip, folder) for clip in results.clips]),
    ]
    gap = Part(
        "gap",
        "Action gap",
        "How far actions are from what the teacher makes of the same noise and observation, relative to the spread of "
        "the teacher's actions.",
        [flow_plots.gaps(results)],
        shown("gap", "free", "flips"),
    )
    yield from [gap, *episodes] if results.kind == "reflow" else [*episodes, gap]
    yield Part(
        "paths",
        "Arcs and chords",
        "Paths from noise to action in the two main components of the chunk. One step is exact where the path is its "
        "own chord.",
        [flow_plots.trajectories(results)],
    )
    curved = curvature_plots.curvature(results)
    yield Part(
        "curvature",
        "Curvature",
        "How far the velocity is from the straight line to the endpoint, along each policy's own paths.",
        [
            [plot for plot in curved if plot.group == "curvature"],
            [*curvature_plots.heat_maps(results), *(plot for plot in curved if plot.group == "heat")],
        ],
        shown("curvature", "curvature-time", "curvature-dims"),
    )
    yield Part(
        "spread",
        "How two-sided the policy is",
        "How far the endpoints of different noises lie apart at one observation, and in how many modes.",
        [spread_plots.spreads(results)],
        shown("modes", "spreads"),
        wide=list(_widest(results)),
    )
    yield Part(
        "time",
        "Time of a chunk",
        NO_TIMES if results.timings_unreliable else "",
        [time_plots.latency(results)],
        shown("latency"),
    )
    yield Part("motion", "Motion", "", [rollout_plots.motion(results)], shown("motion"))
    yield Part(
        "delays",
        "Under an inference delay",
        "On a robot the next chunk is asked for while the last one still runs.",
        [rollout_plots.delays(results)],
        shown("delays"),
    )
    yield Part("timing", "Where rollouts spend their time", "", [time_plots.timing(results)], shown("timing"))
    yield Part("training", "Training", "", [flow_plots.loss(results)])
    yield Part("policies", "Policies", tables=shown("policies"))


def _widest(results: Results) -> Iterator[Wide]:
    spreads = {row.observation: row for row in results.spreads}
    for place, found in enumerate(results.widest):
        row = spreads.get(found.observation)
        title = f"Observation {found.observation}"
        if row is not None:
            title = f"{clean(row.task) or 'no instruction'}: episode {row.episode}, frame {row.frame}"
        pictures = [(clean(camera), picture(encoded)) for camera, encoded in found.pictures.items()]
        plot = dataclasses.replace(spread_plots.endpoints(found, place), title=title)
        yield Wide(title, [(camera, uri) for camera, uri in pictures if uri], plot)
