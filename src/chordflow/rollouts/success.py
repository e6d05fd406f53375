"""How episodes are counted: success of a run over all of them, by start, by task and by instruction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from chordflow.errors import UserError
from chordflow.results.schema import PolicyName, SuccessRow
from chordflow.results.statistics import compare_success
from chordflow.results.wording import STARTS_NOT_TRAINED_ON, STARTS_TRAINED_ON
from chordflow.rollouts.episodes import Episode, EpisodeKey, paired
from chordflow.rollouts.starts import Starts

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
        episodes: The run; all with one solver and number of steps.
        policy: Whose actions they are.
        teacher: The teacher as deployed on the same seeds, for the paired comparison.
        starts: Of the episodes; by default no two begin alike, and none was trained on.

    Returns:
        The row of all episodes first; where some begin at starts that were trained on a row of these and one of the
        others; where there are several suites one for each; where there are several
        tasks one for each, named `suite/number: instruction` (without the instruction where it varies); and
        within a single task one for each instruction. Names are in alphabetical order, tasks by number. A
        division into one group alone would repeat the first row and is left out.

    Raises:
        UserError: If there are no episodes, they mix solvers or step counts, or the seeds differ from the
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
