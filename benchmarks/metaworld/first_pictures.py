"""Does the first picture of an episode of Meta-World show where things are in that episode?

    python benchmarks/metaworld/first_pictures.py --publish

Makes each task as LeRobot makes it, begins two episodes, and compares the picture that Meta-World would draw at the
beginning of the second with the one after MuJoCo has computed all positions anew. The result is printed, and with
--publish goes to benchmarks/metaworld/results/first_pictures/tasks.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from results import RESULTS

from chordflow.errors import UserError
from chordflow.results.files import write_whole
from lerobot_env_metaworld_light.machine import check_machine

PUBLISHED = RESULTS / "first_pictures" / "tasks.json"
SIZE = 64
"""Side of the pictures, in pixels."""
SEEDS = (1, 0)
"""Of the episode before, and of the one whose first picture is looked at."""


def differing(task: str) -> int:
    """Pixels of the first picture that change once positions are computed anew.

    Args:
        task: one of Meta-World's own.
    """
    import metaworld
    import mujoco

    from lerobot_env_metaworld_light.pictures import painter

    made = metaworld.MT1(task, seed=42)
    env = made.train_classes[task](render_mode="rgb_array", camera_name="corner2")
    env.set_task(made.train_tasks[0])
    env.reset()
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    for seed in SEEDS:
        env.seed(seed)
        env.reset(seed=seed)
    draw = painter(task, env.model, SIZE).draw
    before = draw(env.model, env.data, "corner2", SIZE)
    mujoco.mj_kinematics(env.model, env.data)
    after = draw(env.model, env.data, "corner2", SIZE)
    env.close()
    return int(np.any(before != after, axis=-1).sum())


def measure(tasks: Sequence[str]) -> dict[str, Any]:
    """The same of several tasks, with progress."""
    pixels = {}
    for task in tasks:
        pixels[task] = differing(task)
        print(f"{task}: {pixels[task]} of {SIZE * SIZE} pixels", flush=True)
    return {
        "size": SIZE,
        "tasks": len(pixels),
        "tasks_that_differ": sum(value > 0 for value in pixels.values()),
        "pixels_that_differ": pixels,
    }


def stock(names: str) -> list[str]:
    """Meta-World's own tasks by names or LeRobot's groups, joined by commas.

    Raises:
        ValueError: if a name is unknown, or is that of a task that is not Meta-World's.
    """
    # Meta-World may be imported once it is known that the machine can do it.
    from lerobot_env_metaworld_light.tasks import STOCK_TASKS, tasks_of

    tasks = [task for group in tasks_of(names).values() for task in group]
    others = sorted(set(tasks) - set(STOCK_TASKS))
    if others:
        raise ValueError(
            f"task={','.join(others)}: only Meta-World's own tasks are looked at here; name one of these."
        )
    return tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Looks at tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", default="easy,medium,hard,very_hard", help="names or LeRobot's groups")
    parser.add_argument("--publish", action="store_true", help="write the result to results/")
    options = parser.parse_args(arguments)
    try:
        if options.publish and options.task != parser.get_default("task"):
            raise ValueError(
                f"task={options.task}: what is published is of all tasks; leave --task out, or --publish."
            )
        check_machine()
        found = measure(stock(options.task))
        if options.publish:
            PUBLISHED.parent.mkdir(parents=True, exist_ok=True)
            write_whole(PUBLISHED, f"{json.dumps(found, indent=2)}\n".encode())
    except (UserError, ValueError, RuntimeError, OSError) as error:
        print(f"first_pictures.py: {error}", file=sys.stderr)
        return 2
    print(f"{found['tasks_that_differ']} of {found['tasks']} tasks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
