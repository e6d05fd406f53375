"""What the results of several rounds say of them."""

from __future__ import annotations

from collections.abc import Sequence

from chordflow.results.schema import STUDENT, Finding, LossCurve, PolicyName, Results
from chordflow.results.wording import percent, steps


def side_by_side(
    results: Results, names: Sequence[PolicyName], own: Sequence[Results | None], num_steps: int
) -> Finding:
    """The rounds beside one another.

    Args:
        results: all students against the first teacher.
        names: of the rounds' students in them, the first round's first.
        own: of each round, its student against its own teacher.
        num_steps: Euler steps of the students.
    """
    said, gaps = [], {}
    for number, (name, of_round) in enumerate(zip(names, own, strict=True), 1):
        parts = []
        curvature, gap = results.curvature_of(name), results.gap(name, num_steps, "deployed")
        if curvature is not None:
            parts.append(f"curvature {percent(curvature.curvature)}")
        if gap is not None:
            gaps[number] = gap.rms
            parts.append(f"action gap {percent(gap.rms)} to the first teacher")
        taught = of_round.gap(STUDENT, num_steps, "deployed") if of_round and number > 1 else None
        if taught is not None:
            parts.append(f"{percent(taught.rms)} to its own teacher")
        said.append(f"round {number}: {', '.join(parts)}")
    text = f"At {steps(num_steps)}, {'; '.join(said)}"
    nearest = min(gaps, key=lambda number: gaps[number])
    return Finding("rounds", f"{text}; round {nearest} is nearest to the first teacher.")


def joined(losses: Sequence[LossCurve]) -> LossCurve:
    """The loss of one round after the other; steps are counted on."""
    counted, values, before = [], [], 0
    for loss in losses:
        counted += [before + step for step in loss.steps]
        values += loss.losses
        before = counted[-1] if counted else 0
    return LossCurve(counted, values)
