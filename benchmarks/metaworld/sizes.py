"""The sizes of the benchmark: tasks, demonstrations, teacher, student and episodes of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chordflow.demo.tiny_vlm import TinyVLMSize

TWO_SIDED = ("reach-round-wall", "push-either-goal")


@dataclass(frozen=True)
class Size:
    """All that decides a run.

    Attributes:
        tasks: Names of tasks or of LeRobot's groups of tasks.
        demonstrations: Of each task, held-out ones included.
        disturbed: Further ones by task, which begin after the hand was pushed off the expert's path. Without them the
            demonstrations of reach-round-wall hardly show how a wrong height is corrected.
        episode_length: Steps after which an episode is cut off.
        train_steps: Steps of the teacher.
        batch_size: Of teacher and student.
        vlm: Size of the vision-language model.
        chunk_size: Actions that the policy predicts at once.
        n_action_steps: Of which are executed before the next prediction.
        reflow: Options of `chordflow reflow`.
        episodes: Paired episodes of each task.
        measure: Options of `chordflow evaluate` that measure without an environment.
        lerobot_episodes: Of each task, run by lerobot-eval and by `chordflow evaluate --noise=lerobot`; 0 for none.
        keep_frames: Whether training keeps all decoded frames in memory; a picture of 64 x 64 takes 49 kB.
        device: Where everything runs.
        seed: Of training.
    """

    tasks: tuple[str, ...]
    demonstrations: int
    episode_length: int
    train_steps: int
    reflow: dict[str, Any]
    episodes: int
    measure: dict[str, Any]
    lerobot_episodes: int
    disturbed: dict[str, int] = field(default_factory=dict)
    batch_size: int = 64
    vlm: TinyVLMSize = field(default_factory=TinyVLMSize)
    chunk_size: int = 16
    n_action_steps: int = 16
    obs: str = "pixels_full"
    image_size: int = 64
    eval_split: float = 0.1
    lr: float = 1e-3
    keep_frames: bool = True
    device: str = "cpu"
    seed: int = 1000


def _student(steps: int, observations: int) -> dict[str, Any]:
    """Options of `chordflow reflow` by which a student of every number of steps is trained."""
    return {"steps": steps, "optimizer.lr": 2e-3, "buffer.num_observations": observations}


SIZES = {
    # One two-sided task, meant for two cores and a quarter of an hour.
    "smoke": Size(
        tasks=("reach-round-wall",),
        demonstrations=50,
        disturbed={"reach-round-wall": 50},
        episode_length=120,
        train_steps=1200,
        reflow=_student(400, 512),
        episodes=40,
        measure={"num_observations": 64, "latency_repeats": 10},
        lerobot_episodes=4,
    ),
    # Meant for two cores and some hours.
    "small": Size(
        tasks=("reach-v3", "button-press-topdown-v3", "window-open-v3", "push-v3", *TWO_SIDED),
        demonstrations=100,
        episode_length=200,
        disturbed={"reach-round-wall": 300},
        train_steps=10_000,
        reflow=_student(8_000, 8_192),
        episodes=200,
        measure={"num_observations": 300},
        lerobot_episodes=10,
    ),
    # The same without positions of objects: what the picture shows decides.
    "small_images": Size(
        tasks=("window-open-v3", "drawer-close-v3", "button-press-topdown-v3", "reach-round-wall"),
        demonstrations=100,
        episode_length=200,
        disturbed={"reach-round-wall": 400},
        train_steps=12_000,
        reflow=_student(8_000, 8_192),
        episodes=200,
        measure={"num_observations": 300},
        lerobot_episodes=10,
        # 16 tokens for a picture, in place of 4: a goal is a few pixels of it, and the hand must come near.
        vlm=TinyVLMSize(scale_factor=2),
        obs="pixels_agent_pos",
    ),
    # Meta-World's fifty tasks and the two-sided ones, on a GPU.
    "full": Size(
        tasks=("easy", "medium", "hard", "very_hard", *TWO_SIDED),
        demonstrations=100,
        episode_length=500,
        train_steps=100_000,
        reflow=_student(30_000, 32_768),
        episodes=50,
        measure={"num_observations": 1_000},
        lerobot_episodes=0,
        batch_size=256,
        vlm=TinyVLMSize(vision_width=192, vision_layers=4, text_width=256, text_layers=8),
        keep_frames=False,
        device="cuda",
    ),
}
