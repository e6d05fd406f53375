"""Three pictures of a run: trajectories, gap by number of steps, training loss."""

import functools
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from chordflow.console import doing
from chordflow.results.actions import GapRow, PolicyName, Reference, TrajectoryRow
from chordflow.results.files import write_whole
from chordflow.results.schema import Results
from chordflow.results.wording import clean, number, percent, steps

# Two hues of Okabe and Ito's palette, which colour-blind readers tell apart, one dark and one light in grey.
COLOURS: dict[PolicyName, str] = {"teacher": "#0072B2", "student": "#D55E00"}
"""Colour of teacher and student, the same in all pictures."""

_OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00")


def colours(results: Results) -> dict[PolicyName, str]:
    """Colour of each policy that has paths or gaps: the teacher's and the student's first, then by name."""
    named = {r.policy for r in results.trajectories} | {r.policy for r in results.gaps}
    named -= set(COLOURS)
    return COLOURS | {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(sorted(named))}


INK, QUIET, FAINT = "#222222", "#666666", "#dddddd"

DPI = 160
"""Dots per inch of the files."""

MOST_PATHS = 24
"""Trajectories of one policy that a panel can hold and be read."""

_DASHES = (0, (4, 3))
_DOTS = (0, (1, 2))

_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "text.parse_math": False,  # Names may hold dollar signs.
}


_Draw = Callable[[Results], Figure | None]


def _styled(draw: _Draw) -> _Draw:
    @functools.wraps(draw)
    def styled(results: Results) -> Figure | None:
        with rc_context(_STYLE):
            return draw(results)

    return styled


@doing("Drawing pictures")
def save_figures(results: Results, folder: str | Path) -> list[Path]:
    """Write ``trajectories.png``, ``gap.png`` and ``loss.png``.

    Args:
        results: What was measured.
        folder: Where; it must exist. Pictures that are there are replaced, each whole or not at all.

    Returns:
        The paths of those that there was something to draw for.

    Raises:
        UserError: If a file cannot be written.
    """
    drawers: dict[str, _Draw] = {
        "trajectories.png": trajectories,
        "gap.png": gap_by_steps,
        "loss.png": loss,
    }
    paths = []
    for name, draw in drawers.items():
        figure = draw(results)
        if figure is not None:
            paths.append(write_whole(Path(folder) / name, _png(figure)))
    return paths


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    # Without the library's version the same results give the same bytes.
    figure.savefig(file, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()


# ---- Trajectories ---------------------------------------------------------------------------------------


@_styled
def trajectories(results: Results) -> Figure | None:
    """The teacher's paths with their chords, and the student's, on the same axes."""
    colour = colours(results)
    by_policy = {
        policy: [row for row in results.trajectories if row.policy == policy][:MOST_PATHS]
        for policy in colour
    }
    shown = [policy for policy, rows in by_policy.items() if rows]
    if not shown:
        return None
    figure = Figure(figsize=_panels_size(by_policy, len(shown)), layout="constrained")
    axes = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for panel, policy in zip(axes, shown, strict=True):
        _draw_trajectories(panel, by_policy[policy], colour[policy])
        row = results.curvature_of(policy)
        measured = f": curvature {percent(row.curvature)}" if row else ""
        name = clean(policy)
        panel.set_title(f"{name[:1].upper()}{name[1:40]}{measured}", color=colour[policy], fontweight="bold")
        panel.set_xlabel(_axis_label(1, results.trajectory_axes))
        panel.set_aspect("equal", adjustable="box")
    axes[0].set_ylabel(_axis_label(2, results.trajectory_axes))
    figure.suptitle(_trajectories_title(results, shown), x=0.01, ha="left", fontsize=13)
    dot: dict[str, Any] = {"marker": "o", "ls": "none", "color": INK, "ms": 5.5}
    legend = [
        Line2D([], [], color=INK, lw=1.6, label="path"),
        Line2D([], [], color=QUIET, lw=0.8, ls=_DASHES, label="chord"),
        Line2D([], [], **dot, mfc="white", label="noise"),
        Line2D([], [], **dot, label="action"),
    ]
    figure.legend(handles=legend, loc="outside lower left", ncols=len(legend), handlelength=1.8)
    return figure


def _panels_size(by_policy: Mapping[PolicyName, Sequence[TrajectoryRow]], panels: int) -> tuple[float, float]:
    """Width and height in inches that leave no white bands around panels of equal scales."""
    rows = [row for rows in by_policy.values() for row in rows]
    x, y = np.concatenate([row.x for row in rows]), np.concatenate([row.y for row in rows])
    ratio = np.ptp(y) / np.ptp(x) if np.ptp(x) > 0 else 1.0
    return 4.6 * panels + 0.6, float(np.clip(4.4 * ratio, 2.0, 6.0)) + 1.6


def _draw_trajectories(panel: Axes, rows: Sequence[TrajectoryRow], colour: str) -> None:
    for row in rows:
        panel.plot([row.x[0], row.x[-1]], [row.y[0], row.y[-1]], color=QUIET, lw=0.8, ls=_DASHES, zorder=2)
        panel.plot(row.x, row.y, color=colour, lw=1.6, alpha=0.85, zorder=3)
    for end, face in ((0, "white"), (-1, INK)):
        x, y = [row.x[end] for row in rows], [row.y[end] for row in rows]
        panel.scatter(x, y, s=25, facecolor=face, edgecolor=INK, lw=1, zorder=4)
    panel.grid(color=FAINT, lw=0.6)
    panel.set_axisbelow(True)


def _axis_label(component: int, shares: Sequence[float]) -> str:
    share = f", {percent(shares[component - 1], 0)} of variance" if component <= len(shares) else ""
    return f"Component {component} of the chunk{share}"


def _trajectories_title(results: Results, shown: Sequence[PolicyName]) -> str:
    rows = [results.curvature_of(policy) for policy in ("teacher", "student")]
    teacher, student = rows
    if len(shown) < 2 or teacher is None or student is None:
        return "From noise to action"
    if student.curvature < teacher.curvature:
        return "From the same noises the student takes straighter paths than the teacher"
    return "From the same noises the student's paths are no straighter than the teacher's"


# ---- Gap ------------------------------------------------------------------------------------------------


@_styled
def gap_by_steps(results: Results) -> Figure | None:
    """RMS gap of teacher and student to both references by network evaluations, with the floor."""
    rows = [row for row in results.gaps if row.rms > 0]
    if not rows:
        return None
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    panel = figure.subplots()
    colour = colours(results)
    for policy in colour:
        _draw_gap_lines(panel, rows, policy, colour[policy])
    _draw_other_solvers(panel, rows, colour)
    best = (
        [row for row in results.free.ways if row.reference == "converged"] if results.free is not None else []
    )
    panel.plot(
        [row.nfe for row in best], [100 * row.rms for row in best], color=INK, ls=_DASHES, marker="s", ms=5, zorder=3
    )  # fmt: skip
    if results.floor is not None and results.floor.rms > 0:
        panel.axhline(100 * results.floor.rms, color=INK, lw=1.4, ls=_DOTS, zorder=1)
    evaluations = sorted({row.nfe for row in rows} | {results.teacher_num_steps})
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    _plain_ticks(panel, evaluations)
    if len(evaluations) > 1:
        panel.set_xlim(evaluations[0] / 1.12, evaluations[-1] * 1.12)
    panel.set_xlabel("Network evaluations for a chunk (Euler steps)")
    panel.set_ylabel("Action gap, % of the teacher's spread")
    panel.grid(color=FAINT, lw=0.6, which="major")
    panel.set_title(_gap_title(results), fontsize=13)
    figure.legend(
        handles=_gap_legend(results, rows),
        loc="outside lower left", ncols=2, fontsize=9, handlelength=2.6,
    )  # fmt: skip
    return figure


def _draw_gap_lines(panel: Axes, rows: Sequence[GapRow], policy: PolicyName, colour: str) -> None:
    styles: dict[Reference, Any] = {"deployed": "-", "converged": _DASHES}
    for reference, style in styles.items():
        own = [r for r in rows if (r.policy, r.reference, r.solver) == (policy, reference, "euler")]
        own.sort(key=lambda row: row.nfe)
        x, y = [row.nfe for row in own], [100 * row.rms for row in own]
        panel.plot(x, y, color=colour, ls=style, lw=1.8, marker="o", ms=5, zorder=3)
        if reference == "deployed":
            medians = [(row.nfe, 100 * row.median) for row in own if row.median > 0]
            for nfe, median in medians:
                panel.plot(nfe, median, color=colour, marker="D", ms=4.5, mfc="white", alpha=0.7, zorder=2)


def _draw_other_solvers(panel: Axes, rows: Iterable[GapRow], colours: Mapping[PolicyName, str]) -> None:
    for row in rows:
        if row.solver == "euler" or row.reference != "deployed":
            continue
        colour = colours[row.policy]
        panel.plot(row.nfe, 100 * row.rms, marker="^", ms=6, mfc="white", color=colour, ls="none", zorder=4)
        panel.annotate(
            row.solver,
            (row.nfe, 100 * row.rms),
            xytext=(7, 3),
            textcoords="offset points",
            fontsize=8.5,
            color=colour,
        )


def _gap_legend(results: Results, rows: Sequence[GapRow]) -> list[Line2D]:
    policies, references = {row.policy for row in rows}, {row.reference for row in rows}
    names: dict[PolicyName, str] = {"teacher": "teacher, untrained", "student": "student"}
    entries = [
        Line2D([], [], color=colour, lw=1.8, marker="o", ms=5, label=names.get(policy) or clean(policy)[:40])
        for policy, colour in colours(results).items()
        if policy in policies
    ]
    if "deployed" in references:
        deployed = f"RMS to the teacher's {steps(results.teacher_num_steps)}"
        entries.append(Line2D([], [], color=QUIET, lw=1.8, label=deployed))
    if "converged" in references:
        entries.append(Line2D([], [], color=QUIET, lw=1.8, ls=_DASHES, label="RMS to its converged ODE"))
    if any(row.reference == "deployed" and row.median > 0 for row in rows):
        median = "median, to its steps"
        entries.append(Line2D([], [], color=QUIET, ls="none", marker="D", ms=4.5, mfc="white", label=median))
    if results.free is not None:
        label = "best way, to its ODE"
        entries.append(Line2D([], [], color=INK, lw=1.5, ls=_DASHES, marker="s", ms=5, label=label))
    if results.floor is not None and results.floor.rms > 0:
        label = f"floor: {number(results.teacher_num_steps)} steps to the ODE, {percent(results.floor.rms)}"
        entries.append(Line2D([], [], color=INK, lw=1.4, ls=_DOTS, label=label))
    return entries


def _gap_title(results: Results) -> str:
    n = results.student_num_steps
    row = results.gap("student", n, "deployed") if n is not None else None
    untrained = results.gap("teacher", row.num_steps, "deployed") if row else None
    if row is None or untrained is None:
        alone = all(row.policy == "teacher" for row in results.gaps)
        return f"Action gap {'of the untrained teacher at few steps' if alone else 'by network evaluations'}"
    at = f"At {steps(row.num_steps)}"
    return f"{at} the gap to the teacher is {percent(row.rms)}, untrained {percent(untrained.rms)}"


# ---- Loss -----------------------------------------------------------------------------------------------


@_styled
def loss(results: Results) -> Figure | None:
    """Training loss by optimiser step."""
    curve = results.loss
    if curve is None or not curve.steps:
        return None
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    panel = figure.subplots()
    marker = "o" if len(curve.steps) < 3 else None
    panel.plot(curve.steps, curve.losses, color=COLOURS["student"], lw=1.6, marker=marker)
    if min(curve.losses) > 0 and max(curve.losses) > 4 * min(curve.losses):
        panel.set_yscale("log")
        _plain_ticks(panel)
    panel.set_xlim(0, max(curve.steps) * 1.02)
    panel.set_xlabel("Optimiser step")
    panel.set_ylabel("Training loss, mean since the point before")
    panel.grid(color=FAINT, lw=0.6)
    first, last = curve.losses[0], curve.losses[-1]
    verb = "fell" if last < first else "did not fall:"
    panel.set_title(f"The training loss {verb} from {first:.2g} to {last:.2g}", fontsize=13)
    return figure


def _plain_ticks(panel: Axes, evaluations: Sequence[int] | None = None) -> None:
    """Figures such as 10 and 20 in place of powers."""
    if evaluations is not None:
        panel.xaxis.set_major_locator(FixedLocator(list(evaluations)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    low, high = panel.get_ylim()
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for factors in ([1, 2, 5], range(1, 10)):
        ticks = [d * f for d in decades.tolist() for f in factors if low <= d * f <= high]
        if len(ticks) >= 3:
            panel.yaxis.set_major_locator(FixedLocator(ticks))
            break
    else:
        panel.yaxis.set_major_locator(MaxNLocator(5))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_ylim(low, high)
