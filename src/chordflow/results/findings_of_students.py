"""Rules about policies beside their teacher: at the margin, under a delay, and beside what is free.

As in `results.findings`, a rule is a function from results to a sentence, or to None.
"""

from chordflow.results.actions import STUDENT, TEACHER, GapRow
from chordflow.results.episodes import DelayRow
from chordflow.results.schema import Results
from chordflow.results.wording import number, percent, points, steps


def decided_at_the_margin(results: Results) -> str | None:
    """Whether each candidate, at its own steps, is non-inferior to the teacher at the margin.

    By the sequential test where the run was sequential, else by the interval of the paired difference.
    """
    said = []
    stopped = {(row.policy, row.num_steps): row.decision for row in results.sequential}
    for info in results.policies:
        row = results.success_of(info.name, info.num_steps)
        looked = stopped.get((info.name, info.num_steps))
        fixed = row.noninferiority if row is not None else None
        if info.name == TEACHER or (looked or fixed) is None:
            continue
        needed = None
        if looked is not None:
            decision, low, high, episodes = looked.decision, looked.low, looked.high, looked.episodes
            margin = 100 * looked.margin
        else:
            assert fixed is not None
            decision, low, high, episodes = fixed.decision, fixed.lower, fixed.upper, fixed.episodes
            margin, needed = 100 * fixed.margin, fixed.episodes_needed
        text = f"{info.name} at {steps(info.num_steps)} is {decision} ({points(low)} to {points(high)}"
        text += f" points after {episodes} paired episodes)"
        if decision == "undecided" and needed is not None:
            text += f", about {needed} would decide"
        said.append(text)
    if not said:
        return None
    return f"At a margin of {margin:g} points to the teacher, {'; '.join(said)}."


def guidance_weight_matters(results: Results) -> str | None:
    """Real-time chunking clearly costs success at the usual guidance weight, and not at the one that fits the steps.

    Clearly: the interval of the paired difference to no delay lies below 0.
    """
    for usual in sorted(results.delays, key=lambda row: (row.num_steps, row.policy == TEACHER, row.delay)):
        fits = next(
            (
                row
                for row in results.delays
                if (row.policy, row.num_steps, row.delay) == (usual.policy, usual.num_steps, usual.delay)
                and row.mode == usual.mode == "rtc"
                and (row.guidance_weight or 0) < (usual.guidance_weight or 0)
            ),
            None,
        )
        if fits is None or not _costs(usual) or _costs(fits):
            continue
        return (
            f"Real-time chunking at {steps(usual.num_steps)}: with a guidance weight of {usual.guidance_weight:g} the "
            f"{usual.policy} solves {percent(usual.rate, 1)}, with {fits.guidance_weight:g}, which fits, "
            f"{percent(fits.rate, 1)}: set max_guidance_weight to the number of steps."
        )
    return None


def _costs(row: DelayRow) -> bool:
    interval = row.versus_undelayed.difference.interval if row.versus_undelayed is not None else None
    return interval is not None and interval.high < 0


def trained_for_one_step(results: Results) -> str | None:
    """A policy's own record says that it was trained for one step only."""
    names = [info.name for info in results.policies if info.step_counts == [1]]
    if not names:
        return None
    *others, last = names
    who = f"{', '.join(others)} and {last} were" if others else f"{last} was"
    who = who[0].upper() + who[1:]
    return (
        f"{who} trained for one step only: actions at other numbers of steps are not what training was for."
    )


def student_beside_the_floor(results: Results) -> str | None:
    """The student is more exact than the teacher as deployed, with an interval over held-out episodes that says so."""
    row = more_exact_student(results)
    if row is None or row.ratio_to_floor is None or row.ratio_to_floor.interval is None:
        return None
    interval = row.ratio_to_floor.interval
    shown = (
        f", nearer on {percent(row.nearer_than_deployed)} of pairs"
        if row.nearer_than_deployed is not None
        else ""
    )
    return (
        f"At {steps(row.num_steps)} the student is nearer to the teacher's converged ODE than the teacher is at "
        f"{steps(results.teacher_num_steps)}: {row.ratio_to_floor.value:.2f} of its RMS gap "
        f"({interval.low:.2f} to {interval.high:.2f}){shown}."
    )


def more_exact_student(results: Results) -> GapRow | None:
    """The student's gap to the converged ODE, if the whole interval of its ratio to the floor lies below 1."""
    n = results.student_num_steps
    row = results.gap(STUDENT, n, "converged") if n is not None else None
    if row is None or row.ratio_to_floor is None:
        return None
    interval = row.ratio_to_floor.interval
    return row if interval is not None and interval.high < 1 else None


def student_beside_the_best_way(results: Results) -> str | None:
    """The student's gap to the converged ODE over that of the best way without training, at the same evaluations.

    A student that was trained for a few numbers of steps is looked at there alone. Training is shown to give more where
    the whole interval lies below 1; without one, where the ratio does.
    """
    info = next((info for info in results.policies if info.name == STUDENT), None)
    trained_for = info.step_counts if info is not None else None
    rows = [
        row
        for row in (results.free.others if results.free is not None else [])
        if row.policy == STUDENT and (trained_for is None or row.num_steps in trained_for)
    ]
    said, equal = [], []
    for row in sorted(rows, key=lambda row: row.nfe):
        if row.ratio_to_free is None:
            continue
        found = row.ratio_to_free
        if (found.interval.high if found.interval is not None else found.value) >= 1:
            equal.append(row.nfe)
        span = (
            f" ({found.interval.low:.2f} to {found.interval.high:.2f})" if found.interval is not None else ""
        )
        said.append(f"{found.value:.2f}{span} at {number(row.nfe)}")
    if not said:
        return None
    text = (
        "The student's RMS gap to the converged ODE over that of the best way to act without training, by network "
        f"evaluations: {', '.join(said)}"
    )
    if not equal:
        return f"{text}."
    counts = " and ".join(number(nfe) for nfe in equal)
    return f"{text}; at {counts} it does not show that training gives more than a better solver."
