"""The few figures to look at first, the same on the page and in the model card."""

from dataclasses import dataclass

from chordflow.reporting.core_tables import rate
from chordflow.reporting.section import at
from chordflow.results.schema import STUDENT, TEACHER, GapRow, HeldOut, Results
from chordflow.results.verdict import beside_ceiling
from chordflow.results.wording import UNRELIABLE, clean, percent, plural, points, span, steps


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: What it is.
        value: The figure with its interval.
        note: What to hold it against.
    """

    name: str
    value: str
    note: str = ""


def glance(results: Results) -> list[Figure]:
    """Success, gap, curvature and time, as far as they were measured.

    Args:
        results: What was measured.
    """
    found = [_success(results), *_gaps(results), _curvature(results), _modes(results), _time(results)]
    return [figure for figure in found if figure is not None]


def few_episodes(held: HeldOut) -> str:
    """That there are no intervals, and why, for the end of a sentence; empty where there are."""
    if min(len(held.episodes), held.observations) > 1:
        return ""
    more = "--dataset.eval_split" if len(held.episodes) < 2 else "--measure.num_observations"
    return f"; no intervals, which need observations of two episodes or more (raise {more})"


def measured(results: Results) -> list[str]:
    """What was measured, on how much, and what the intervals are; a sentence each."""
    said = []
    held = results.held_out
    if held is not None:
        bootstrapped = any(row.interval or row.ratio_to_untrained for row in results.gaps)
        bootstrapped = bootstrapped or any(row.interval for row in results.curvature)
        ends = "; 95 % bootstrap intervals over episodes" if bootstrapped else ""
        ends = few_episodes(held) or ends
        what = " and ".join(["action gaps"] * bool(results.gaps) + ["curvature"] * bool(results.curvature))
        said.append(
            f"{(what or 'held out').capitalize()}: {plural(held.observations, 'observation')} of "
            f"{plural(len(held.episodes), 'held-out episode')}, {plural(held.noises, 'noise')} each{ends}."
        )
    counts = sorted({row.episodes for row in results.success if row.group == "all"})
    if counts:
        number = plural(counts[0], "episode") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} episodes"
        where = f" of {clean(results.rollouts.env)}" if results.rollouts is not None else ""
        paired = any(row.versus_teacher is not None for row in results.success)
        method = "with confidence sequences" if results.sequential else "with Newcombe's"
        said.append(
            f"Success: {number}{where} for each way to act; Wilson's 95 % intervals"
            f"{f', paired differences {method}' * paired}."
        )
    if results.timed is not None:
        timed = results.timed
        said.append(
            f"Time: medians of {plural(timed.repeats, 'repetition')} on {clean(results.device)}, "
            f"{plural(timed.batch_size, 'observation')} at a time."
        )
    return said


def _success(results: Results) -> Figure | None:
    n, teacher = results.student_num_steps, results.success_of(TEACHER, results.teacher_num_steps)
    row = results.success_of(STUDENT, n) if n is not None else None
    if row is None:
        if teacher is None:
            return None
        return Figure(f"Success, {at(TEACHER, teacher.num_steps)}", f"{rate(teacher)} %")
    notes = []
    if teacher is not None:
        notes.append(f"{at(TEACHER, teacher.num_steps)}: {rate(teacher)} %")
    if row.versus_teacher is not None:
        paired = row.versus_teacher.difference
        notes.append(f"paired {points(paired.value)}{span(paired.interval, points)} points")
    return Figure(f"Success, {at(STUDENT, row.num_steps)}", f"{rate(row)} %", "; ".join(notes))


def _gaps(results: Results) -> list[Figure | None]:
    n = results.student_num_steps
    if n is not None:
        row = results.gap(STUDENT, n, "deployed") or results.gap(STUDENT, n, "converged")
        if row is None:
            return []
        untrained = results.gap(TEACHER, n, row.reference)
        note = f"untrained {_gap(untrained)}" if untrained is not None else ""
        note = "; ".join(part for part in (_of_noise(results, row), note) if part)
        return [Figure(f"Action gap, {at(STUDENT, n)}", _gap(row), _with_floor(results, note))]
    rows = [row for k in (1, 2) if (row := results.gap(TEACHER, k, "deployed"))]
    return [
        Figure(
            f"Action gap, untrained at {steps(row.num_steps)}",
            _gap(row),
            _with_floor(results, _of_noise(results, row)),
        )
        for row in rows
    ]


def _of_noise(results: Results, row: GapRow) -> str:
    value = results.of_noise(row.rms)
    return f"{percent(value)} of what noise decides" if value is not None else ""


def _gap(row: GapRow) -> str:
    return percent(row.rms) + span(row.interval, percent)


def _with_floor(results: Results, note: str) -> str:
    floor = f"floor {percent(results.floor.rms)}" if results.floor is not None else ""
    return "; ".join(part for part in (note, floor) if part)


def _curvature(results: Results) -> Figure | None:
    student, teacher = results.curvature_of(STUDENT), results.curvature_of(TEACHER)
    row = student or teacher
    if row is None:
        return None
    note = f"teacher {percent(teacher.curvature)}" if student is not None and teacher is not None else ""
    return Figure(f"Curvature, {row.policy}", percent(row.curvature) + span(row.interval, percent), note)


def _modes(results: Results) -> Figure | None:
    if not results.spreads:
        return None
    several = sum(row.modes > 1 for row in results.spreads)
    return Figure(
        "Observations with two or more modes",
        percent(several / len(results.spreads), 0),
        f"{several} of {len(results.spreads)}",
    )


def _time(results: Results) -> Figure | None:
    if results.timings_unreliable:
        return Figure("Time of a chunk", "unknown", UNRELIABLE)
    timed = results.timed
    if timed is None:
        return None
    encoding = f"encoding is {percent(timed.encode_share(1), 0)} of a one-step chunk"
    if results.student is None:
        return Figure("Chunks at one step, times as fast", f"{timed.ceiling:.2f}", f"the ceiling: {encoding}")
    name = f"Chunks at {steps(timed.student_num_steps)}, times as fast"
    return Figure(name, f"{timed.speedup:.2f}", f"{beside_ceiling(timed, 2)}: {encoding}")
