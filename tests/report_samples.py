"""Results as a run on the demo's task could have them: drawn, not measured, but with the right shapes."""

import dataclasses
from typing import Any

import numpy as np

from chordflow.results.schema import (
    CouplingSummary,
    CurvatureRow,
    GapRow,
    HeldOut,
    Latency,
    LossCurve,
    PolicyName,
    Reference,
    Results,
    SuccessRow,
    TrajectoryRow,
)
from chordflow.results.statistics import Estimate, Interval, PairedSuccess

GROUPS = {"all": 500, "go any way": 250, "go left": 125, "go right": 125}


def gap(
    policy: PolicyName, steps: int, reference: Reference, rms: float, median: float = 0.0, **changes: Any
) -> GapRow:
    """An Euler gap row; the median is four fifths of the RMS unless given."""
    row = GapRow(
        policy, "euler", steps, steps, reference, 10 if reference == "deployed" else 100,
        rms, median or 0.8 * rms, 0.016, 41 * rms, 3 * rms, 200, 3200,
    )  # fmt: skip
    return dataclasses.replace(row, **changes)


def ratio(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, Interval(low, high))


def success(
    policy: PolicyName, steps: int, rate: float, versus: tuple[float, float, float] | None, group: str = "all",
    episodes: int = 500,
) -> SuccessRow:  # fmt: skip
    """A success row; ``versus`` is the paired difference to the teacher and its interval."""
    paired = None
    if versus is not None:
        won = 20 + max(0, round(versus[0] * episodes))
        lost = won - round(versus[0] * episodes)
        paired = PairedSuccess(Estimate(versus[0], Interval(*versus[1:])), 0.2, won, lost, episodes)
    return SuccessRow(policy, "euler", steps, group, round(rate * episodes), episodes, paired)


def curvature(policy: PolicyName, value: float) -> CurvatureRow:
    times = [1 - i / 100 for i in range(100)]
    return CurvatureRow(policy, 100, 800, value**2, value, value**2, value, times, [value**2] * 100, [value])


def trajectories(seed: int = 0) -> list[TrajectoryRow]:
    """Arcs of a teacher to one of two modes, and the student's nearly straight ways to the same ends."""
    draw = np.random.default_rng(seed)
    t = np.linspace(0, 1, 101)
    rows = []
    for observation in range(3):
        for _ in range(5):
            start = draw.normal(size=2) * 2.2
            side = np.sign(start[1] + 0.2)
            end = np.array([4.5 - observation, 2.4 * side]) + draw.normal(size=2) * 0.25
            chord = np.outer(1 - t, start) + np.outer(t, end)
            bend = np.outer(np.sin(np.pi * t) * (1 - 0.6 * t), [0.4, -1.3 * side])
            for policy, size in (("teacher", 1.0), ("student", 0.12)):
                x, y = (chord + size * bend).T
                rows.append(TrajectoryRow(policy, observation, x.tolist(), y.tolist()))
    return rows


def sample(**changes: Any) -> Results:
    """Results with everything in them."""
    gaps = []
    for steps, untrained, student in (
        (1, 0.231, 0.091),
        (2, 0.134, 0.082),
        (4, 0.068, 0.075),
        (10, 0.0, 0.071),
    ):
        own = (
            ratio(student / untrained, 0.85 * student / untrained, 1.15 * student / untrained)
            if untrained
            else None
        )
        gaps += [
            gap("teacher", steps, "deployed", untrained, flip_rate=untrained / 4),
            gap("student", steps, "deployed", student, student / 2.1, ratio_to_untrained=own),
        ]
    gaps += [
        gap("teacher", steps, "converged", rms)
        for steps, rms in ((1, 0.256), (2, 0.166), (4, 0.103), (10, 0.043))
    ]
    gaps += [
        gap("student", steps, "converged", rms, rms / 2.1)
        for steps, rms in ((1, 0.099), (2, 0.088), (4, 0.081), (10, 0.078))
    ]
    gaps += [
        gap("teacher", 1, reference, rms, solver="midpoint", nfe=2)
        for reference, rms in (("deployed", 0.164), ("converged", 0.182))
    ]
    rows = []
    for group, episodes in GROUPS.items():
        easy = 0.99 if group.startswith(("go l", "go r")) else None
        for policy, steps, rate, versus in (
            ("teacher", 10, 0.922, None),
            ("teacher", 2, 0.858, (-0.064, -0.092, -0.036)),
            ("teacher", 1, 0.712, (-0.21, -0.25, -0.17)),
            ("student", 1, 0.91, (-0.012, -0.03, 0.006)),
        ):
            rows.append(success(policy, steps, easy or rate, versus, group, episodes))
    value = Results(
        command=["chordflow", "reflow", "--teacher.path=outputs/teacher", "--steps=600"],
        settings={"steps": 600},
        versions={"python": "3.12.3", "torch": "2.11.0", "lerobot": "0.6.1", "chordflow": "0.1.0"},
        device="a processor with two cores",
        seeds={"training": 0},
        teacher="outputs/teacher",
        student="outputs/student",
        teacher_num_steps=10,
        held_out=HeldOut([0, 1, 2], 200, 16, False),
        curvature=[curvature("teacher", 0.15), curvature("student", 0.045)],
        gaps=gaps,
        latency=Latency(0.009, 0.004, 1, 50, 10, 1),
        success=rows,
        trajectories=trajectories(),
        trajectory_axes=[0.61, 0.22],
        couplings=CouplingSummary(2048, 4, "midpoint", 10, 61_000_000),
        loss=LossCurve([*range(10, 610, 10)], [0.001 + 0.02 * 0.98**i for i in range(0, 600, 10)]),
        training_s=58.0,
    )
    return dataclasses.replace(value, **changes)
