"""What a policy does without training: how near its untrained ways are, and the findings about them.

A gap is given relative to the whole spread of the teacher's endpoints, and relative to what noise decides:
most of the spread is between observations, which any way to act reproduces, so the second figure is the harder one.
"""

from chordflow.results.actions import STUDENT, TEACHER, GapRow, PolicyName
from chordflow.results.episodes import SuccessRow
from chordflow.results.schema import Results
from chordflow.results.wording import amount, capital, number, percent, steps

FEW_STEPS = 2
"""Network evaluations up to which an untrained policy counts as a few-step policy."""

BETTER_SOLVER = 0.9
"""A solver is better than Euler where its gap is at most this share of Euler's."""


def no_training_needed(results: Results) -> str | None:
    """Untrained, with at most `FEW_STEPS` evaluations, the policy is within the floor of itself as deployed."""
    row = _cheapest(results, max(FEW_STEPS, results.student_nfe or 0))
    if row is None:
        return None
    enough, lie = ("is", "it lies") if row.num_steps == 1 else ("are", "they lie")
    return (
        f"{_way(row)} {enough} enough: {lie} {_how_near(results, row)}; {_how_to_use(row)}, without training."
    )


def fewer_steps_are_free(results: Results) -> str | None:
    """Untrained, with more than `FEW_STEPS` evaluations but fewer than deployed, the policy is within the floor."""
    row = _cheapest(results, results.teacher_num_steps)
    if row is None or no_training_needed(results) is not None:
        return None
    lie = "lies" if row.num_steps == 1 else "lie"
    text = f"{_way(row)} {lie} {_how_near(results, row)}: {_how_to_use(row)}"
    if results.timed is None:
        return f"{text}."
    return f"{text}, which makes a chunk {1 / results.timed.relative(row.nfe):.2f} times as fast without training."


def untrained_is_as_good(results: Results) -> str | None:
    """An untrained way of at most `FEW_STEPS` evaluations is as near as the student, or succeeds as often.

    As near: its gap to the converged ODE is at most the student's on the same pairs. As often: its success reaches the
    student's interval. At the student's own Euler steps `student_gap` says more.
    """
    found = _as_good(results)
    if found is None:
        return None
    near, often, row = found
    one, way = row.num_steps == 1, _way(row, "" if row.is_stock else "not in stock LeRobot")
    if near and often:
        return f"{way} {'is' if one else 'are'} at least as good as the student by gap and success."
    if near:
        return f"{way} {'lies' if one else 'lie'} at least as near to the converged ODE as the student."
    return f"{way} cannot be distinguished from the student by success."


def named(results: Results) -> list[GapRow]:
    """The untrained ways that a verdict names: the cheapest within the floor, and the one as good as the student."""
    cheapest, found = _cheapest(results, results.teacher_num_steps), _as_good(results)
    return [row for row in (cheapest, found and found[2]) if row]


def _as_good(results: Results) -> tuple[bool, bool, GapRow] | None:
    """Whether `untrained_is_as_good` by gap, whether by success, and the way."""
    n, nfe = results.student_num_steps, results.student_nfe
    if n is None or nfe is None:
        return None
    own, found = results.success_of(STUDENT, n), []
    for row in free_ways(results, max(FEW_STEPS, nfe)):
        if _as_good_as_deployed(results, row):
            return None
        student, success = _on_the_same_pairs(results, row, STUDENT, n), _success_beside(results, row)
        near = student is not None and row.rms <= student.rms
        often = success is not None and own is not None and success.rate >= own.interval.low
        if (near or often) and (row.nfe, row.is_stock) != (nfe, True):
            found.append((near, often, row))
    return max(found, key=lambda f: (f[0] and f[1], f[0]), default=None)


def better_solver(results: Results) -> str | None:
    """A way's gap is at most `BETTER_SOLVER` of even Euler steps', for the fewest evaluations and as deployed."""
    deployed = results.free.best(results.teacher_num_steps) if results.free is not None else None
    better = [
        (row, euler)
        for row in [*free_ways(results, results.teacher_num_steps), *([deployed] if deployed else [])]
        if not row.is_stock
        and (euler := euler_beside(results, row)) is not None
        and row.rms <= BETTER_SOLVER * euler
    ]
    texts = [
        f"at {number(row.nfe)} evaluations {row.solver}{grid_text(row)} is nearer to the converged ODE than even "
        f"Euler steps ({percent(row.rms)} against {percent(euler)} RMS)"
        for place, (row, euler) in enumerate(better)
        if place == 0 or row is deployed
    ]
    return f"{capital(', '.join(texts))}." if texts else None


def only_exported(results: Results) -> GapRow | None:
    """The cheapest untrained way within the floor, where LeRobot's sampler does not take it and a graph does."""
    row = _cheapest(results, results.teacher_num_steps)
    return None if row is None or row.is_stock else row


def free_ways(results: Results, most: int) -> list[GapRow]:
    """Gaps of the untrained policy to the converged ODE, the fewest evaluations and nearest first.

    Even Euler steps, which LeRobot's own sampler takes, and the best way of each number of evaluations; where that was
    not looked for, every other solver that was measured.
    `most` is the number of network evaluations at most; never as many as deployed.
    """
    rows, best = [row for row in results.gaps if row.policy == TEACHER], results.free
    if best is not None:
        rows = [row for row in rows if row.is_stock] + [row for row in best.ways if not row.is_stock]
    most = min(most, results.teacher_num_steps - 1)
    found = [row for row in rows if row.reference == "converged" and row.nfe <= most]
    return sorted(found, key=lambda row: (row.nfe, row.rms))


def noise_text(results: Results, row: GapRow) -> str:
    """What stands behind an RMS, such as ` or 29 % of what noise decides`; nothing where spreads were not measured.

    Where noise decides next to nothing it is the gap in the robot's units.
    """
    share, value = results.noise_share, results.of_noise(row.rms)
    if value is not None:
        return f" or {percent(value)} of what noise decides"
    if share is None:
        return ""
    return (
        f" of the whole spread or {amount(row.mean_abs)} in the robot's units (noise decides {percent(share)} of the "
        "variance, too little to compare with)"
    )


def euler_beside(results: Results, row: GapRow) -> float | None:
    """RMS of even Euler steps at as many evaluations, on the pairs of one of the `free_ways`."""
    if row.ratio_to_untrained is not None:
        return row.rms / row.ratio_to_untrained.value
    euler = results.gap(TEACHER, row.nfe, "converged")
    return euler.rms if euler is not None else None


def grid_text(row: GapRow | SuccessRow) -> str:
    """The grid of a way to act, where it is not even, as it stands behind the steps."""
    return "" if row.grid_power == 1 else f" with grid power {row.grid_power:g}"


def _cheapest(results: Results, most: int) -> GapRow | None:
    """The cheapest way within the floor; even Euler steps, which need no code, first at the same cost."""
    rows = [row for row in free_ways(results, most) if _as_good_as_deployed(results, row)]
    return min(rows, key=lambda row: (row.nfe, not row.is_stock, row.rms), default=None)


def _as_good_as_deployed(results: Results, row: GapRow) -> bool:
    """Whether a way is within the floor and was not measured to succeed clearly less often than as deployed."""
    floor = _on_the_same_pairs(results, row, TEACHER, results.teacher_num_steps)
    success = _success_beside(results, row)
    versus = success.versus_teacher.difference.interval if success and success.versus_teacher else None
    return floor is not None and row.rms <= floor.rms and not (versus is not None and versus.high < 0)


def _on_the_same_pairs(results: Results, row: GapRow, policy: PolicyName, num_steps: int) -> GapRow | None:
    """The gap of a policy at its Euler steps to the converged ODE, on the pairs of one of the `free_ways`."""
    if results.free is not None and not row.is_stock:
        return results.free.beside(policy, num_steps)
    return results.gap(policy, num_steps, "converged")


def _success_beside(results: Results, row: GapRow) -> SuccessRow | None:
    return results.success_of(row.policy, row.num_steps, solver=row.solver, grid_power=row.grid_power)


def _how_near(results: Results, row: GapRow) -> str:
    """Both gaps: relative to what noise decides, or to the whole spread where noise decides next to nothing."""
    floor = _on_the_same_pairs(results, row, TEACHER, results.teacher_num_steps)
    assert floor is not None
    own, theirs = results.of_noise(row.rms), results.of_noise(floor.rms)
    if own is not None and theirs is not None:
        text = f"{percent(own)} against {percent(theirs)} of what noise decides, to the converged ODE"
    else:
        text = f"{percent(row.rms)} against {percent(floor.rms)} RMS to the converged ODE"
        if results.noise_share is not None:
            text += f", {amount(row.mean_abs)} against {amount(floor.mean_abs)} in the robot's units"
    return f"within the floor ({text})"


def _way(row: GapRow, note: str = "") -> str:
    kind = "untrained" if row.is_stock else f"untrained {row.solver}"
    cost = "" if row.nfe == row.num_steps else f"{number(row.nfe)} evaluations"
    notes = ", ".join(filter(None, (cost, note)))
    return capital(f"{steps(row.num_steps, kind)}{grid_text(row)}{f' ({notes})' * bool(notes)}")


def _how_to_use(row: GapRow) -> str:
    if row.is_stock:
        return f"set the number of steps to {row.num_steps}"
    return (
        f"solve with {row.solver}{grid_text(row)}, where your deployment can (LeRobot's own sampler takes even Euler "
        "steps)"
    )
