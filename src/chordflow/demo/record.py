"""The scripted expert's demonstrations as a LeRobotDataset."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE

from chordflow.errors import UserError
from lerobot_env_detour import DetourEnv, DetourExpert
from lerobot_env_detour.env import FPS

DATASET_REPO_ID = "chordflow/detour"
NUM_EPISODES = 800
FIRST_SEED = 1_000_000
"""Seeds of demonstrations count up from here; evaluation counts up from 0, so the two never meet."""

MAX_FRAMES = 60
"""An episode in which the expert needs more is given up."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Recording:
    """What was recorded.

    Attributes:
        root: the dataset's folder.
        num_episodes: episodes kept, all of them successful.
        num_frames: frames over all episodes.
        sides: how often each side was taken on "go any way".
    """

    root: Path
    num_episodes: int
    num_frames: int
    sides: dict[str, int]


def record_demonstrations(
    root: Path,
    num_episodes: int = NUM_EPISODES,
    *,
    first_seed: int = FIRST_SEED,
    repo_id: str = DATASET_REPO_ID,
    progress: Progress | None = None,
) -> Recording:
    """Let the expert solve episodes and write the successful ones as a LeRobotDataset of images.

    Episode `i` uses the seed `first_seed + i` for layout, instruction, side and noise, so the dataset
    is a function of the arguments.

    Args:
        root: folder of the dataset; must not exist.
        num_episodes: successful episodes to record.
        first_seed: seed of the first episode.
        repo_id: name of the dataset.
        progress: called with (episodes done, episodes in all) after each episode.

    Raises:
        UserError: if `num_episodes` is below 1 or `root` exists.
    """
    if num_episodes < 1:
        raise UserError(f"num_episodes is {num_episodes}; a dataset needs at least 1 episode.")
    if root.exists():
        raise UserError(f"dataset root {root} exists already; name a folder that does not.")
    env = DetourEnv()
    # LeRobot embeds each episode's images by a `map` that draws a progress bar of its own.
    bars_were_off = are_progress_bars_disabled()
    disable_progress_bars()
    dataset = LeRobotDataset.create(
        repo_id=repo_id,
        fps=FPS,
        features=_features(env),
        root=root,
        robot_type="detour",
        use_videos=False,
        metadata_buffer_size=num_episodes,
    )
    sides: Counter[str] = Counter()
    seed = first_seed
    try:
        while dataset.num_episodes < num_episodes:
            frames, side = _demonstrate(env, seed)
            seed += 1
            if frames is None:
                continue
            if env.task_description == "go any way":
                sides[side] += 1
            for frame in frames:
                dataset.add_frame(frame)
            dataset.save_episode()
            if progress is not None:
                progress(dataset.num_episodes, num_episodes)
    finally:
        dataset.finalize()
        env.close()
        if not bars_were_off:
            enable_progress_bars()
    return Recording(root, dataset.num_episodes, dataset.num_frames, dict(sides))


def _features(env: DetourEnv) -> dict[str, dict[str, object]]:
    height, width, channels = env.observation_space["pixels"].shape
    return {
        OBS_IMAGE: {
            "dtype": "image",
            "shape": (height, width, channels),
            "names": ["height", "width", "channels"],
        },
        OBS_STATE: {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        ACTION: {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
    }


def _demonstrate(env: DetourEnv, seed: int) -> tuple[list[dict[str, object]] | None, str]:
    """Run one episode; its frames are None if the expert failed."""
    observation, info = env.reset(seed=seed)
    # The layout's generator and the expert's must not be one stream: [seed, 1] is another than seed.
    expert = DetourExpert(env.scene, seed=int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
    frames: list[dict[str, object]] = []
    ended = False
    while not ended and len(frames) < MAX_FRAMES:
        action = expert.act(env.position)
        frames.append(
            {
                OBS_IMAGE: observation["pixels"],
                OBS_STATE: observation["agent_pos"],
                ACTION: action,
                "task": env.task_description,
            }
        )
        observation, _, ended, _, info = env.step(action)
    return (frames if info["is_success"] else None), info["side"]
