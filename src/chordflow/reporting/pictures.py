"""Pictures of a run as files: plots of the page drawn by matplotlib, and episodes side by side as a GIF.

Shapes: T frames of an episode; H, W height and width of a frame in pixels.
"""

import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from chordflow.console import doing
from chordflow.errors import UserError
from chordflow.reporting import flow_plots
from chordflow.reporting.plots import Plot
from chordflow.results.files import write_whole
from chordflow.results.schema import Clip, Results

# ---- Plots ----------------------------------------------------------------------------------------------

DPI = 160
"""Dots per inch of the files."""

_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}

_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "X", "star": "*", "pentagon": "p",
            "hexagon": "h"}  # fmt: skip
"""Markers of `plots.SYMBOLS`."""

_STYLE: dict[str, Any] = {
    "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.titlepad": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#666666", "legend.frameon": False,
    "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "text.parse_math": False,  # Names may hold dollar signs.
}  # fmt: skip


@doing("Drawing pictures")
def save_figures(results: Results, folder: str | Path) -> list[Path]:
    """Write `trajectories.png`, `gap.png` and `loss.png`.

    Args:
        results: what was measured.
        folder: where; it must exist. Pictures that are there are replaced, each whole or not at all.

    Returns:
        The paths of those that there was something to draw for.

    Raises:
        UserError: if a file cannot be written.
    """
    pictures = {
        "trajectories.png": flow_plots.trajectories(results),
        "gap.png": flow_plots.gaps(results),
        "loss.png": flow_plots.loss(results),
    }
    return [write_whole(Path(folder) / name, png(drawn(plots))) for name, plots in pictures.items() if plots]


def drawn(plots: Sequence[Plot]) -> Figure:
    """Plots side by side, with one legend: at least one, of lines and markers."""
    with rc_context(_STYLE):
        height = max(plot.figure.layout.height for plot in plots) / 80
        figure = Figure(figsize=(max(7.2, 5.4 * len(plots)), height), layout="constrained")
        handles: dict[str, Any] = {}
        for panel, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
            _draw(panel, plot)
            handles |= {label: line for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        if len(handles) > 1:
            figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=4)
        return figure


def _draw(panel: Axes, plot: Plot) -> None:
    layout = plot.figure.layout
    panel.set_title(plot.title)
    for trace in plot.figure.data:
        x, y = ([math.nan if value is None else value for value in values] for values in (trace.x, trace.y))
        symbol = trace.marker.symbol or "circle"
        colour = trace.line.color or trace.marker.color
        panel.plot(
            x, y, color=colour, lw=trace.line.width or 1.5, ms=5, label=_text(trace.name),
            ls=_DASHES[trace.line.dash or "solid"] if "lines" in trace.mode else "none",
            marker=_MARKERS[symbol.removesuffix("-open")] if "markers" in trace.mode else None,
            mfc="white" if symbol.endswith("-open") else colour,
        )  # fmt: skip
        if trace.error_y.array is not None:
            ends = [trace.error_y.arrayminus, trace.error_y.array]
            panel.errorbar(x, y, ends, ls="none", ecolor=colour, elinewidth=1, capsize=3)
    for line in layout.shapes:
        panel.axhline(line.y0, color=line.line.color, ls="--", lw=1.5)
    for note in layout.annotations:
        place = 0.01, 10**note.y if layout.yaxis.type == "log" else note.y
        panel.annotate(_text(note.text), place, xycoords=("axes fraction", "data"), va="bottom", fontsize=9)
    for name, axis, given in (("x", panel.xaxis, layout.xaxis), ("y", panel.yaxis, layout.yaxis)):
        panel.set(**{f"{name}label": _text(given.title.text), f"{name}scale": given.type or "linear"})
        if given.tickvals is not None:
            axis.set_ticks(given.tickvals, given.ticktext)
        elif given.type == "log":
            # A reach of less than a decade may hold no power of ten.
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
        if given.range is not None:
            ends = [10**end for end in given.range] if given.type == "log" else given.range
            panel.set(**{f"{name}lim": ends})


def _text(shown: str | None) -> str:
    """A label of plotly's as plain text."""
    return html.unescape(shown or "").strip("\u2068\u2069")


def png(figure: Figure) -> bytes:
    """A figure as a file: the same results give the same bytes, so it does not name the library's version."""
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()


# ---- Episodes -------------------------------------------------------------------------------------------

MAX_BYTES = 2_000_000
"""Size that a picture for a document keeps below."""

MAX_CLIP_SIDE, MAX_CLIP_FRAMES, MAX_CLIP_BYTES = 256, 150, 12_000_000
"""Bounds of a clip of episodes: pixels of a frame, frames of an episode, bytes of the file."""

# Okabe and Ito's green and vermilion; the tick and the cross tell the same without colour.
SUCCESS, FAILURE, RUNNING = (0, 158, 115), (213, 94, 0), (190, 190, 190)
"""Border of an episode that was solved, that was not, and that still runs."""

FRAME_MS, HOLD_MS = 100, 1500
"""How long a frame is shown, and the last one before the animation starts again."""

_PAPER, _INK = (255, 255, 255), (34, 34, 34)
_COLOURS = (128, 64, 32)
_BORDER, _GAP, _MARK, _FONT, _HEAD = 4, 8, 8, 9, 15
_TICK = [[(0.2, 0.55), (0.42, 0.77), (0.8, 0.25)]]
_CROSS = [[(0.24, 0.24), (0.76, 0.76)], [(0.24, 0.76), (0.76, 0.24)]]

Filmed = tuple[int, bool, NDArray[np.uint8] | None]
"""An episode: its seed, whether it was solved, and its frames, uint8 of shape (T, H, W, 3), where it has any."""


def save_clip(
    columns: Mapping[str, Sequence[Filmed]], folder: Path, name: str, max_bytes: int = MAX_CLIP_BYTES
) -> Clip:
    """Write a GIF of the episodes that have frames: the run is shown, and not a choice from it.

    Long episodes and large pictures are thinned out. An episode that is over keeps its last frame and takes a green
    border with a tick or a red one with a cross.

    Args:
        columns: episodes by label, the label drawn above; every column has the same starts in the same order.
        folder: where the results lie.
        name: of the file in it; an older one is replaced whole.
        max_bytes: size that the file keeps below, by fewer colours.

    Returns:
        What the results say of it.

    Raises:
        UserError: if the file cannot be written, or does not fit into `max_bytes`.
    """
    filmed = {label: [episode for episode in run if episode[2] is not None] for label, run in columns.items()}
    shown = {
        label: [(_thinned(frames), solved) for _, solved, frames in run if frames is not None]
        for label, run in filmed.items()
    }
    picture = _painter(shown)
    times = max(len(frames) for column in shown.values() for frames, _ in column)
    (folder / name).parent.mkdir(exist_ok=True)
    for colours in _COLOURS:
        data = _gif(picture, times, colours)
        if len(data) <= max_bytes:
            write_whole(folder / name, data)
            break
    else:
        raise UserError(
            f"{folder / name} would have {len(data)} bytes of at most {max_bytes}; give fewer or shorter episodes."
        )
    seeds = [seed for seed, *_ in next(iter(filmed.values()))]
    outcomes = [[solved for _, solved, _ in row] for row in zip(*filmed.values(), strict=True)]
    return Clip(name, list(columns), seeds, outcomes)


def _thinned(frames: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Every k-th frame and pixel, and the last frame."""
    every = -(-len(frames) // MAX_CLIP_FRAMES)
    pixel = -(-max(frames.shape[1:3]) // MAX_CLIP_SIDE)
    kept = list(frames[::every, ::pixel, ::pixel])
    return kept if (len(frames) - 1) % every == 0 else [*kept, frames[-1, ::pixel, ::pixel]]


def _painter(
    columns: Mapping[str, Sequence[tuple[Sequence[NDArray[np.uint8]], bool]]],
) -> Callable[[int], Image.Image]:
    """What draws the whole picture at a time."""
    cells = list(columns.values())
    height, width = (side + 2 * _BORDER for side in cells[0][0][0][0].shape[:2])
    # Matplotlib brings a font of many scripts, and the same one as in the other pictures.
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _FONT)
    across, down = width + _GAP, height + _GAP
    page = Image.new("RGB", (_GAP + len(cells) * across, _HEAD + len(cells[0]) * down), _PAPER)
    draw = ImageDraw.Draw(page)
    for x, label in enumerate(columns):
        centre = _GAP + x * across + width / 2
        draw.text((centre, _HEAD / 2), _fitted(label, font, across - 2), _INK, font, anchor="mm")

    def picture(time: int) -> Image.Image:
        filled = page.copy()
        for x, column in enumerate(cells):
            for y, (frames, solved) in enumerate(column):
                over = time >= len(frames) - 1
                cell = _cell(frames[min(time, len(frames) - 1)], solved if over else None)
                filled.paste(cell, (_GAP + x * across, _HEAD + y * down))
        return filled

    return picture


def _cell(frame: NDArray[np.uint8], solved: bool | None) -> Image.Image:
    """One frame with its border and mark."""
    colour = RUNNING if solved is None else SUCCESS if solved else FAILURE
    cell = ImageOps.expand(Image.fromarray(frame), _BORDER, colour)
    if solved is not None:
        left, top = cell.width - _BORDER - _MARK, _BORDER
        draw = ImageDraw.Draw(cell)
        draw.rectangle((left, top, left + _MARK, top + _MARK), fill=colour)
        for stroke in _TICK if solved else _CROSS:
            draw.line([(left + x * _MARK, top + y * _MARK) for x, y in stroke], fill=_PAPER, width=1)
    return cell


def _gif(picture: Callable[[int], Image.Image], times: int, colours: int) -> bytes:
    """All times in one palette, without dither: what does not move costs nothing."""
    # Pictures spread over time, the last one with all its marks among them.
    spread = [np.asarray(picture(round(time))) for time in np.linspace(0, times - 1, min(times, 6))]
    montage = Image.fromarray(np.vstack(spread))
    palette = montage.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    first, *rest = (
        picture(time).quantize(palette=palette, dither=Image.Dither.NONE) for time in range(times)
    )
    file = io.BytesIO()
    first.save(
        file, format="GIF", save_all=True, append_images=rest, loop=0, optimize=True, disposal=1,
        duration=[FRAME_MS] * len(rest) + [HOLD_MS],
    )  # fmt: skip
    return file.getvalue()


def _fitted(label: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The label, cut where it would run into the next column."""
    texts = [label, *(label[:end] + "…" for end in range(len(label) - 1, 0, -1))]
    return next((text for text in texts if font.getlength(text) <= width), "…")
