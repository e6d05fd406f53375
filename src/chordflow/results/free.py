"""The free alternative as results hold it: what a policy does without training, and how near that is.

A gap is told relative to the whole spread of the teacher's endpoints, and beside it relative to what noise decides:
most of the spread is between observations, which any way to act knows, so the second figure is the harder one.
"""

from chordflow.results.actions import TEACHER, GapRow, PolicyName
from chordflow.results.episodes import SuccessRow
from chordflow.results.schema import Results
from chordflow.results.wording import amount, percent


def free_ways(results: Results, most: int) -> list[GapRow]:
    """Gaps of the untrained policy to the converged ODE, the fewest evaluations and nearest first.

    Even Euler steps, which LeRobot's own sampler takes, and the best way of each number of evaluations; where that was
    not looked for, every other solver that was measured.

    Args:
        results: what was measured.
        most: network evaluations at most; never as many as deployed.
    """
    rows, best = [row for row in results.gaps if row.policy == TEACHER], results.free
    if best is not None:
        rows = [row for row in rows if row.is_stock] + [row for row in best.ways if not row.is_stock]
    rows = [
        row
        for row in rows
        if row.reference == "converged" and row.nfe <= most and row.nfe < results.teacher_num_steps
    ]
    return sorted(rows, key=lambda row: (row.nfe, row.rms))


def on_the_same_pairs(results: Results, row: GapRow, policy: PolicyName, num_steps: int) -> GapRow | None:
    """The gap of a policy at its Euler steps to the converged ODE, on the pairs of one of the `free_ways`.

    Args:
        results: what was measured.
        row: A way to act without training.
        policy: whose gap.
        num_steps: its steps.
    """
    if results.free is not None and not row.is_stock:
        return results.free.beside(policy, num_steps)
    return results.gap(policy, num_steps, "converged")


def within_floor(results: Results, row: GapRow) -> bool:
    """Whether a way to act is as near to the converged ODE as the policy as deployed, on the same pairs."""
    floor = on_the_same_pairs(results, row, TEACHER, results.teacher_num_steps)
    return floor is not None and row.rms <= floor.rms


def against_floor(results: Results, row: GapRow, target: str = "") -> str:
    """Both gaps: relative to what noise decides, or to the whole spread where noise decides next to nothing.

    Args:
        results: what was measured.
        row: A way to act without training.
        target: what they are gaps to, such as ` to the converged ODE`, where that is not said anyway.
    """
    floor = on_the_same_pairs(results, row, TEACHER, results.teacher_num_steps)
    assert floor is not None
    own, theirs = results.of_noise(row.rms), results.of_noise(floor.rms)
    if own is not None and theirs is not None:
        return (
            f"{percent(own)} against {percent(theirs)} of what noise decides{',' if target else ''}{target}"
        )
    text = f"{percent(row.rms)} against {percent(floor.rms)} RMS{target}"
    if results.noise_share is None:
        return text
    return f"{text}, {amount(row.mean_abs)} against {amount(floor.mean_abs)} in the robot's units"


def noise_text(results: Results, row: GapRow) -> str:
    """A gap relative to what noise decides, or in the robot's units where noise decides next to nothing.

    Returns:
        What stands behind the RMS, such as ` or 29 % of what noise decides`; nothing where spreads were not measured.
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


def success_beside(results: Results, row: GapRow) -> SuccessRow | None:
    """Success of the way to act whose gap this is, over all episodes."""
    return results.success_of(row.policy, row.num_steps, solver=row.solver, grid_power=row.grid_power)


def clearly_lower(results: Results, row: GapRow) -> bool:
    """Whether this way to act was measured to succeed less often than the policy as deployed."""
    success = success_beside(results, row)
    if (
        success is None
        or success.versus_teacher is None
        or success.versus_teacher.difference.interval is None
    ):
        return False
    return success.versus_teacher.difference.interval.high < 0


def euler_beside(results: Results, row: GapRow) -> float | None:
    """RMS of even Euler steps at as many evaluations, on the pairs of one of the `free_ways`."""
    if row.ratio_to_untrained is not None:
        return row.rms / row.ratio_to_untrained.value
    euler = results.gap(TEACHER, row.nfe, "converged")
    return euler.rms if euler is not None else None


def grid_text(row: GapRow | SuccessRow) -> str:
    """The grid of a way to act, where it is not even, as it stands behind the steps."""
    return "" if row.grid_power == 1 else f" with grid power {row.grid_power:g}"
