"""The demo's teacher: how it is made, and how the shipped one is placed in an output folder.

The teacher is a stock SmolVLA policy, shrunk, trained by LeRobot's own flow-matching loss in LeRobot's own
training loop. Everything happens with paths relative to one folder, so that no file of the checkpoint names
a machine's folders; placing a teacher makes them absolute.
"""

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

from chordflow.demo.record import DATASET_REPO_ID, NUM_EPISODES, record_demonstrations
from chordflow.demo.tiny_vlm import TinyVLMSize, build_tiny_vlm
from chordflow.errors import UserError
from chordflow.policies import relocate
from lerobot_env_detour import INSTRUCTIONS

ASSETS = Path(__file__).parent / "assets"
TEACHER_FOLDER = "teacher"
VLM_FOLDER = "vlm"
DATASET_FOLDER = "dataset"
TRAINING_FOLDER = "teacher_training"

Progress = Callable[[int, int], None]


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
        policy = {
            "type": "smolvla",
            "device": "cpu",
            "push_to_hub": "false",
            "vlm_model_name": VLM_FOLDER,
            "load_vlm_weights": "false",
            "num_vlm_layers": self.vlm.text_layers,
            "expert_width_multiplier": self.expert_width_multiplier,
            "train_expert_only": "false",
            "freeze_vision_encoder": "false",
            "resize_imgs_with_padding": f"[{side},{side}]",
            "tokenizer_max_length": 16,
            "chunk_size": self.chunk_size,
            "n_action_steps": self.n_action_steps,
            "optimizer_lr": self.lr,
            "scheduler_warmup_steps": 100,
            "scheduler_decay_steps": self.steps,
            "scheduler_decay_lr": self.lr / 100,
        }
        return [
            f"--dataset.repo_id={DATASET_REPO_ID}",
            f"--dataset.root={DATASET_FOLDER}",
            "--dataset.use_imagenet_stats=false",
            *(f"--policy.{name}={value}" for name, value in policy.items()),
            f"--output_dir={TRAINING_FOLDER}",
            f"--steps={self.steps}",
            f"--batch_size={self.batch_size}",
            f"--seed={self.seed}",
            "--num_workers=0",
            "--env_eval_freq=0",
            f"--save_freq={self.steps}",
            "--log_freq=50",
        ]


def place_teacher(output_dir: Path) -> Path:
    """Copy the shipped teacher and its VLM folder to an output folder, with paths that resolve.

    Args:
        output_dir: folder that gets `teacher/` and `vlm/`; made if it is not there.

    Returns:
        The checkpoint's folder, `output_dir / "teacher"`.

    Raises:
        UserError: if one of the two is there already.
    """
    return _place(ASSETS / TEACHER_FOLDER, ASSETS / VLM_FOLDER, output_dir)


def make_teacher(
    output_dir: Path,
    recipe: TeacherRecipe | None = None,
    *,
    record_progress: Progress | None = None,
    train_progress: Progress | None = None,
) -> Path:
    """Make a teacher from nothing: VLM folder, demonstrations, training.

    Leaves `vlm/`, `dataset/`, `teacher_training/` and `teacher/` in the output folder.

    Args:
        output_dir: folder for all of it; made if it is not there.
        recipe: what to make; the shipped teacher's recipe by default.
        record_progress: called with (episodes done, in all).
        train_progress: called with (steps done, in all).

    Returns:
        The checkpoint's folder, `output_dir / "teacher"`.

    Raises:
        UserError: if one of these folders is there already.
        RuntimeError: if LeRobot's training fails.
    """
    recipe = recipe or TeacherRecipe()
    build_tiny_vlm(_new(output_dir / VLM_FOLDER), INSTRUCTIONS, recipe.vlm, weights=False)
    record_demonstrations(output_dir / DATASET_FOLDER, recipe.num_episodes, progress=record_progress)
    checkpoint = train_teacher(output_dir, recipe, progress=train_progress)
    teacher = _new(output_dir / TEACHER_FOLDER)
    shutil.copytree(checkpoint, teacher)
    relocate(teacher, (output_dir / VLM_FOLDER).resolve())
    return teacher


def train_teacher(folder: Path, recipe: TeacherRecipe, *, progress: Progress | None = None) -> Path:
    """Train a teacher by LeRobot's training command, in a process of its own.

    Args:
        folder: folder that holds `vlm/` and `dataset/`; gets `teacher_training/`.
        recipe: what to train.
        progress: called with (steps done, steps in all).

    Returns:
        The checkpoint as LeRobot wrote it, whose paths are relative to `folder`.

    Raises:
        RuntimeError: if the command fails; the message holds the end of its log.
    """
    _new(folder / TRAINING_FOLDER)
    log = folder / f"{TRAINING_FOLDER}.log"
    command = [sys.executable, "-m", "chordflow.demo.cached_train", *recipe.train_arguments()]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=sink, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                time.sleep(0.5)
                if progress is not None:
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
    if progress is not None:
        progress(recipe.steps, recipe.steps)
    return (folder / TRAINING_FOLDER / "checkpoints" / "last" / "pretrained_model").resolve()


def _steps_done(log: Path) -> int:
    """Read the number of steps from the end of LeRobot's progress bar."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 4096, 0))
        counts = re.findall(rb"\| (\d+)/\d+ \[", file.read())
    return int(counts[-1]) if counts else 0


def _place(checkpoint: Path, vlm: Path, output_dir: Path) -> Path:
    teacher, vlm_copy = _new(output_dir / TEACHER_FOLDER), _new(output_dir / VLM_FOLDER)
    output_dir.mkdir(parents=True, exist_ok=True)
    shutil.copytree(vlm, vlm_copy)
    shutil.copytree(checkpoint, teacher)
    relocate(teacher, vlm_copy.resolve())
    return teacher


def _new(folder: Path) -> Path:
    if folder.exists():
        raise UserError(f"{folder} exists already; name an output folder without {folder.name!r}.")
    return folder
