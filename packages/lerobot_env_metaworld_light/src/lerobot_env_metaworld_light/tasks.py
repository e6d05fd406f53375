"""The tasks by name: Meta-World's fifty, and two of this package that are two-sided."""

import difflib
from dataclasses import dataclass

from lerobot.envs.metaworld import DIFFICULTY_TO_TASKS, TASK_DESCRIPTIONS
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from lerobot_env_metaworld_light.two_sided import PushEitherGoalEnv, RoundWallEnv


@dataclass(frozen=True)
class OwnTask:
    """A task of this package.

    Attributes:
        simulator: its class.
        description: the instruction.
        based_on: the task of Meta-World that it derives from.
    """

    simulator: type[SawyerXYZEnv]
    description: str
    based_on: str


OWN_TASKS = {
    "reach-round-wall": OwnTask(
        RoundWallEnv, "Reach the goal round the wall by either side", "reach-wall-v3"
    ),
    "push-either-goal": OwnTask(PushEitherGoalEnv, "Push the puck to either goal", "push-v3"),
}
"""By name."""

STOCK_TASKS = tuple(sorted(TASK_DESCRIPTIONS))
"""Meta-World's fifty."""


def tasks_of(names: str) -> dict[str, list[str]]:
    """The tasks that a list of names joined by commas stands for, by group or task, as LeRobot has it.

    Raises:
        ValueError: if a name is unknown or none is given.
    """
    groups = {}
    for name in (part.strip().removeprefix("metaworld-") for part in names.split(",")):
        if name:
            groups[name] = [known(task) for task in DIFFICULTY_TO_TASKS.get(name, [name])]
    if not groups:
        raise ValueError(f"env.task={names!r} names no task: give one, for instance reach-v3.")
    return groups


def known(task: str) -> str:
    """The name of a task, checked.

    Raises:
        ValueError: if it is unknown; the message has the nearest names.
    """
    names = [*STOCK_TASKS, *OWN_TASKS]
    if task in names:
        return task
    near = difflib.get_close_matches(task, names, n=3, cutoff=0.4) or sorted(OWN_TASKS)
    raise ValueError(
        f"there is no task {task!r}: the nearest names are {', '.join(near)}; groups are "
        f"{', '.join(DIFFICULTY_TO_TASKS)}."
    )


def description(task: str) -> str:
    """The instruction of a task."""
    return OWN_TASKS[task].description if task in OWN_TASKS else TASK_DESCRIPTIONS[task]
