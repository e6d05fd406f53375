"""From episodes to the rows that are reported: success at a margin, motion, delays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from chordflow.results.episodes import DelayMode, MotionMeasure
from chordflow.results.limits import wilson_coverage
from chordflow.results.schema import DelayRow, MotionRow, PolicyName, SuccessRow, TimingRow
from chordflow.results.sequential import confidence_sequence
from chordflow.results.statistics import (
    Estimate,
    Interval,
    compare_success,
    mean_interval,
    non_inferiority,
    paired_difference,
)
from chordflow.rollouts.episodes import Episode, paired
from chordflow.rollouts.starts import Starts
from chordflow.rollouts.success import success_rows
from chordflow.rollouts.timing import Timing

MEASURES: dict[MotionMeasure, str] = {
    "jerk": "jerk",
    "path length": "path_length",
    "jump": "jump",
    "length": "length",
    "seconds": "seconds",
}
"""Each measure of motion and the field of an episode that holds it."""


def success_at_margin(
    episodes: Sequence[Episode],
    policy: PolicyName,
    teacher: Sequence[Episode] | None,
    margin: float,
    starts: Starts | None = None,
) -> list[SuccessRow]:
    """`success_rows`, with what the pairs say at a margin and what Wilson's interval covers.

    Args:
        episodes: one run.
        policy: whose.
        teacher: the teacher as deployed in the same episodes; None for itself, and where nothing is paired.
        margin: how much lower success may be, a fraction.
        starts: of the episodes.
    """
    rows = []
    for row in success_rows(episodes, policy, teacher, starts):
        statement = non_inferiority(row.versus_teacher, margin) if row.versus_teacher is not None else None
        coverage = wilson_coverage(row.starts or row.episodes, row.rate)
        rows.append(dataclasses.replace(row, noninferiority=statement, coverage=coverage))
    return rows


def valid_under_looking(row: SuccessRow) -> SuccessRow:
    """The row of a run that could have stopped at any time.

    An interval for a number of episodes that was fixed beforehand does not hold then: the difference gets the
    confidence sequence, and what is decided at the margin is left to the sequential test.

    Args:
        row: over all pairs of the run.
    """
    pairs = row.versus_teacher
    if pairs is None:
        return row
    wins, losses = pairs.only_first, pairs.only_second
    low, high = confidence_sequence(wins, pairs.episodes - wins - losses, losses)
    difference = Estimate(pairs.difference.value, Interval(low, high))
    versus = dataclasses.replace(pairs, difference=difference)
    return dataclasses.replace(row, versus_teacher=versus, noninferiority=None)


def motion_rows(
    episodes: Sequence[Episode],
    policy: PolicyName,
    teacher: Sequence[Episode] | None,
    seed: int,
    starts: Starts | None = None,
) -> list[MotionRow]:
    """Jerk, path length, jump, length and time of one run, each with its paired difference to the teacher's.

    A measure that no episode has is left out.

    Args:
        episodes: one run, all with one solver and number of steps.
        policy: whose.
        teacher: the teacher as deployed in the same episodes, or None.
        seed: of the bootstrap behind the intervals.
        starts: of the episodes.
    """
    starts = starts or Starts()
    pairs = paired(episodes, teacher) if teacher is not None else None
    rows = []
    for measure, name in MEASURES.items():
        known = [e for e in episodes if getattr(e, name) is not None]
        if not known:
            continue
        values = [getattr(e, name) for e in known]
        difference = None
        if pairs is not None:
            both = [(a, b) for a, b in pairs if None not in (getattr(a, name), getattr(b, name))]
            if both:
                difference = paired_difference(
                    [getattr(a, name) for a, _ in both],
                    [getattr(b, name) for _, b in both],
                    seed=seed,
                    clusters=starts.clusters([a for a, _ in both]),
                )
        rows.append(
            MotionRow(
                policy=policy,
                solver=episodes[0].solver,
                num_steps=episodes[0].num_steps,
                grid_power=episodes[0].grid_power,
                measure=measure,
                mean=mean_interval(values, seed=seed, clusters=starts.clusters(known)),
                difference=difference,
                episodes=len(values),
            )
        )
    return rows


def timing_row(
    policy: PolicyName, num_steps: int, timing: Timing, solver: str = "euler", grid_power: float = 1.0
) -> TimingRow:
    """Where the time of one run went.

    Args:
        policy: whose.
        num_steps: its steps.
        timing: as the run counted it.
        solver: which solver.
        grid_power: how its steps are graded.
    """
    return TimingRow(
        policy=policy,
        num_steps=num_steps,
        network_s=timing.network_s,
        simulator_s=timing.simulator_s,
        processors_s=timing.processors_s,
        other_s=timing.other_s,
        solver=solver,
        grid_power=grid_power,
    )


def delay_row(
    episodes: Sequence[Episode],
    policy: PolicyName,
    undelayed: Sequence[Episode] | None,
    *,
    mode: DelayMode,
    delay: int,
    guidance_weight: float | None,
    seed: int,
    starts: Starts | None = None,
) -> DelayRow:
    """Success and smoothness of one run under a delay.

    Args:
        episodes: the run, all with one number of steps.
        policy: whose.
        undelayed: the same policy and steps in the same episodes without delay; None for that run itself.
        mode: what the robot did meanwhile.
        delay: in control steps.
        guidance_weight: of real-time chunking.
        seed: of the bootstrap behind the intervals.
        starts: of the episodes.
    """
    starts = starts or Starts()
    distinct = starts.distinct(episodes)
    versus = None
    if undelayed is not None:
        pairs = [(a.success, b.success) for a, b in paired(episodes, undelayed)]
        versus = compare_success(*zip(*pairs, strict=True), starts=distinct)
    return DelayRow(
        policy=policy,
        num_steps=episodes[0].num_steps,
        mode=mode,
        delay=delay,
        guidance_weight=guidance_weight,
        successes=sum(e.success for e in episodes),
        episodes=len(episodes),
        versus_undelayed=versus,
        jump=_mean(episodes, "jump", seed, starts),
        jerk=_mean(episodes, "jerk", seed, starts),
        starts=distinct,
    )


def _mean(episodes: Sequence[Episode], name: str, seed: int, starts: Starts) -> Estimate | None:
    known = [episode for episode in episodes if getattr(episode, name) is not None]
    if not known:
        return None
    values = [getattr(episode, name) for episode in known]
    return mean_interval(values, seed=seed, clusters=starts.clusters(known))
