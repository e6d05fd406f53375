"""A benchmark of training as tables: for the terminal and, with the same content, as markdown."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from chordflow.reporting.section import Cell, Section, absent, figure
from chordflow.reporting.table import drawn, escape, written
from chordflow.results.bench import NAIVE, BenchLoop, BenchRun, Speed, TrainingBench, Work
from chordflow.results.bench_summary import over_seeds, speed_ratio, time_to_naive
from chordflow.results.wording import amount, clean, number, percentage, seconds, size

WORKS = ("encode", "velocity", "train")


def render(bench: TrainingBench) -> RenderableType:
    """The tables and what is said below them, for a terminal."""
    parts: list[RenderableType] = []
    for section in sections(bench):
        parts += [drawn(section), Text()]
    return Group(*parts, *(Text(f"{name}: {value}") for name, value in facts(bench)))


def markdown(bench: TrainingBench) -> str:
    """The same content for a document; ends with a line break."""
    blocks = [block for section in sections(bench) for block in written(section)]
    blocks.append("\n".join(f"- {name}: {escape(value)}" for name, value in facts(bench)))
    return "\n\n".join(blocks) + "\n"


def sections(bench: TrainingBench) -> list[Section]:
    """Every table that there is something for."""
    found = [_by_time(bench) if bench.runs else None, _speeds(bench) if bench.speeds else None, _loops(bench)]
    if bench.roofline is not None:
        found.append(_roofline(bench))
    return [section for section in found if section is not None]


def facts(bench: TrainingBench) -> list[tuple[str, str]]:
    """What is said below the tables, name and value."""
    lines = [("teacher", f"{clean(bench.teacher)}, {bench.teacher_num_steps} steps")]
    if bench.floor is not None and bench.untrained is not None:
        lines.append(
            ("gap of the teacher as deployed (the floor)", _gap(bench.floor.rms, bench.floor.median))
        )
        lines.append(
            ("gap of the teacher at one step, untrained", _gap(bench.untrained.rms, bench.untrained.median))
        )
    clock = "wall-clock time" if bench.clock == "wall" else "processor time of the one thread"
    lines.append(("device", f"{clean(bench.device)}; {clock}"))
    if bench.roofline is not None:
        peak = amount(bench.roofline.peak_flop_per_s / 1e9)
        lines.append(("peak", f"{peak} GFLOP/s in a large {bench.roofline.dtype} matrix product"))
    used = [run.cpu_s / max(run.looks[-1].seconds, 1e-9) for run in bench.runs if run.looks]
    if used and bench.clock == "wall":
        lines.append(("processor seconds a second", f"{min(used):.2f} to {max(used):.2f}"))
    return lines


def _by_time(bench: TrainingBench) -> Section:
    last = max(bench.budgets)
    section = Section(
        "bench",
        "Loops at equal time",
        ["loop", f"samples/s\nin {last:g} s", "times\nnaive", *(f"gap at\n{mark:g} s, %" for mark in bench.budgets),
         f"to naive's gap\nat {last:g} s"],
        left=1,
        below=f"Gap: one step of the student to the teacher's converged ODE, RMS / median over {bench.pairs} held-out "
        f"pairs. Medians over {number(len(bench.seeds))} seed{'s' * (len(bench.seeds) > 1)}.",
    )  # fmt: skip
    for loop in bench.loops:
        rate = over_seeds(bench, loop.name, last, lambda look: look.samples / look.seconds)
        ratio, reached = speed_ratio(bench, loop.name, last), time_to_naive(bench, loop.name)
        cells = [
            figure(f"{rate:,.0f}", rate) if rate is not None else absent(),
            figure(amount(ratio), ratio) if ratio is not None else absent(),
        ]
        for mark in bench.budgets:
            rms = over_seeds(bench, loop.name, mark, lambda look: look.gap.rms)
            middle = over_seeds(bench, loop.name, mark, lambda look: look.gap.median)
            if rms is None or middle is None:
                cells.append(absent())
            else:
                cells.append(figure(f"{percentage(rms)} / {percentage(middle)}", rms))
        if reached is None:
            cells.append(absent())
        else:
            cells.append(figure("≤ " * reached.at_most + f"{reached.seconds:.1f} s", reached.seconds))
        section.add(Cell(clean(loop.name)), *cells)
    return section


def _speeds(bench: TrainingBench) -> Section:
    section = Section(
        "speed", "Speed alone", ["loop", "samples", "seconds", "samples/s", "times\nnaive"], left=1
    )
    naive = next((speed.samples_per_s for speed in bench.speeds if speed.loop == NAIVE), None)
    for speed in bench.speeds:
        ratio = speed.samples_per_s / naive if naive else None
        section.add(
            Cell(clean(speed.loop)),
            figure(str(speed.samples), speed.samples),
            figure(f"{speed.seconds:.1f}", speed.seconds),
            figure(amount(speed.samples_per_s), speed.samples_per_s),
            figure(amount(ratio), ratio) if ratio is not None else absent(),
        )
    return section


def _loops(bench: TrainingBench) -> Section:
    section = Section(
        "loops",
        "What a loop keeps and costs",
        ["loop", "M", "R", "obs. x\nblock", "where they\nspread", "batch x\nparts", "operations\na sample",
         "naive's /\nthis", "buffer", "memory"],
        left=1,
        wide={4},
        below="M noises share an encoded observation, some of them where endpoints spread; a coupling is "
        "used R times. Operations are counted, not timed: those of matrix products and convolutions. Memory: "
        "the most in use.",
    )  # fmt: skip
    for loop in bench.loops:
        kept: list[BenchRun | Speed] = [run for run in bench.runs if run.loop == loop.name]
        kept += [speed for speed in bench.speeds if speed.loop == loop.name]
        peaks = [item.peak_bytes for item in kept if item.peak_bytes is not None]
        buffers = [item.buffer_bytes for item in kept]
        section.add(
            Cell(clean(loop.name)),
            str(loop.noises_per_observation),
            "all" if loop.uses_per_coupling is None else str(loop.uses_per_coupling),
            absent() if loop.num_observations is None else f"{loop.num_observations} x {loop.block_size}",
            absent() if loop.num_observations is None else f"{loop.adaptive_share:g}",
            f"{loop.batch_size} x {loop.gradient_accumulation_steps}",
            *_operations(bench, loop),
            size(max(buffers)) if buffers else absent(),
            size(max(peaks)) if peaks else absent(),
        )
    return section


def _operations(bench: TrainingBench, loop: BenchLoop) -> list[Cell]:
    if bench.roofline is None:
        return [absent(), absent()]
    own, naive = (bench.roofline.flop_per_sample(each) for each in (loop, bench.loops[0]))
    return [figure(_operations_text(own), own), figure(amount(naive / own), naive / own)]


def _roofline(bench: TrainingBench) -> Section:
    roofline = bench.roofline
    assert roofline is not None
    section = Section(
        "roofline",
        "How near to the device's peak",
        ["work", "on", "operations\neach", "time\neach", "GFLOP/s", "of the\npeak, %"],
        left=1,
        below=f"An encoded observation takes {size(roofline.context_bytes)}, a coupling "
        f"{size(roofline.coupling_bytes)}; a coupling of a buffer costs {roofline.solver_nfe} velocities, "
        f"one without reuse {roofline.naive_nfe}.",
    )
    names = {
        "encode": "encode an observation",
        "velocity": "one velocity",
        "train": "a sample of a student's step",
    }
    for name in WORKS:
        work: Work = getattr(roofline, name)
        share = work.flop_per_s / roofline.peak_flop_per_s
        section.add(
            Cell(names[name]),
            str(work.batch_size),
            figure(_operations_text(work.flop_each), work.flop_each),
            figure(seconds(work.seconds / work.batch_size), work.seconds),
            figure(amount(work.flop_per_s / 1e9), work.flop_per_s),
            figure(percentage(share), share),
        )
    return section


def _operations_text(flop: float) -> str:
    for unit, one in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if flop >= one:
            return f"{amount(flop / one)} {unit}"
    return f"{flop:.0f} FLOP"


def _gap(rms: float, middle: float) -> str:
    return f"{percentage(rms)} / {percentage(middle)} %"
