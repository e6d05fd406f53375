"""The demo's teacher: its demonstrations, how it is made, and how the shipped one is placed in an output folder.

The teacher is a stock SmolVLA policy, shrunk, trained by LeRobot's own loss in LeRobot's own training loop on what a
scripted expert demonstrates. Everything happens with paths relative to one folder, so that no file of the checkpoint
names a machine's folders; placing a teacher makes them absolute.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from chordflow.demo.tiny_vlm import TinyVLMSize, build_tiny_vlm
from chordflow.policies import relocate
from lerobot_env_detour import INSTRUCTIONS, DetourEnv, DetourExpert
from lerobot_env_detour.env import FPS

ASSETS = Path(__file__).parent / "assets"
TEACHER_FOLDER = "teacher"
VLM_FOLDER = "vlm"
DATASET_FOLDER = "dataset"
TRAINING_FOLDER = "teacher_training"

DATASET_REPO_ID = "chordflow/detour"
CAMERA = f"{OBS_IMAGES}.front"
"""A name that LeRobot's asynchronous inference takes: it knows pictures by their prefix."""
NUM_EPISODES = 800
FIRST_SEED = 1_000_000
"""Seeds of demonstrations count up from here; evaluation counts up from 0, so the two never meet."""

MAX_FRAMES = 60
"""An episode in which the expert needs more is given up."""

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class TeacherRecipe:
    """All that decides the teacher.

    Attributes:
        num_episodes: demonstrations to record.
        steps: training steps.
        batch_size: samples a step.
        lr: peak learning rate; falls to a hundredth along a cosine.
        seed: decides initial weights, order of samples, noises and times.
        chunk_size: actions that the policy predicts at once.
        n_action_steps: actions that are executed before the next prediction.
        expert_width_multiplier: width of the action head over the width of the text model.
        vlm: size of the VLM.
    """

    num_episodes: int = NUM_EPISODES
    steps: int = 2500
    batch_size: int = 64
    lr: float = 1e-3
    seed: int = 0
    chunk_size: int = 16
    n_action_steps: int = 8
    expert_width_multiplier: float = 1.0
    vlm: TinyVLMSize = field(default_factory=TinyVLMSize)

    def train_arguments(self) -> list[str]:
        """The arguments of `lerobot-train`, with paths relative to the folder that it is run in."""
        side = self.vlm.image_size
        options = {
            "dataset.repo_id": DATASET_REPO_ID,
            "dataset.root": DATASET_FOLDER,
            "dataset.use_imagenet_stats": "false",
            "policy.type": "smolvla",
            "policy.device": "cpu",
            "policy.push_to_hub": "false",
            "policy.vlm_model_name": VLM_FOLDER,
            "policy.load_vlm_weights": "false",
            "policy.num_vlm_layers": self.vlm.text_layers,
            "policy.expert_width_multiplier": self.expert_width_multiplier,
            "policy.train_expert_only": "false",
            "policy.freeze_vision_encoder": "false",
            "policy.resize_imgs_with_padding": f"[{side},{side}]",
            "policy.tokenizer_max_length": 16,
            "policy.chunk_size": self.chunk_size,
            "policy.n_action_steps": self.n_action_steps,
            "policy.optimizer_lr": self.lr,
            "policy.scheduler_warmup_steps": 100,
            "policy.scheduler_decay_steps": self.steps,
            "policy.scheduler_decay_lr": self.lr / 100,
            "output_dir": TRAINING_FOLDER,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "num_workers": 0,
            "env_eval_freq": 0,
            "save_freq": self.steps,
            "log_freq": 50,
        }
        return [f"--{name}={value}" for name, value in options.items()]


def place_teacher(output_dir: Path) -> Path:
    """Copies the shipped teacher to `teacher/` and `vlm/` of an output folder, with paths that resolve.

    Gives the checkpoint's folder. Raises FileExistsError if one of the two is there already.
    """
    shutil.copytree(ASSETS / VLM_FOLDER, output_dir / VLM_FOLDER)
    return _place(ASSETS / TEACHER_FOLDER, output_dir)


def make_teacher(
    output_dir: Path,
    recipe: TeacherRecipe | None = None,
    *,
    record_progress: Progress = lambda *done: None,
    train_progress: Progress = lambda *done: None,
) -> Path:
    """Makes a teacher from nothing: `vlm/`, `dataset/`, `teacher_training/` and `teacher/` in the output folder.

    Args:
        output_dir: made if it is not there.
        recipe: what to make; the shipped teacher's recipe by default.
        record_progress: called with the episodes done, and with their number.
        train_progress: called with the training steps done, and with their number.

    Returns:
        The checkpoint's folder, `output_dir / "teacher"`.

    Raises:
        FileExistsError: if `dataset/` or `teacher/` is there already.
        RuntimeError: if LeRobot's training fails; the message holds the end of its log.
    """
    recipe = recipe or TeacherRecipe()
    build_tiny_vlm(output_dir / VLM_FOLDER, INSTRUCTIONS, recipe.vlm)
    record_demonstrations(output_dir / DATASET_FOLDER, recipe.num_episodes, record_progress)
    return _place(_train(output_dir, recipe, train_progress), output_dir)


def _place(checkpoint: Path, output_dir: Path) -> Path:
    teacher = output_dir / TEACHER_FOLDER
    shutil.copytree(checkpoint, teacher)
    relocate(teacher, (output_dir / VLM_FOLDER).resolve())
    return teacher


def _train(folder: Path, recipe: TeacherRecipe, progress: Progress) -> Path:
    """Trains by LeRobot's command in a process of its own; the checkpoint's paths are relative to `folder`."""
    log = folder / f"{TRAINING_FOLDER}.log"
    command = [sys.executable, "-m", "chordflow.demo.cached_train", *recipe.train_arguments()]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=sink, stderr=sink)
        try:
            while process.poll() is None:
                time.sleep(0.5)
                progress(_steps_done(log), recipe.steps)
        finally:
            # An interrupted demo must not leave a training run behind.
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        with log.open(errors="replace") as lines:
            end = "".join(deque(lines, maxlen=15))
        raise RuntimeError(f"LeRobot's training of the teacher failed; the end of {log}:\n{end}")
    progress(recipe.steps, recipe.steps)
    return (folder / TRAINING_FOLDER / "checkpoints" / "last" / "pretrained_model").resolve()


def _steps_done(log: Path) -> int:
    """Reads the number of steps from the end of LeRobot's progress bar."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 4096, 0))
        counts = re.findall(rb"\| (\d+)/\d+ \[", file.read())
    return int(counts[-1]) if counts else 0


def record_demonstrations(root: Path, num_episodes: int, progress: Progress = lambda *done: None) -> None:
    """Lets the expert solve episodes and writes the successful ones as a LeRobotDataset of images.

    Episode `i` uses the seed `FIRST_SEED + i` for layout, instruction, side and noise, so the dataset is a function
    of the number of successful episodes. The folder `root` must not exist.
    """
    env = DetourEnv()
    image = {"shape": env.observation_space["pixels"].shape, "names": ["height", "width", "channels"]}
    # LeRobot embeds each episode's images by a `map` that draws a progress bar of its own.
    bars_were_off = are_progress_bars_disabled()
    disable_progress_bars()
    dataset = LeRobotDataset.create(
        DATASET_REPO_ID,
        FPS,
        {
            CAMERA: {"dtype": "image", **image},
            OBS_STATE: {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
            ACTION: {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
        },
        root=root,
        robot_type="detour",
        use_videos=False,
        metadata_buffer_size=num_episodes,
    )
    seed = FIRST_SEED
    try:
        while dataset.num_episodes < num_episodes:
            frames = _demonstrate(env, seed)
            seed += 1
            for frame in frames:
                dataset.add_frame(frame)
            if frames:
                dataset.save_episode()
                progress(dataset.num_episodes, num_episodes)
    finally:
        dataset.finalize()
        env.close()
        if not bars_were_off:
            enable_progress_bars()


def _demonstrate(env: DetourEnv, seed: int) -> list[dict[str, Any]]:
    """The frames of one episode; none if the expert failed."""
    observation, info = env.reset(seed=seed)
    # The layout's generator and the expert's must not be one stream: [seed, 1] is another than seed.
    expert = DetourExpert(env.scene, seed=int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
    frames: list[dict[str, Any]] = []
    ended = False
    while not ended and len(frames) < MAX_FRAMES:
        action = expert.act(env.position)
        frame = {CAMERA: observation["pixels"], OBS_STATE: observation["agent_pos"], ACTION: action}
        frames.append({**frame, "task": env.task_description})
        observation, _, ended, _, info = env.step(action)
    return frames if info["is_success"] else []
