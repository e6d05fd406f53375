"""Which episodes are trained on, and which are measured on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence


def split_episodes(
    tasks: Sequence[str], episodes: Sequence[int], eval_split: float, held_out: Collection[int] | None = None
) -> tuple[list[int], list[int]]:
    """LeRobot's rule: of every task the last ceil(n * eval_split) episodes are held out.

    Where every task has two episodes or more, one of each is left to train on. The tasks with a single episode are
    taken together as if they were one: of these, whole tasks are held out.

    Args:
        tasks: the task of every episode of the dataset.
        episodes: that are used, two or more.
        eval_split: share that is held out.
        held_out: episodes that are held out in place of those that the rule chooses.

    Returns:
        Episodes to train on and episodes held out.
    """
    counts = Counter(tasks[episode] for episode in episodes)
    groups: dict[str | None, list[int]] = {}
    for episode in episodes:
        task = tasks[episode]
        groups.setdefault(task if counts[task] > 1 else None, []).append(episode)
    train: list[int] = []
    measured: list[int] = []
    for chosen in groups.values():
        count = min(math.ceil(len(chosen) * eval_split), len(chosen) - 1)
        out = set(chosen[len(chosen) - count :] if held_out is None else held_out)
        train += [episode for episode in chosen if episode not in out]
        measured += [episode for episode in chosen if episode in out]
    return train, measured
