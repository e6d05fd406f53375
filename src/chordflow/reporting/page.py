"""The report: one HTML file that holds all it needs and fetches nothing."""

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from PIL import Image
from plotly.offline import get_plotlyjs

from chordflow.reporting import flow_plots, rollout_plots
from chordflow.reporting.flow_tables import NO_TIMES
from chordflow.reporting.plots import Plot
from chordflow.reporting.section import Section
from chordflow.reporting.table import facts, findings, sections
from chordflow.results.episodes import Clip
from chordflow.results.findings import next_commands, verdict
from chordflow.results.schema import Results
from chordflow.results.wording import clean, command_lines, plural, size

IN_SIGHT = 5
"""Findings that are shown unfolded."""

TITLES = {"reflow": "Reflow", "diagnose": "Diagnosis", "evaluate": "Evaluation"}

LARGEST = 16_000_000
"""Bytes of one clip that a page takes in; a larger one is named, and lies beside the page."""

KINDS = {
    ".mp4": "video/mp4", ".webm": "video/webm",
    ".gif": "image/gif", ".webp": "image/webp", ".png": "image/png", ".apng": "image/apng",
}  # fmt: skip
"""Files of clips that a page can show."""

# ---- Any page -------------------------------------------------------------------------------------------


def rendered(
    template: str, plots: Iterable[Plot], command: list[str], settings: dict[str, Any], **values: Any
) -> str:
    """A whole page of a template, with all its plots; whatever comes out of the results is escaped."""
    figures = {plot.key: json.loads(plot.figure.to_json()) for plot in plots}
    scripts = {name: asset(f"{name}.js") for name in ("theme", "report")} | {"plotly": get_plotlyjs()}
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["clean"] = clean
    environment.filters |= {"unbroken": _unbroken, "parted": _parted}
    return environment.get_template(f"{template}.html.j2").render(
        policy=_policy(scripts.values()),
        style=asset("style.css"),
        scripts=scripts,
        # Nothing in it can end its script element or begin another.
        plots=htmlsafe_json_dumps(figures, allow_nan=False, separators=(",", ":")),
        command=command_lines(command),
        settings=list(_flat(settings)),
        **values,
    )


def _unbroken(text: str) -> str:
    """A figure that stays whole: its interval or the end of a range may stand below it, and each of several parts."""
    whole = text.replace(" ", "\u00a0").replace("\u00a0[", " [").replace("\u00a0to\u00a0", " to\u00a0")
    return _parted(whole) if text.count("/") > 1 else whole


def _parted(text: str) -> str:
    """A text that may break behind its strokes."""
    return text.replace("/", "/\u200b")


def _policy(scripts: Iterable[str]) -> str:
    """A content security policy that runs these scripts alone and forbids the network."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "media-src data:; base-uri 'none'; form-action 'none'"
    )


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and values."""
    for key, value in settings.items():
        name = f"{prefix}{clean(key)}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def asset(name: str) -> str:
    """The text of a file of the templates' folder."""
    return (files("chordflow.reporting") / "templates" / name).read_text(encoding="utf-8")


# ---- The page of a run ----------------------------------------------------------------------------------


def page(results: Results, folder: str | Path) -> str:
    """The report's HTML.

    Args:
        results: what was measured; what was not is left out.
        folder: where the results lie: clips are read from below it.
    """
    tables = {section.key: section for section in sections(results)}
    parts = [part for part in _parts(results, Path(folder), tables) if part]
    found, kind = findings(results), TITLES[results.kind]
    return rendered(
        "report",
        (plot for part in parts for group in (*part.plots, part.wide) for plot in group),
        results.command,
        results.settings,
        title=f"{kind}: {clean(results.student or results.teacher)}",
        kind=kind,
        results=results,
        verdict=verdict(results),
        next=next_commands(results),
        summary=tables.get("summary"),
        findings=found[:IN_SIGHT],
        more=found[IN_SIGHT:],
        parts=parts,
        facts=facts(results),
    )


@dataclass
class Part:
    """A part of the page under a heading that opens it.

    Attributes:
        key: anchor.
        title: heading.
        plots: groups of plots; those of one group stand side by side.
        tables: after them.
        intro: a sentence before them.
        clips: moving pictures.
        wide: plots of single observations, with their pictures.
    """

    key: str
    title: str
    plots: list[list[Plot]]
    tables: list[Section]
    intro: str = ""
    clips: list["Embedded"] = field(default_factory=list)
    wide: list[Plot] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(any(self.plots) or self.tables or self.clips or self.wide or self.intro == NO_TIMES)


def _parts(results: Results, folder: Path, tables: dict[str, Section]) -> Iterator[Part]:
    def shown(*keys: str) -> list[Section]:
        return [tables[key] for key in keys if key in tables]

    success = [rollout_plots.success(results), rollout_plots.success_by_group(results)]
    episodes = [
        Part("success", "Success", success, shown("success", "noninferiority"),
             "How often each way to act solves an episode, and whether it falls behind the deployed teacher."),
        Part("sequential", "Sequential decision", [rollout_plots.sequential(results)], shown("sequential")),
        Part("clips", "Rollouts side by side", [], [], clips=[embed(clip, folder) for clip in results.clips]),
    ]  # fmt: skip
    gap = Part(
        "gap", "Action gap", [flow_plots.gaps(results)], shown("gap", "free", "flips"),
        "How far actions are from what the teacher makes of the same noise and observation, relative to the spread of "
        "the teacher's actions.",
    )  # fmt: skip
    yield from [gap, *episodes] if results.kind == "reflow" else [*episodes, gap]
    yield Part(
        "paths", "Arcs and chords", [flow_plots.trajectories(results)], [],
        "Paths from noise to action in the two main components of the chunk. One step is exact where the path is its "
        "own chord.",
    )  # fmt: skip
    yield Part(
        "curvature", "Curvature",
        [flow_plots.curvature(results), [*flow_plots.heat_maps(results), *flow_plots.curvature_by_dimension(results)]],
        shown("curvature", "curvature-time", "curvature-dims"),
        "How far the velocity is from the straight line to the endpoint, along each policy's own paths.",
    )  # fmt: skip
    yield Part(
        "spread", "How two-sided the policy is", [flow_plots.spreads(results)], shown("modes", "spreads"),
        "How far the endpoints of different noises lie apart at one observation, and in how many modes.",
        wide=list(_widest(results)),
    )  # fmt: skip
    unreliable = NO_TIMES if results.timings_unreliable else ""
    yield Part("time", "Time of a chunk", [rollout_plots.latency(results)], shown("latency"), unreliable)
    yield Part("motion", "Motion", [rollout_plots.motion(results)], shown("motion"))
    yield Part(
        "delays", "Under an inference delay", [rollout_plots.delays(results)], shown("delays"),
        "On a robot the next chunk is requested while the last one still runs.",
    )  # fmt: skip
    yield Part("timing", "Where rollouts spend their time", [rollout_plots.timing(results)], shown("timing"))
    yield Part("training", "Training", [flow_plots.loss(results)], [])
    yield Part("policies", "Policies", [], shown("policies"))


def _widest(results: Results) -> Iterator[Plot]:
    titles = {
        row.observation: f"{clean(row.task) or 'no instruction'}: episode {row.episode}, frame {row.frame}"
        for row in results.spreads
    }
    for place, found in enumerate(results.widest):
        title = titles.get(found.observation, f"Observation {found.observation}")
        pictures = [(clean(camera), uri) for camera, png in found.pictures.items() if (uri := picture(png))]
        yield flow_plots.endpoints(found, place, title, pictures)


# ---- Pictures and clips, read from beside the results, never from anywhere else ------------------------


@dataclass(frozen=True)
class Embedded:
    """A clip as the page shows it.

    Attributes:
        clip: its record in the results.
        text: what happens in it.
        note: why it is not shown, a sentence; empty where it is.
        source: the whole file as a data URI; empty where it could not be taken in.
        still: its first frame as a data URI; empty for a video, which has controls of its own.
        size: width and height of the still in pixels, so that nothing jumps while the page loads.
    """

    clip: Clip
    text: str
    note: str = ""
    source: str = ""
    still: str = ""
    size: tuple[int, int] = (0, 0)


def embed(clip: Clip, folder: Path) -> Embedded:
    """Take a clip into the page; its path must lead to a file inside the results' folder.

    Returns:
        The clip, or a note why it is not shown: nothing about a clip keeps a page from being made.
    """
    shown = Embedded(clip, _outcomes(clip))
    try:
        path = (folder / clip.path).resolve()
        kind = KINDS.get(path.suffix.lower())
        # Results may come from others: what they name outside their folder is not theirs to show.
        if not path.is_relative_to(folder.resolve()):
            why = "lies outside the results' folder and is not shown."
        elif not path.is_file():
            why = "is not there any more."
        elif kind is None:
            why = "is of a kind that pages do not show."
        elif (length := path.stat().st_size) > LARGEST:
            why = f"has {size(length)}, too much for a page; it lies beside the results."
        else:
            data, still = path.read_bytes(), io.BytesIO()
            shown = replace(shown, source=_data_uri(kind, data))
            if kind.startswith("video"):
                return shown
            with Image.open(io.BytesIO(data)) as image:
                image.convert("RGB").save(still, format="PNG", optimize=True)
                return replace(shown, still=_data_uri("image/png", still.getvalue()), size=image.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        why = "cannot be read."
    return replace(shown, note=f"{clean(clip.path)} {why}", source="")


def _outcomes(clip: Clip) -> str:
    """How often each column of a clip succeeds, in words."""
    columns = []
    for index, name in enumerate(clip.columns):
        won = sum(row[index] for row in clip.outcomes if index < len(row))
        columns.append(f"{clean(name)} succeeds in {won}")
    seeds = f" (seeds {', '.join(map(str, clip.seeds))})" if clip.seeds else ""
    return f"{plural(len(clip.outcomes), 'episode')} from the same starts: {', '.join(columns)}{seeds}."


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def picture(encoded: str) -> str:
    """A PNG in base64, as in `WideObservation.pictures`, as a data URI; empty if it is none."""
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError:
        return ""
    return _data_uri("image/png", data) if data.startswith(b"\x89PNG\r\n\x1a\n") else ""
