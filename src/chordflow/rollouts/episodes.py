"""What one episode came to, and how episodes are counted and paired.

Shapes: T executed actions, A action dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chordflow.errors import UserError
from chordflow.results.schema import PolicyRole, SuccessRow
from chordflow.results.statistics import compare_success

ALL = "all"
"""The group of every episode."""


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        seed: Seed that the environment was reset with and the chunks' noise was drawn from.
        task: Instruction that the policy was given.
        success: Whether the environment reported `is_success` at any step.
        length: Executed actions.
        sum_reward: Sum of the rewards.
        side: The environment's last `info["side"]`, for environments that tell one.
        chunks: Chunks that the policy was asked for.
        num_steps: Solver steps for each of them.
        solver: Which solver.
        jerk: Mean square of the third difference `a[t+3] - 3 a[t+2] + 3 a[t+1] - a[t]` of the executed
            actions, over time and dimensions, in the robot's units per control step cubed, squared; None
            for fewer than four actions. It compares policies at one control rate.
        jump: Mean absolute difference between the last executed action of a chunk and the first of the next
            one, over boundaries and dimensions, in the robot's units; None for a single chunk.
        seconds: This episode's share of wall-clock time: each round's time is divided evenly among the
            episodes that took part, so that the sum over episodes is the time of the run.
        actions: The executed actions, float32 (T, A).
        frames: Where recorded: uint8 (T + 1, height, width, 3), the first before any action.
    """

    seed: int
    task: str
    success: bool
    length: int
    sum_reward: float
    side: str | None
    chunks: int
    num_steps: int
    solver: str
    jerk: float | None
    jump: float | None
    seconds: float = field(compare=False)
    actions: NDArray[np.float32] = field(compare=False, repr=False)
    frames: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)

    def row(self) -> dict[str, Any]:
        """The plain values by name, as a row for JSON or parquet: all but `actions` and `frames`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("actions", "frames")}


def jerk(actions: NDArray[np.floating]) -> float | None:
    """Mean square of the third difference of `actions` (T, A); None where T is below 4."""
    if len(actions) < 4:
        return None
    return float(np.mean(np.diff(actions.astype(np.float64), n=3, axis=0) ** 2))


def jump(actions: NDArray[np.floating], starts: Sequence[int]) -> float | None:
    """Mean absolute step of `actions` (T, A) onto the first action of each later chunk.

    Args:
        actions: The executed actions.
        starts: Index of each chunk's first action, from 0 upwards.

    Returns:
        None for a single chunk.
    """
    later = np.asarray(starts[1:], dtype=np.int64)
    if later.size == 0:
        return None
    wide = actions.astype(np.float64)
    return float(np.mean(np.abs(wide[later] - wide[later - 1])))


def paired(first: Sequence[Episode], second: Sequence[Episode]) -> list[tuple[Episode, Episode]]:
    """The episodes of two runs side by side, by rising seed.

    Raises:
        UserError: If the runs have different seeds, or one seed gave them different instructions.
    """
    by_seed = [{episode.seed: episode for episode in run} for run in (first, second)]
    for run, seeds, name in ((first, by_seed[0], "first"), (second, by_seed[1], "second")):
        if len(seeds) != len(run):
            raise UserError(
                f"the {name} run has {len(run)} episodes with {len(seeds)} seeds; give each seed once."
            )
    lonely = sorted(by_seed[0].keys() ^ by_seed[1].keys())
    if lonely:
        name = "first" if lonely[0] in by_seed[0] else "second"
        raise UserError(
            f"{len(lonely)} seeds are in one run only (seed {lonely[0]} in the {name}); "
            "run both with the same seeds."
        )
    pairs = [(by_seed[0][seed], by_seed[1][seed]) for seed in sorted(by_seed[0])]
    for a, b in pairs:
        if a.task != b.task:
            raise UserError(
                f"seed {a.seed} has the instruction {a.task!r} in one run and {b.task!r} in the other; "
                "run both in the same environment."
            )
    return pairs


def success_rows(
    episodes: Sequence[Episode], policy: PolicyRole, teacher: Sequence[Episode] | None = None
) -> list[SuccessRow]:
    """Success of one run, over all episodes and by instruction.

    Args:
        episodes: The run; all with one solver and number of steps.
        policy: Whose actions they are.
        teacher: The teacher as deployed on the same seeds, for the paired comparison.

    Returns:
        The row of all episodes first, then one for each instruction in alphabetical order; where there is
        only one instruction, its row alone would repeat the first and is left out.

    Raises:
        UserError: If there are no episodes, they mix solvers or step counts, or the seeds differ from the
            teacher's.
    """
    settings = {(episode.solver, episode.num_steps) for episode in episodes}
    if len(settings) != 1:
        raise UserError(f"episodes hold {len(settings)} different solver settings; give one run's episodes.")
    ((solver, num_steps),) = settings
    pairs = paired(episodes, teacher) if teacher is not None else None
    tasks = sorted({episode.task for episode in episodes})
    rows = []
    for group in [ALL, *(tasks if len(tasks) > 1 else [])]:
        outcomes = [episode.success for episode in episodes if group in (ALL, episode.task)]
        versus = None
        if pairs is not None:
            chosen = [(a.success, b.success) for a, b in pairs if group in (ALL, a.task)]
            versus = compare_success(*zip(*chosen, strict=True))
        rows.append(SuccessRow(policy, solver, num_steps, group, sum(outcomes), len(outcomes), versus))
    return rows
