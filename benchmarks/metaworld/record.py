"""Records the scripted experts' demonstrations as a LeRobotDataset v3.

    python benchmarks/metaworld/record.py --task=reach-v3,push-v3 --episodes=50 --root=outputs/metaworld/dataset

Only episodes that the expert solves are kept. Seeds of training episodes count up from 1,000,000 and those of held-out
ones from 2,000,000; evaluation counts up from `--seed`, which stays below. Held-out episodes come last, so that
LeRobot's rule (`--dataset.eval_split`: the last share of every instruction's episodes) holds out just these.

An expert keeps to its path, so that its hand's position soon tells where it is going; a policy that reads that from the
hand and not from the picture never mends a wrong beginning. `--disturbed` adds episodes in which the hand was pushed
off the path at some moment, recorded from then on (noise injected into demonstrations, as by Laskey et al. 2017, DART,
https://arxiv.org/abs/1703.09327; here not recorded itself). Their seeds count up from 3,000,000 and 4,000,000.

Each episode is kept in ROOT.episodes as soon as it is solved; an interrupted recording goes on where it was. ROOT
appears only when the dataset is whole.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from commands import REPO_ID
from datasets import disable_progress_bars
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE

from chordflow.errors import UserError
from chordflow.experiments.run_folder import only_run
from lerobot_env_metaworld_light import LightMetaworldConfig
from lerobot_env_metaworld_light.machine import check_machine

TRAIN_SEED = 1_000_000
HELD_OUT_SEED = 2_000_000
DISTURBED_SEED = 3_000_000
DISTURBED_HELD_OUT_SEED = 4_000_000
PUSH_STEPS = (5, 15)
"""Fewest and most steps for which the hand is pushed, each by at most a centimetre along each axis."""
GIVE_UP = 20
"""Seeds in a row that an expert may fail before its task is given up."""

Progress = Callable[[str, int, int], None]
Arrays = dict[str, np.ndarray]


def held_out_episodes(episodes: int, eval_split: float) -> int:
    """How many of a task's episodes LeRobot's rule holds out."""
    return math.ceil(episodes * eval_split)


def record(
    config: LightMetaworldConfig,
    root: Path,
    episodes: int,
    eval_split: float,
    progress: Progress | None = None,
    repo_id: str = REPO_ID,
    disturbed: Mapping[str, int] | int = 0,
) -> LeRobotDataset:
    """Record demonstrations of every task that the config names.

    Args:
        config: Tasks and observation.
        root: Folder of the dataset; must not exist.
        episodes: Of each task, the held-out ones among them.
        eval_split: Share of them that is held out.
        progress: Called with (task, episodes done, episodes in all).
        repo_id: Name of the dataset.
        disturbed: Further episodes that begin after a push, by task or of every task; the same share is held out.

    Raises:
        ValueError: If an argument is out of range, a task is unknown or its expert fails too often.
        RuntimeError: If Meta-World does not work on this machine.
        UserError: If another process records there.
    """
    if root.exists():
        raise ValueError(f"root={root} exists already; name a new folder.")
    if not 0 < eval_split < 1:
        raise ValueError(f"eval_split={eval_split}: give a share between 0 and 1, such as 0.1.")
    held_out = held_out_episodes(episodes, eval_split)
    if not 0 < held_out < episodes:
        raise ValueError(
            f"episodes={episodes} and eval_split={eval_split} leave no episode to train on or none to hold out; "
            "give at least 2 episodes and a share that splits them."
        )
    for count in disturbed.values() if isinstance(disturbed, Mapping) else (disturbed,):
        if count < 0:
            raise ValueError(f"disturbed={count}: give a number of episodes, 0 or more.")
    check_machine()
    # Meta-World may be imported once it is known that the machine can do it.
    from lerobot_env_metaworld_light.tasks import tasks_of

    tasks = list(dict.fromkeys(task for group in tasks_of(config.task or "").values() for task in group))
    if not isinstance(disturbed, Mapping):
        disturbed = dict.fromkeys(tasks, disturbed)
    for task in disturbed.keys() - tasks:
        raise ValueError(f"disturbed names {task}, which is not recorded; it may name {', '.join(tasks)}.")
    kept = root.with_name(f"{root.name}.episodes")
    kept.mkdir(parents=True, exist_ok=True)
    with only_run(kept, "root"):
        plan = {task: _counts(episodes, disturbed.get(task, 0), eval_split) for task in tasks}
        files = _all_solved(plan, config, kept, progress)
        unfinished = root.with_name(f"{root.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        assemble(files, config, unfinished, repo_id)
        unfinished.rename(root)
        shutil.rmtree(kept)
    return LeRobotDataset(repo_id, root=root)


def _counts(episodes: int, disturbed: int, eval_split: float) -> dict[int, int]:
    """Episodes of a task by their first seed; held-out ones are in all as many as LeRobot's rule takes."""
    held_out = held_out_episodes(episodes, eval_split)
    pushed_held_out = held_out_episodes(episodes + disturbed, eval_split) - held_out
    return {
        TRAIN_SEED: episodes - held_out,
        DISTURBED_SEED: disturbed - pushed_held_out,
        HELD_OUT_SEED: held_out,
        DISTURBED_HELD_OUT_SEED: pushed_held_out,
    }


def _all_solved(
    plan: dict[str, dict[int, int]], config: LightMetaworldConfig, kept: Path, progress: Progress | None
) -> list[Path]:
    """Every task's episodes, those to train on before those held out."""
    files: dict[bool, list[Path]] = {False: [], True: []}
    total = sum(sum(counts.values()) for counts in plan.values())
    done = 0
    for task, counts in plan.items():
        for first_seed, count in counts.items():
            last = first_seed in (HELD_OUT_SEED, DISTURBED_HELD_OUT_SEED)
            for file in solved(task, config, kept, first_seed, count):
                files[last].append(file)
                done += 1
                if progress is not None:
                    progress(task, done, total)
    return files[False] + files[True]


def solved(
    task: str, config: LightMetaworldConfig, kept: Path, first_seed: int, count: int
) -> Iterator[Path]:
    """The first `count` episodes from a seed on that the expert solves, each as a file; made where not there.

    Raises:
        ValueError: If the expert fails too often.
    """
    from lerobot_env_metaworld_light.env import LightMetaworldEnv

    env = LightMetaworldEnv(task, **config.gym_kwargs)
    # What an episode's pictures and numbers depend on, besides task and seed.
    folder = kept / f"{task}-{config.obs}-{config.image_size}-{config.camera}-{config.episode_length}"
    folder.mkdir(parents=True, exist_ok=True)
    found, failures, seed = 0, 0, first_seed
    try:
        while found < count:
            file = folder / f"{seed}.npz"
            length = _length(file)
            if length is None:
                arrays = demonstrate(env, task, seed, pushed=first_seed >= DISTURBED_SEED)
                new = file.with_suffix(".new")
                with new.open("wb") as stream:
                    np.savez(stream, **arrays)
                new.rename(file)
                length = len(arrays["action"])
            is_solved = length > 0
            seed += 1
            failures = 0 if is_solved else failures + 1
            if failures == GIVE_UP:
                raise ValueError(
                    f"{task}: the expert failed {GIVE_UP} seeds in a row within {config.episode_length} steps; "
                    "raise the episode length."
                )
            if is_solved:
                found += 1
                yield file
    finally:
        env.close()


def _length(file: Path) -> int | None:
    """Steps of an episode that is kept, 0 if it was not solved; None if there is none that can be read whole."""
    try:
        with np.load(file) as arrays:
            return min(len(arrays[name]) for name in ("pixels", "agent_pos", "action"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def demonstrate(env: Any, task: str, seed: int, pushed: bool = False) -> Arrays:
    """One episode of the expert; empty arrays if it fails.

    Args:
        env: The environment.
        task: Name of the task.
        seed: Decides the episode, and the push.
        pushed: Whether the hand is pushed off the expert's path at a moment that the seed draws; what is returned
            begins after that.
    """
    from lerobot_env_metaworld_light.experts import make_expert

    expert = make_expert(task, seed)
    observation = _after_a_push(env, task, seed) if pushed else env.reset(seed=seed)[0]
    steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    info: dict[str, Any] = {"is_success": False}
    ended = observation is None
    while not ended:
        action = expert.act(env.state)
        steps.append((observation["pixels"], observation["agent_pos"], action))
        observation, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
    if not info["is_success"]:
        steps = []
    return {
        "pixels": np.array([pixels for pixels, _, _ in steps]),
        "agent_pos": np.array([state for _, state, _ in steps]),
        "action": np.array([action for _, _, action in steps]),
        "task": np.array(env.task_description),
    }


def _after_a_push(env: Any, task: str, seed: int) -> Any:
    """What is seen after the expert has acted for a while and its hand was pushed; None if that ended the episode."""
    from lerobot_env_metaworld_light.experts import make_expert

    # Another stream than those of the layout and of the expert's side.
    generator = np.random.default_rng([seed, 2])
    moment = int(generator.integers(_length_undisturbed(env, task, seed)))
    direction = generator.uniform(-1.0, 1.0, 3)
    duration = int(generator.integers(PUSH_STEPS[0], PUSH_STEPS[1] + 1))
    env.reset(seed=seed)
    expert = make_expert(task, seed)
    observation = None
    for step in range(moment + duration):
        action = expert.act(env.state)
        if step >= moment:
            # The gripper stays with the expert: what it holds is not dropped.
            action[:3] = direction
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            return None
    return observation


def _length_undisturbed(env: Any, task: str, seed: int) -> int:
    """Steps that the expert takes when nothing pushes it."""
    from lerobot_env_metaworld_light.experts import make_expert

    env.reset(seed=seed)
    expert = make_expert(task, seed)
    length, ended = 0, False
    while not ended:
        _, _, terminated, truncated, _ = env.step(expert.act(env.state))
        ended = terminated or truncated
        length += 1
    return length


def assemble(files: list[Path], config: LightMetaworldConfig, root: Path, repo_id: str) -> None:
    """Writes the dataset of these episodes, in this order."""
    disable_progress_bars()
    side, size = config.image_size, config.features["agent_pos"].shape[0]
    dataset = LeRobotDataset.create(
        repo_id=repo_id,
        fps=config.fps,
        features={
            OBS_IMAGE: {
                "dtype": "image",
                "shape": (side, side, 3),
                "names": ["height", "width", "channels"],
            },
            OBS_STATE: {"dtype": "float32", "shape": (size,), "names": None},
            ACTION: {"dtype": "float32", "shape": (4,), "names": ["dx", "dy", "dz", "gripper"]},
        },
        root=root,
        robot_type="sawyer",
        use_videos=False,
        metadata_buffer_size=len(files),
    )
    try:
        for file in files:
            with np.load(file) as arrays:
                episode = dict(arrays)
            for pixels, state, action in zip(
                episode["pixels"], episode["agent_pos"], episode["action"], strict=True
            ):
                dataset.add_frame(
                    {OBS_IMAGE: pixels, OBS_STATE: state, ACTION: action, "task": str(episode["task"])}
                )
            dataset.save_episode()
    finally:
        dataset.finalize()


def main() -> int:
    """Read the command line and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", required=True, help="tasks or LeRobot's groups of tasks, joined by commas")
    parser.add_argument("--episodes", type=int, default=50, help="of each task, held-out ones included")
    parser.add_argument(
        "--disturbed", type=int, default=0, help="further episodes of each, recorded after a push"
    )
    parser.add_argument("--eval_split", type=float, default=0.1, help="share of them that is held out")
    parser.add_argument("--root", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--repo_id", default=REPO_ID)
    parser.add_argument("--obs", default="pixels_full", help="pixels_agent_pos or pixels_full")
    parser.add_argument("--image_size", type=int, default=64, help="side of the pictures, in pixels")
    parser.add_argument("--episode_length", type=int, default=500, help="steps that an expert may take")
    options = parser.parse_args()

    def say(task: str, done: int, total: int) -> None:
        print(f"\r{done}/{total} episodes, {task}".ljust(60), end="", flush=True)

    try:
        config = LightMetaworldConfig(
            task=options.task,
            obs=options.obs,
            image_size=options.image_size,
            episode_length=options.episode_length,
        )
        dataset = record(
            config,
            options.root,
            options.episodes,
            options.eval_split,
            say,
            options.repo_id,
            options.disturbed,
        )
    except (UserError, ValueError, RuntimeError, OSError) as error:
        print(f"record.py: {error}", file=sys.stderr)
        return 2
    print(f"\n{dataset.num_episodes} episodes, {dataset.num_frames} frames in {options.root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
