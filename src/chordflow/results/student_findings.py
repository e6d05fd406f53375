"""Findings about students and other policies compared with their teacher, rule by rule, as in `results.findings`."""

from __future__ import annotations

from dataclasses import replace

from chordflow.results.actions import ABOVE, REFERENCES, STUDENT, TEACHER, Latency, PolicyName
from chordflow.results.episodes import DelayRow
from chordflow.results.free import grid_text, noise_text
from chordflow.results.schema import Results
from chordflow.results.statistics import Estimate, NonInferiority, non_inferiority
from chordflow.results.wording import capital, clean, number, percent, points, step_counts, steps

TAIL = 1.5
"""From this ratio of RMS to median on, few large misses decide the RMS."""

NOTICEABLE_SPEEDUP = 1.05
"""Below this chunks come no sooner, as far as a median latency can tell."""

# ---- Success --------------------------------------------------------------------------------------------


def may_replace_the_teacher(results: Results) -> str | None:
    """Whether each policy, at its own steps, may replace the deployed teacher.

    By the sequential test where the run was sequential, else by the interval of the paired difference: *yes* where the
    policy is non-inferior at the margin or succeeds clearly more often, *no* where it is inferior or succeeds clearly
    less often, otherwise *undecided*. Rates of episodes that were not paired decide nothing.
    """
    answers = [text for name, n in candidates(results) if (text := _may_replace(results, name, n))]
    return " ".join(answers) or None


def candidates(results: Results) -> list[tuple[PolicyName, int]]:
    """Every policy but the teacher, with the number of steps at which it acts."""
    n = results.student_num_steps
    student = {} if n is None else {STUDENT: n}
    others = {info.name: info.num_steps for info in results.policies if info.name != TEACHER}
    return list((student | others | student).items())


def _may_replace(results: Results, name: PolicyName, num_steps: int) -> str | None:
    row, decided = results.success_of(name, num_steps), None
    paired = row.versus_teacher if row is not None else None
    for one in [s.decision for s in results.sequential if (s.policy, s.num_steps) == (name, num_steps)]:
        decided = NonInferiority(one.margin, one.decision, one.low, one.high, one.episodes, None)
    if decided is None and row is not None:
        decided = row.noninferiority
        if decided is None and paired is not None and paired.difference.interval is not None:
            # Without a margin any difference counts, and no number of episodes is promised.
            decided = replace(non_inferiority(paired, 0.0), episodes_needed=None)
    rates = ""
    if row is not None:
        deployed = results.success_of(TEACHER, results.teacher_num_steps)
        teacher = deployed.rate if deployed is not None else None
        teacher = row.rate - paired.difference.value if paired is not None else teacher
        rates = f"success is {percent(row.rate, 1)}"
        rates += f" against the teacher's {percent(teacher, 1)}" if teacher is not None else ""
    who = f"{_who(name)} may replace the teacher at {steps(num_steps)}"
    if decided is None:
        if row is None:
            return None
        return f"Whether {who} is undecided: {rates} in {row.episodes} episodes each, not paired."
    outcome = f"{decided.decision} at a margin of {100 * decided.margin:g}".removeprefix("undecided ")
    if decided.margin == 0:
        outcome = {"non-inferior": "higher", "inferior": "lower"}.get(decided.decision, "not distinguishable")
    span = f"{outcome}: {points(decided.lower)} to {points(decided.upper)} points in {decided.episodes} paired episodes"
    figures = f"{rates} ({span})" if rates else span
    if decided.decision == "non-inferior":
        return f"Yes, {who}: {figures}."
    if decided.decision == "inferior":
        return f"No, {who.replace(' may ', ' should not ', 1)}: {figures}."
    needed = decided.episodes_needed
    more = f"; about {needed:,} episodes would decide".replace(",", " ") if needed is not None else ""
    return f"Whether {who} is undecided: {figures}{more}."


def _who(name: PolicyName) -> str:
    return f"the {name}" if name in (STUDENT, TEACHER) else clean(name)


def success_beside_untrained(results: Results) -> str | None:
    """The untrained teacher's success at as many evaluations: no clear gain where it reaches the student's interval."""
    n, nfe = results.student_num_steps, results.student_nfe
    if n is None or nfe is None or nfe == results.teacher_num_steps:
        return None
    student, untrained = results.success_of(STUDENT, n), results.success_of(TEACHER, nfe)
    if student is None or untrained is None:
        return None
    gain = ", so the student shows no clear gain" if untrained.rate >= student.interval.low else ""
    return f"Untrained, the teacher at {steps(nfe)} has a success of {percent(untrained.rate, 1)}{gain}."


def success_of_the_teacher(results: Results) -> str | None:
    """Success of the teacher in all its ways to act, where nothing else was run."""
    if any(row.policy != TEACHER for row in results.success):
        return None
    rows = [row for row in results.success if row.group == "all"]
    texts = [
        f"{percent(row.rate, 1)} at {steps(row.num_steps, row.solver if not row.is_stock else '')}{grid_text(row)}"
        for row in sorted(rows, key=lambda row: row.num_steps)
    ]
    return f"The teacher's success is {' and '.join(texts)}." if texts else None


def guidance_weight_matters(results: Results) -> str | None:
    """Real-time chunking clearly costs success at the usual guidance weight, and not at the one that fits the steps.

    Clearly: the interval of the paired difference to no delay lies below 0.
    """

    def same(row: DelayRow) -> tuple[str, int, int]:
        return row.policy, row.num_steps, row.delay

    guided = [row for row in results.delays if row.mode == "rtc"]
    for usual in sorted(guided, key=lambda row: (row.num_steps, row.policy == TEACHER, row.delay)):
        weight = usual.guidance_weight or 0
        lower = [row for row in guided if same(row) == same(usual) and (row.guidance_weight or 0) < weight]
        if lower and _costs(usual) and not _costs(lower[0]):
            return (
                f"Real-time chunking at {steps(usual.num_steps)}: with a guidance weight of {weight:g} the "
                f"{usual.policy} solves {percent(usual.rate, 1)}, with {lower[0].guidance_weight:g}, which fits, "
                f"{percent(lower[0].rate, 1)}: set max_guidance_weight to the number of steps."
            )
    return None


def _costs(row: DelayRow) -> bool:
    interval = row.versus_undelayed.difference.interval if row.versus_undelayed is not None else None
    return interval is not None and interval.high < 0


# ---- Gap ------------------------------------------------------------------------------------------------


def student_gap(results: Results) -> str | None:
    """The student's gap, and its ratio to the untrained teacher's at the same steps.

    It is a gain only where the whole interval of the ratio lies below 1, worse where it lies above, otherwise no
    better. The reference is the deployed teacher, or the converged ODE where there is no ratio for the former. Beside
    the RMS stands the gap relative to what noise decides, or in the robot's units; where the RMS is at least `TAIL`
    times the median, few pairs decide it.
    """
    n = results.student_num_steps
    rows = [row for reference in REFERENCES if n and (row := results.gap(STUDENT, n, reference)) is not None]
    if not rows:
        return None
    row = next((r for r in rows if r.ratio_to_untrained is not None), rows[0])
    to = f"action gap to the {'deployed teacher' if row.reference == 'deployed' else 'converged ODE'}"
    gap, found = f"{percent(row.rms)} RMS{noise_text(results, row)}", row.ratio_to_untrained
    cost = "" if row.nfe == row.num_steps else f" at {steps(row.nfe, 'Euler')}, as many evaluations"
    text = f"At {steps(row.num_steps)} the student's {to} is {gap}, "
    if found is None:
        text += "not compared with the untrained teacher's"
    elif found.interval is None:
        text += f"{found.value:.2f} of the untrained teacher's{cost} on too few episodes to tell"
    elif found.interval.high < 1:
        text += f"{_ratio(found)} of the untrained teacher's{cost}"
    else:
        worse = "worse" if found.interval.low > 1 else "no better"
        text = (
            f"At {steps(row.num_steps)} the student is {worse} than the untrained teacher{cost} ({to} {gap}, ratio "
            f"{_ratio(found)})"
        )
    if row.rms == 0 or row.rms < TAIL * row.median:
        return f"{text}."
    flips = f", flips {percent(row.flip_rate)}" if row.flip_rate else ""
    return f"{text}, mostly from few pairs (median {percent(row.median)}{flips})."


def gaps_of_others(results: Results) -> str | None:
    """The gaps of all policies but teacher and student, at their own steps."""
    texts = [
        f"{percent(row.rms)} RMS with {clean(name)} at {steps(n)}"
        for name, n in candidates(results)
        if name != STUDENT and (row := results.gap(name, n, "deployed")) is not None
    ]
    return f"The action gap to the deployed teacher is {' and '.join(texts)}." if texts else None


def student_beside_the_floor(results: Results) -> str | None:
    """The student is more exact than the teacher as deployed, with an interval over held-out episodes that says so."""
    n = results.student_num_steps
    row = results.gap(STUDENT, n, "converged") if n is not None else None
    found = row.ratio_to_floor if row is not None else None
    if row is None or found is None or found.interval is None or found.interval.high >= 1:
        return None
    near = row.nearer_than_deployed
    shown = f", nearer on {percent(near)} of pairs" if near is not None else ""
    return (
        f"At {steps(row.num_steps)} the student is nearer to the teacher's converged ODE than the teacher is at "
        f"{steps(results.teacher_num_steps)}: {_ratio(found)} of its RMS gap{shown}."
    )


def student_beside_the_best_way(results: Results) -> str | None:
    """The student's gap to the converged ODE over that of the best way without training, at the same evaluations.

    A student that was trained for a few numbers of steps is looked at there alone. Training is shown to give more where
    the whole interval lies below 1; without one, where the ratio does.
    """
    info = results.info(STUDENT)
    counts = info.step_counts if info is not None else None
    rows = [
        (row.nfe, row.ratio_to_free)
        for row in (results.free.others if results.free is not None else [])
        if row.policy == STUDENT and row.ratio_to_free and (counts is None or row.num_steps in counts)
    ]
    if not rows:
        return None
    rows.sort(key=lambda pair: pair[0])
    equal = [number(nfe) for nfe, one in rows if (one.interval.high if one.interval else one.value) >= 1]
    more = f"; at {' and '.join(equal)} it does not show that training gives more than a better solver"
    shown = ", ".join(f"{_ratio(found)} at {number(nfe)}" for nfe, found in rows)
    return (
        "The student's RMS gap to the converged ODE, divided by that of the best way without training at as many "
        f"network evaluations, is {shown}{more if equal else ''}."
    )


def _ratio(found: Estimate) -> str:
    ends = f" ({found.interval.low:.2f} to {found.interval.high:.2f})" if found.interval is not None else ""
    return f"{found.value:.2f}{ends}"


# ---- Curvature, time, steps -----------------------------------------------------------------------------


def curvature_of_the_student(results: Results) -> str | None:
    """Whether curvature falls or rises: only where the intervals of the two do not overlap.

    Nothing of a student that is for few step counts, since curvature is measured along many.
    """
    teacher, student = results.curvature_of(TEACHER), results.curvature_of(STUDENT)
    info = results.info(STUDENT)
    if teacher is None or student is None or (info is not None and info.step_counts is not None):
        return None
    before, after = percent(teacher.curvature), percent(student.curvature)
    if teacher.interval is not None and student.interval is not None:
        if student.interval.high < teacher.interval.low:
            return f"Curvature falls from {before} to {after}."
        if student.interval.low > teacher.interval.high:
            return f"Curvature rises from {before} to {after}."
    return f"Curvature is {after}{' as before' if before == after else f' beside {before}'}."


def chunks_come_faster(results: Results) -> str | None:
    """Time of the student's chunk against the teacher's, with the ceiling that the encoder sets."""
    latency = results.timed
    if latency is None or results.student is None:
        return None
    nfe = results.student_nfe or latency.student_num_steps
    speedup = 1 / latency.relative(nfe)
    share = f"encoding is {percent(latency.encode_share(nfe), 0)} of each"
    if STUDENT in latency.exported:
        faster = 1 / latency.relative(nfe, STUDENT)
        return (
            f"Chunks come {faster:.1f} times as fast from the exported folder; as many evaluations in PyTorch "
            f"give {speedup:.1f} times ({_beside_ceiling(latency, speedup)}: {share})."
        )
    if speedup < NOTICEABLE_SPEEDUP:
        return f"Chunks come no faster ({share})."
    return f"Chunks come {speedup:.1f} times as fast ({_beside_ceiling(latency, speedup)}: {share})."


def _beside_ceiling(latency: Latency, speedup: float) -> str:
    """How a measured speed-up, of whole chunks, stands to the ceiling, of their parts; it may lie a little above."""
    ceiling = f"{latency.ceiling:.1f}"
    if f"{speedup:.1f}" == ceiling:
        return "the ceiling"
    near = abs(speedup - latency.ceiling) <= ABOVE * latency.ceiling
    return f"near the ceiling of {ceiling}" if near else f"ceiling {ceiling}"


def trained_for_other_steps(results: Results) -> str | None:
    """Policies that their own record says were trained for one step only, or not for the number they are run at."""
    n = results.student_num_steps
    texts = []
    for info in results.policies:
        ran = n if info.name == STUDENT and n is not None else info.num_steps
        if info.step_counts is not None and (info.step_counts == [1] or ran not in info.step_counts):
            texts.append(f"{_who(info.name)} was trained for {step_counts(info.step_counts)} only")
    if not texts:
        return None
    return f"{capital('; '.join(texts))}: actions at other numbers of steps are not what training was for."
