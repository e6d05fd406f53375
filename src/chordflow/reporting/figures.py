"""Three pictures of a run, for documents: the plots of the page, drawn by matplotlib."""

import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from chordflow.console import doing
from chordflow.reporting import flow_plots
from chordflow.reporting.plots import Plot
from chordflow.results.files import write_whole
from chordflow.results.schema import Results

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
    return [write_whole(Path(folder) / name, _png(drawn(plots))) for name, plots in pictures.items() if plots]


def drawn(plots: Sequence[Plot]) -> Figure:
    """Plots side by side, with one legend.

    Args:
        plots: at least one, of lines and markers.
    """
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
        y = 10**note.y if layout.yaxis.type == "log" else note.y
        panel.annotate(
            _text(note.text), (0.01, y), xycoords=("axes fraction", "data"), va="bottom", fontsize=9
        )
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


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    # Without the library's version the same results give the same bytes.
    figure.savefig(file, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()
