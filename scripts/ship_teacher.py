"""Make the teacher that ships with the demo, measure it, and put it among the package's assets.

    python scripts/ship_teacher.py FOLDER

FOLDER is where ``chordflow demo --from_scratch=true`` or an earlier run of this script left ``vlm/`` and
``teacher_training/``; if they are not there they are made.
"""

import argparse
import json
import platform
import shutil
from pathlib import Path

import torch

from chordflow.demo.teacher import (
    ASSETS,
    FIRST_SEED,
    TEACHER_FOLDER,
    TRAINING_FOLDER,
    VLM_FOLDER,
    TeacherRecipe,
    make_teacher,
    place_teacher,
)
from chordflow.policies.checkpoint import load_flow_policy
from chordflow.quiet import silence_libraries
from chordflow.results.statistics import wilson_interval
from chordflow.rollouts.acting import Actor
from chordflow.rollouts.episodes import Episode
from chordflow.rollouts.runner import run_episodes
from lerobot_env_detour import INSTRUCTIONS, DetourEnvConfig

NUM_STEPS = (10, 5, 4, 2, 1)


def success(episodes: list[Episode]) -> dict[str, float | int | list[float]]:
    """Rate, Wilson interval, and how the successes divide between the sides."""
    solved = [episode for episode in episodes if episode.success]
    interval = wilson_interval(len(solved), len(episodes))
    return {
        "episodes": len(episodes),
        "success": round(len(solved) / len(episodes), 4),
        "interval_95": [round(interval.low, 4), round(interval.high, 4)],
        "by_left": sum(episode.side == "left" for episode in solved),
        "by_right": sum(episode.side == "right" for episode in solved),
    }


def main() -> None:
    """Make what is missing, copy, place, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="working folder")
    parser.add_argument("--episodes", type=int, default=1000, help="episodes to measure on (default 1000)")
    parser.add_argument("--first_seed", type=int, default=0, help="seed of the first of them (default 0)")
    arguments = parser.parse_args()
    silence_libraries()
    folder, recipe = arguments.folder, TeacherRecipe()
    if not (folder / TRAINING_FOLDER).exists():
        make_teacher(folder, recipe)
    for name, source in (
        (TEACHER_FOLDER, folder / TRAINING_FOLDER / "checkpoints" / "last" / "pretrained_model"),
        (VLM_FOLDER, folder / VLM_FOLDER),
    ):
        shutil.rmtree(ASSETS / name, ignore_errors=True)
        shutil.copytree(source, ASSETS / name)

    shutil.rmtree(folder / "placed", ignore_errors=True)
    policy = load_flow_policy(place_teacher(folder / "placed"), device="cpu")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.episodes)
    measured = {}
    for num_steps in NUM_STEPS:
        episodes = run_episodes(Actor(policy, DetourEnvConfig(), num_steps), seeds, batch_size=64)
        groups = {name: [episode for episode in episodes if episode.task == name] for name in INSTRUCTIONS}
        measured[str(num_steps)] = {
            "all": success(episodes),
            **{name: success(group) for name, group in groups.items() if group},
        }
        print(
            num_steps,
            {name: group["success"] for name, group in measured[str(num_steps)].items()},
            flush=True,
        )

    document = {
        "made_by": "python scripts/ship_teacher.py FOLDER",
        "training": ["lerobot-train", *recipe.train_arguments()],
        "demonstrations": {"episodes": recipe.num_episodes, "first_seed": FIRST_SEED},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
        "parameters": sum(p.numel() for p in policy.module.parameters()),
        "evaluation": {"first_seed": arguments.first_seed, "episodes": arguments.episodes},
        "success_by_num_steps": measured,
    }
    (ASSETS / "teacher.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
