"""From episodes to the rows that are reported: success, by task and by start and at a margin; motion; delays."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

from chordflow.errors import UserError
from chordflow.results.episodes import DelayMode, MotionMeasure
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
from chordflow.rollouts.episodes import Episode, EpisodeKey, Starts, paired
from chordflow.rollouts.timing import Timing

ALL = "all"
"""The group of every episode."""


def success_rows(
    episodes: Sequence[Episode],
    policy: PolicyName,
    teacher: Sequence[Episode] | None = None,
    starts: Starts | None = None,
) -> list[SuccessRow]:
    """Success of one run, over all episodes, by task and by instruction.

    Args:
        episodes: the run; all with one solver and number of steps.
        policy: whose actions they are.
        teacher: the teacher as deployed on the same seeds, for the paired comparison.
        starts: of the episodes; by default no two begin alike, and none was trained on.

    Returns:
        The row of all episodes first; where some begin at starts that were trained on a row of these and one of the
        others; where there are several suites one for each; where there are several
        tasks one for each, named `suite/number: instruction` (without the instruction where it varies); and
        within a single task one for each instruction. Names are in alphabetical order, tasks by number. A
        division into one group alone would repeat the first row and is left out.

    Raises:
        UserError: if there are no episodes, they mix solvers or step counts, or the seeds differ from the
            teacher's.
    """
    settings = {(e.solver, e.num_steps, e.grid_power, e.mode, e.delay) for e in episodes}
    if len(settings) != 1:
        raise UserError(f"episodes hold {len(settings)} different solver settings; give one run's episodes.")
    ((solver, num_steps, grid_power, _, _),) = settings
    starts = starts or Starts()
    pairs = paired(episodes, teacher) if teacher is not None else None
    rows = []
    for group, keys in _groups(episodes, starts):
        members = [episode for episode in episodes if episode.key in keys]
        distinct = starts.distinct(members)
        versus = None
        if pairs is not None:
            chosen = [(a.success, b.success) for a, b in pairs if a.key in keys]
            versus = compare_success(*zip(*chosen, strict=True), starts=distinct)
        successes = sum(episode.success for episode in members)
        rows.append(
            SuccessRow(
                policy,
                solver,
                num_steps,
                group,
                successes,
                len(members),
                versus,
                starts=distinct,
                grid_power=grid_power,
            )
        )
    return rows


def _groups(episodes: Sequence[Episode], starts: Starts) -> list[tuple[str, set[EpisodeKey]]]:
    """Names of the groups that success is told of, each with its episodes."""
    divisions: list[dict[str, set[EpisodeKey]]] = [{}, {}, {}]
    several = len({(e.task_group, e.task_id) for e in episodes}) > 1
    told: dict[tuple[str, int], set[str]] = defaultdict(set)
    for episode in episodes:
        told[episode.task_group, episode.task_id].add(episode.task)
    for episode in sorted(episodes, key=lambda e: (e.task_group, e.task_id, e.task)):
        if several:
            instructions = told[episode.task_group, episode.task_id]
            name = f"{episode.task_group}/{episode.task_id}"
            if len(instructions) == 1 and episode.task:
                name += f": {episode.task}"
            divisions[0].setdefault(episode.task_group, set()).add(episode.key)
            divisions[1].setdefault(name, set()).add(episode.key)
        else:
            divisions[2].setdefault(episode.task, set()).add(episode.key)
    groups = [(ALL, {episode.key for episode in episodes})]
    trained_on = {episode.key for episode in episodes if starts.trained_on(episode)}
    if trained_on:
        groups.append((STARTS_TRAINED_ON, trained_on))
        others = groups[0][1] - trained_on
        groups += [(STARTS_NOT_TRAINED_ON, others)] if others else []
    for division in divisions:
        if len(division) > 1:
            groups += division.items()
    return groups


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
                difference = mean_interval(
                    [getattr(a, name) - getattr(b, name) for a, b in both],
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
