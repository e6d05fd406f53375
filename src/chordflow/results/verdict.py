"""The finding of a run in one sentence, by rules that are written down."""

from chordflow.results.actions import STUDENT, TEACHER, GapRow
from chordflow.results.episodes import SuccessRow
from chordflow.results.findings import FEW_STEPS, findings, more_exact_student
from chordflow.results.free import (
    against_floor,
    clearly_lower,
    free_ways,
    grid_text,
    noise_text,
    on_the_same_pairs,
    success_beside,
    within_floor,
)
from chordflow.results.latency import ABOVE, Latency
from chordflow.results.schema import PolicyInfo, Results
from chordflow.results.wording import UNRELIABLE, clean, percent, points, step_counts, steps

TAIL = 1.5
"""From this ratio of RMS to median on, few large misses decide the RMS."""

NOTICEABLE_SPEEDUP = 1.05
"""Below this chunks come no sooner, as far as a median latency can tell."""

MOST_IMPORTANT = 3
"""Findings that make the verdict on a policy that was diagnosed."""

LONGEST = 64
"""Words that the sentence may have before details are left out."""


def verdict(results: Results) -> str:
    """Say whether reflow was worth it, the bad news first; before training, whether it would be.

    Of a diagnosis these are its three most important findings (``results.findings``), a sentence each.
    Elsewhere it is one sentence. Its clauses, in their order; one that was not measured is left out and nothing
    is claimed for it:

    1. *Free alternative.* The untrained teacher with at most two network evaluations (or the student's number, if
       that is higher), by even Euler steps or by the best solver and grid. If its RMS gap to the converged ODE is at
       most the floor, and its paired success is not below the deployed teacher's (the interval reaches 0 or success
       was not measured), no training was needed. Else, if its gap is at most the student's, or its success rate at
       least the lower end of the student's interval, it is as near or not told apart.
    2. *Gap* of the student at its own steps, with the ratio to the untrained teacher's at the same steps and
       its 95 % interval: a gain only if the whole interval is below 1, worse if it is above 1, and
       otherwise no better. The reference is the teacher as deployed, or the
       converged ODE where there is no ratio for the former. Beside it stands the gap relative to what noise decides,
       which is the harder figure; where noise decides next to nothing, the gap in the robot's units. A student of
       converged couplings stays as far from the
       deployed teacher as that is from its own ODE, so it is said where the student is nearer to the ODE than the
       deployed teacher is (the interval of their ratio lies below 1).
    3. *Few pairs*, if the RMS is at least 1.5 times the median; flips are named if there are any.
    4. *Curvature*: falls or rises where the intervals of the two do not overlap; nothing of it for a student that is
       for few step counts, since it is measured along many.
    5. *Success* over all episodes, paired with the deployed teacher: not distinguishable if the interval of
       the difference holds 0. The untrained teacher's at the student's steps is named with it; there is no
       clear gain over it if its rate is at least the lower end of the student's interval.
    6. *Time* of a chunk against the teacher's, with the ceiling that the encoder sets; no figure of unreliable times.
    7. *One step only*, if that is what the student was trained for, by its own record; and whichever policy is run at
       a number of steps that it was not trained for.

    Without a student these are the free alternative, the gaps of the untrained teacher at few steps, gaps and success
    of all other policies at their own steps, and the ceiling.

    Beyond 64 words first curvature, then the time, then the few pairs, at last the distance to the ODE beside the
    teacher's are left out. The rules see the measures as they are; only what is printed is rounded.

    Args:
        results: What was measured.

    Returns:
        One sentence, or three of a diagnosis.
    """
    if results.kind == "diagnose":
        return " ".join(found.text for found in findings(results)[:MOST_IMPORTANT]) or "Nothing was measured."
    if results.student is None:
        return _without_student(results)
    n = results.student_num_steps
    if n is None:
        return "The student's actions were not measured, so nothing can be said of them."
    free, gap, pairs = _free_alternative(results, n), *_gap(results, n)
    curvature, success, time = _curvature(results), _success(results, n), _time(results)
    kept: tuple[str, ...] = (gap + pairs, curvature, success, time)
    only = "; ".join(clause for clause in (_steps_of_student(results, n), _at_other_steps(results)) if clause)
    plain, _ = _gap(results, n, beside_floor=False)
    for shorter in (
        (gap + pairs, "", success, time),
        (gap + pairs, "", success, ""),
        (gap, "", success, ""),
        (plain, "", success, ""),
    ):
        if len(_sentence(free, *kept, last=only).replace(" %", "").split()) <= LONGEST:
            break
        kept = shorter
    return _sentence(free, *kept, last=only)


def _student(results: Results) -> PolicyInfo | None:
    return next((info for info in results.policies if info.name == STUDENT), None)


def _steps_of_student(results: Results, n: int) -> str:
    """That it was trained for one step alone, or not for the one that it is run at."""
    student = _student(results)
    counts = student.step_counts if student is not None else None
    if counts is None or (n in counts and counts != [1]):
        return ""
    return f"it was trained for {step_counts(counts)} only"


def _at_other_steps(results: Results) -> str:
    """Which policies but the student are run at steps that they were not trained for."""
    return ", ".join(
        f"{_name(info)} was trained for {step_counts(info.step_counts)} only"
        for info in results.policies
        if info.name != STUDENT and info.step_counts is not None and info.num_steps not in info.step_counts
    )


def _name(info: PolicyInfo) -> str:
    return "the teacher" if info.name == TEACHER else clean(info.name)


def _sentence(free: str, *clauses: str, last: str = "") -> str:
    *others, final = [clause for clause in clauses if clause] or [""]
    listed = f"{', '.join(others)}, and {final}" if others else final
    text = "; ".join(part for part in (free, listed, last) if part)
    return text and text[0].upper() + text[1:] + "."


def _free_alternative(results: Results, n: int) -> str:
    rows = free_ways(results, max(FEW_STEPS, n))
    for row in rows:
        if not within_floor(results, row) or clearly_lower(results, row):
            continue
        figures = against_floor(results, row)
        return f"no training was needed: {_untrained(row)} already {_verb(row, 'lie')} within the floor ({figures})"
    own = results.success_of("student", n)
    found = []
    for row in rows:
        student = on_the_same_pairs(results, row, STUDENT, n)
        near = student is not None and row.rms <= student.rms
        often = _not_told_apart(success_beside(results, row), own)
        # At the student's own Euler steps the ratio says more than this rule could.
        if (near or often) and (row.num_steps, row.is_stock) != (n, True):
            found.append((near, often, row))
    if not found:
        return ""
    near, often, row = max(found, key=lambda f: (f[0] and f[1], f[0]))
    if near and often:
        return f"{_untrained(row)} already {_verb(row, 'are')} as good as the student by gap and success"
    if near:
        return f"{_untrained(row)} already {_verb(row, 'lie')} as near to the converged ODE as the student"
    return f"{_untrained(row)} cannot be told from the student by success"


def _untrained(row: GapRow) -> str:
    """A way without training, and whether it takes a sampler of one's own."""
    if row.is_stock:
        return steps(row.num_steps, "untrained")
    return f"{steps(row.num_steps, f'untrained {row.solver}')}{grid_text(row)} (not in stock LeRobot)"


def _verb(row: GapRow, plural: str) -> str:
    return {"lie": "lies", "are": "is"}[plural] if row.num_steps == 1 else plural


def _not_told_apart(untrained: SuccessRow | None, student: SuccessRow | None) -> bool:
    return untrained is not None and student is not None and untrained.rate >= student.interval.low


def _gap(results: Results, n: int, *, beside_floor: bool = True) -> tuple[str, str]:
    """The gap, and the few pairs that decide it."""
    rows = [r for r in (results.gap("student", n, "deployed"), results.gap("student", n, "converged")) if r]
    if not rows:
        return "", ""
    row = next((r for r in rows if r.ratio_to_untrained is not None), rows[0])
    target = "" if row.reference == "deployed" else " to the converged ODE"
    exact = _more_exact(results, row) if beside_floor else ""
    gap, pairs = f"{percent(row.rms)} RMS{target}{noise_text(results, row)}{exact}", _few_pairs(row)
    student, ratio = f"at {steps(n)} the student", row.ratio_to_untrained
    if ratio is None:
        return f"{student}'s action gap is {gap}, not compared with the untrained teacher's", pairs
    if ratio.interval is None:
        share = f"{ratio.value:.2f} of the untrained teacher's on too few episodes to tell"
        return f"{student}'s action gap is {gap}, {share}", pairs
    low, high = ratio.interval.low, ratio.interval.high
    span = f"{low:.2f} to {high:.2f}"
    if high < 1:
        share = f"{ratio.value:.2f} ({span}) of the untrained teacher's"
        return f"{student}'s action gap is {gap}, {share}", pairs
    finding = "worse" if low > 1 else "no better"
    figures = f"action gap {gap}, ratio {ratio.value:.2f}, {span}"
    return f"{student} is {finding} than the untrained teacher ({figures})", pairs


def _more_exact(results: Results, row: GapRow) -> str:
    """That the student's distance to the deployed teacher is that one's error rather than its own."""
    if more_exact_student(results) is None:
        return ""
    target = "to the ODE " if row.reference == "deployed" else ""
    return f" (nearer {target}than the teacher)"


def _few_pairs(row: GapRow) -> str:
    if row.rms == 0 or row.rms < TAIL * row.median:
        return ""
    flips = f", flips {percent(row.flip_rate)}" if row.flip_rate else ""
    return f", mostly from few pairs (median {percent(row.median)}{flips})"


def _curvature(results: Results) -> str:
    teacher, student = results.curvature_of("teacher"), results.curvature_of("student")
    info = _student(results)
    if teacher is None or student is None or (info is not None and info.step_counts is not None):
        return ""
    before, after = percent(teacher.curvature), percent(student.curvature)
    if teacher.interval is not None and student.interval is not None:
        if student.interval.high < teacher.interval.low:
            return f"curvature falls from {before} to {after}"
        if student.interval.low > teacher.interval.high:
            return f"curvature rises from {before} to {after}"
    return f"curvature is {after} as before" if before == after else f"curvature is {after} beside {before}"


def _success(results: Results, n: int) -> str:
    row = results.success_of("student", n)
    if row is None:
        return ""
    beside = _beside_teacher(row)
    if row.versus_teacher is None or not beside:
        return _rates(results, row)
    teacher = percent(row.rate - row.versus_teacher.difference.value, 1)
    text = f"success is {percent(row.rate, 1)} against the teacher's {teacher}{beside}"
    untrained = results.success_of("teacher", n)
    if untrained is None or n == results.teacher_num_steps:
        return text
    gain = ", no clear gain" if _not_told_apart(untrained, row) else ""
    return f"{text} and {percent(untrained.rate, 1)} untrained{gain}"


def _beside_teacher(row: SuccessRow) -> str:
    """Whether success is told from the deployed teacher's, in brackets; empty where episodes were not paired."""
    if row.versus_teacher is None or row.versus_teacher.difference.interval is None:
        return ""
    difference, interval = row.versus_teacher.difference.value, row.versus_teacher.difference.interval
    if interval.low <= 0 <= interval.high:
        finding = "not distinguishable"
    else:
        finding = "lower" if difference < 0 else "higher"
    span = f"{points(interval.low)} to {points(interval.high)} points"
    if row.noninferiority is not None:
        span += f"; {row.noninferiority.decision} at a margin of {100 * row.noninferiority.margin:g}"
    return f" ({finding}: {span})"


def _rates(results: Results, row: SuccessRow) -> str:
    """Success where episodes were not paired: rates alone."""
    teacher = results.success_of("teacher", results.teacher_num_steps)
    beside = f" and the teacher's {percent(teacher.rate, 1)}" if teacher is not None else ""
    return f"success is {percent(row.rate, 1)}{beside} in {row.episodes} episodes each, not paired"


def beside_ceiling(latency: Latency, decimals: int = 1) -> str:
    """How a measured speed-up stands to the ceiling, such as ``the ceiling`` or ``ceiling 5.5``.

    The one is of whole chunks and the other of their parts, so the speed-up may lie a little above.
    """
    speedup, ceiling = (f"{value:.{decimals}f}" for value in (latency.speedup, latency.ceiling))
    if speedup == ceiling:
        return "the ceiling"
    near = abs(latency.speedup - latency.ceiling) <= ABOVE * latency.ceiling
    return f"near the ceiling of {ceiling}" if near else f"ceiling {ceiling}"


def _time(results: Results) -> str:
    latency = results.timed
    if latency is None:
        return UNRELIABLE if results.timings_unreliable else ""
    share = f"encoding is {percent(latency.encode_share(latency.student_num_steps), 0)} of each"
    if latency.speedup < NOTICEABLE_SPEEDUP:
        return f"chunks come no faster ({share})"
    return f"chunks come {latency.speedup:.1f} times as fast ({beside_ceiling(latency)}: {share})"


def _without_student(results: Results) -> str:
    few = [row for k in (1, FEW_STEPS) if (row := results.gap("teacher", k, "deployed"))]
    gap = ""
    if few:
        gaps = " and ".join(f"{percent(row.rms)} RMS at {steps(row.num_steps)}" for row in few)
        gap = f"the untrained teacher's action gap to its {steps(results.teacher_num_steps)} is {gaps}"
    time = UNRELIABLE if results.timings_unreliable else ""
    if results.timed is not None:
        time = f"one step can make a chunk at most {results.timed.ceiling:.1f} times as fast"
    free, others = _free_alternative(results, FEW_STEPS), _gaps_of_others(results)
    last = _at_other_steps(results)
    return _sentence(free, gap, others, _success_of_all(results), time, last=last) or "Nothing was measured."


def _others(results: Results) -> list[PolicyInfo]:
    return [info for info in results.policies if info.name != TEACHER]


def _gaps_of_others(results: Results) -> str:
    told = [
        f"{percent(row.rms)} RMS with {_name(info)} at {steps(info.num_steps)}"
        for info in _others(results)
        if (row := results.gap(info.name, info.num_steps, "deployed")) is not None
    ]
    return f"the action gap is {' and '.join(told)}" if told else ""


def _success_of_all(results: Results) -> str:
    """Success of all policies at their own steps; of the teacher alone at all of its steps."""
    n = results.teacher_num_steps
    deployed = results.success_of(TEACHER, n)
    found = [
        (info, row)
        for info in _others(results)
        if (row := results.success_of(info.name, info.num_steps)) is not None
    ]
    if not found:
        rows = [row for row in results.success if (row.policy, row.group) == (TEACHER, "all")]
        told = [
            f"{percent(row.rate, 1)} at {steps(row.num_steps, row.solver if not row.is_stock else '')}{grid_text(row)}"
            for row in sorted(rows, key=lambda row: row.num_steps)
        ]
        return f"the teacher's success is {' and '.join(told)}" if told else ""
    # Of many policies the rates alone: the sentence is to stay one.
    told = [
        f"{percent(row.rate, 1)} with {_name(info)} at {steps(info.num_steps)}"
        f"{_beside_teacher(row) if len(found) <= MOST_IMPORTANT else ''}"
        for info, row in found
    ]
    against = f" against the teacher's {percent(deployed.rate, 1)} at {steps(n)}" if deployed else ""
    return f"success is {' and '.join(told)}{against}"
