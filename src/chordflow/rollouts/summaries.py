"""From episodes to the rows that are reported: success, by task and by start and at a margin; motion; delays."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, get_args

from chordflow.results.episodes import MotionMeasure
from chordflow.results.schema import DelayRow, MotionRow, PolicyName, SuccessRow, TimingRow
from chordflow.results.sequential import confidence_sequence
from chordflow.results.statistics import (
    Estimate,
    Interval,
    compare_success,
    mean_interval,
    non_inferiority,
    wilson_coverage,
)
from chordflow.results.wording import STARTS_NOT_TRAINED_ON, STARTS_TRAINED_ON
from chordflow.rollouts.episodes import Episode, EpisodeKey, Starts, Timing, paired

ALL = "all"
"""The group of every episode."""


def success_rows(
    episodes: Sequence[Episode],
    policy: PolicyName,
    teacher: Sequence[Episode] | None = None,
    starts: Starts | None = None,
    margin: float | None = None,
) -> list[SuccessRow]:
    """Success of one run, over all episodes, by task and by instruction.

    Args:
        episodes: the run; all with one solver and number of steps.
        policy: whose actions they are.
        teacher: the teacher as deployed on the same seeds, for the paired comparison.
        starts: of the episodes; by default no two begin alike, and none was trained on.
        margin: how much lower success may be, a fraction. Where it is given, rows say what the pairs say at it, and
            what Wilson's interval covers.

    Returns:
        The row of all episodes first; then, where some begin at starts that were trained on, of these and of the
        others; of each suite, where there are several; of each task, named `suite/number: instruction` (without the
        instruction where it varies); within a single task, of each instruction. Names are in alphabetical order,
        tasks by number. A division into one group alone would repeat the first row and is left out.

    Raises:
        UserError: if the seeds differ from the teacher's.
    """
    starts = starts or Starts()
    pairs = paired(episodes, teacher) if teacher is not None else []
    rows = []
    for group, keys in _groups(episodes, starts):
        members = [episode for episode in episodes if episode.key in keys]
        distinct = starts.distinct(members)
        chosen = [(a.success, b.success) for a, b in pairs if a.key in keys]
        versus = compare_success(*zip(*chosen, strict=True), starts=distinct) if chosen else None
        row = SuccessRow(
            **_how(episodes, policy),
            group=group,
            successes=sum(episode.success for episode in members),
            episodes=len(members),
            versus_teacher=versus,
            starts=distinct,
        )
        if margin is not None:
            statement = non_inferiority(versus, margin) if versus is not None else None
            coverage = wilson_coverage(row.starts or row.episodes, row.rate)
            row = dataclasses.replace(row, noninferiority=statement, coverage=coverage)
        rows.append(row)
    return rows


def _groups(episodes: Sequence[Episode], starts: Starts) -> list[tuple[str, set[EpisodeKey]]]:
    """The groups that success is given for, by name, each with its episodes."""
    task_texts: dict[tuple[str, int], set[str]] = defaultdict(set)
    for episode in episodes:
        task_texts[episode.task_group, episode.task_id].add(episode.task)
    suites, tasks, instructions = (defaultdict[str, set[EpisodeKey]](set) for _ in range(3))
    for episode in sorted(episodes, key=lambda e: (e.task_group, e.task_id, e.task)):
        name = f"{episode.task_group}/{episode.task_id}"
        if len(task_texts[episode.task_group, episode.task_id]) == 1 and episode.task:
            name += f": {episode.task}"
        suites[episode.task_group].add(episode.key)
        tasks[name].add(episode.key)
        instructions[episode.task].add(episode.key)
    everything = {episode.key for episode in episodes}
    groups = [(ALL, everything)]
    trained_on = {episode.key for episode in episodes if starts.trained_on(episode)}
    if trained_on:
        groups += [(STARTS_TRAINED_ON, trained_on), (STARTS_NOT_TRAINED_ON, everything - trained_on)]
    for division in (suites, tasks) if len(task_texts) > 1 else (instructions,):
        groups += division.items() if len(division) > 1 else []
    return [(name, keys) for name, keys in groups if keys]


def valid_under_looking(row: SuccessRow) -> SuccessRow:
    """The row, over all pairs, of a run that could have stopped at any time.

    An interval for a number of episodes that was fixed beforehand does not hold then: the difference gets the
    confidence sequence, and what is decided at the margin is left to the sequential test.
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

    A measure that no episode has is left out. Arguments are those of `success_rows`; `seed` is that of the bootstrap
    behind the intervals.
    """
    starts = starts or Starts()
    pairs = paired(episodes, teacher) if teacher is not None else []
    rows = []
    for measure in get_args(MotionMeasure):
        # The field of an episode that holds it.
        name = measure.replace(" ", "_")
        mean = _mean(episodes, name, seed, starts)
        if mean is None:
            continue
        both = [pair for pair in pairs if None not in (getattr(one, name) for one in pair)]
        difference = None
        if both:
            differences = [getattr(own, name) - getattr(other, name) for own, other in both]
            clusters = starts.clusters([own for own, _ in both])
            difference = mean_interval(differences, seed=seed, clusters=clusters)
        rows.append(
            MotionRow(
                **_how(episodes, policy),
                measure=measure,
                mean=mean,
                difference=difference,
                episodes=sum(getattr(one, name) is not None for one in episodes),
            )
        )
    return rows


def _how(episodes: Sequence[Episode], policy: PolicyName) -> dict[str, Any]:
    """How a policy acted in the episodes of a run, as rows have it."""
    return {"policy": policy} | {of: getattr(episodes[0], of) for of in ("solver", "num_steps", "grid_power")}


def timing_row(
    policy: PolicyName, num_steps: int, timing: Timing, solver: str = "euler", grid_power: float = 1.0
) -> TimingRow:
    """Where the time of one run of a policy by this solver went."""
    parts = timing.network_s, timing.simulator_s, timing.processors_s, timing.other_s
    return TimingRow(policy, num_steps, *parts, solver, grid_power)


def delay_row(
    episodes: Sequence[Episode],
    policy: PolicyName,
    undelayed: Sequence[Episode] | None,
    *,
    guidance_weight: float | None,
    seed: int,
    starts: Starts | None = None,
) -> DelayRow:
    """Success and smoothness of one run under a delay.

    Its episodes have one number of steps, mode and delay. `undelayed` are those of the same policy and steps without
    delay, None for that run itself; `seed` is that of the bootstrap behind the intervals.
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
        mode=episodes[0].mode,
        delay=episodes[0].delay,
        guidance_weight=guidance_weight,
        successes=sum(e.success for e in episodes),
        episodes=len(episodes),
        versus_undelayed=versus,
        jump=_mean(episodes, "jump", seed, starts),
        jerk=_mean(episodes, "jerk", seed, starts),
        starts=distinct,
    )


def _mean(episodes: Sequence[Episode], name: str, seed: int, starts: Starts) -> Estimate | None:
    """The mean of a measure over the episodes that have it; None where none has."""
    known = [episode for episode in episodes if getattr(episode, name) is not None]
    if not known:
        return None
    values = [getattr(episode, name) for episode in known]
    return mean_interval(values, seed=seed, clusters=starts.clusters(known))
