"""The arguments of the commands that the benchmark runs, with paths relative to its output folder."""

from __future__ import annotations

from sizes import Size

REPO_ID = "chordflow/metaworld"
STUDENT = "student/checkpoints/last/pretrained_model"
FIRST_SEED = 0
"""Of evaluated episodes; those of demonstrations begin at a million."""
SIDE_BY_SIDE = 20
"""Episodes that are evaluated together."""


def lerobot_train(size: Size) -> list[str]:
    """Arguments of `lerobot-train`: a stock SmolVLA, shrunk, whose images and words are trained as well."""
    side = size.vlm.image_size
    policy = {
        "type": "smolvla",
        "device": size.device,
        "push_to_hub": "false",
        "vlm_model_name": "vlm",
        "load_vlm_weights": "false",
        "num_vlm_layers": size.vlm.text_layers,
        "expert_width_multiplier": 1.0,
        "train_expert_only": "false",
        "freeze_vision_encoder": "false",
        "resize_imgs_with_padding": f"[{side},{side}]",
        "tokenizer_max_length": 24,
        "chunk_size": size.chunk_size,
        "n_action_steps": size.n_action_steps,
        "optimizer_lr": size.lr,
        "scheduler_warmup_steps": 100,
        "scheduler_decay_steps": size.train_steps,
        "scheduler_decay_lr": size.lr / 100,
    }
    return [
        *_dataset(size),
        "--dataset.use_imagenet_stats=false",
        *(f"--policy.{name}={value}" for name, value in policy.items()),
        "--output_dir=teacher_training",
        f"--steps={size.train_steps}",
        f"--batch_size={size.batch_size}",
        f"--seed={size.seed}",
        f"--num_workers={0 if size.keep_frames else 8}",
        "--env_eval_freq=0",
        f"--save_freq={max(size.train_steps // 10, 100)}",
        "--log_freq=100",
    ]


def reflow(size: Size) -> list[str]:
    """Arguments of `chordflow reflow`."""
    return [
        "--teacher.path=teacher",
        *_dataset(size),
        "--output_dir=student",
        f"--device={size.device}",
        f"--batch_size={size.batch_size}",
        f"--seed={size.seed}",
        "--num_workers=0",
        *(f"--{name}={value}" for name, value in size.reflow.items()),
        *_measure(size),
    ]


def evaluate(size: Size) -> list[str]:
    """Arguments of `chordflow evaluate`: the teacher at ten, two and one steps, and the student."""
    return [
        "--teacher.path=teacher",
        f"--student.path={STUDENT}",
        *_dataset(size),
        *_environment(size),
        f"--seed={FIRST_SEED}",
        f"--eval.n_episodes={size.episodes}",
        f"--eval.batch_size={min(size.episodes, SIDE_BY_SIDE)}",
        "--eval.teacher_num_steps=[2]",
        "--eval.num_clips=0",
        *_measure(size),
        f"--device={size.device}",
        "--output_dir=evaluate",
    ]


def lerobot_eval(size: Size) -> list[str]:
    """Arguments of `lerobot-eval`, of the student."""
    return [
        f"--policy.path={STUDENT}",
        f"--policy.device={size.device}",
        *_few_episodes(size),
        "--eval.use_async_envs=false",
        "--output_dir=lerobot/stock",
    ]


def evaluate_like_lerobot(size: Size) -> list[str]:
    """Arguments of `chordflow evaluate` that run the student's episodes of `lerobot_eval`, and the teacher's too."""
    return [
        "--teacher.path=teacher",
        f"--student.path={STUDENT}",
        f"--device={size.device}",
        "--noise=lerobot",
        *_few_episodes(size),
        "--output_dir=lerobot/chordflow",
    ]


def _few_episodes(size: Size) -> list[str]:
    count = size.lerobot_episodes
    return [
        *_environment(size),
        f"--eval.n_episodes={count}",
        f"--eval.batch_size={count}",
        f"--seed={FIRST_SEED}",
    ]


def _dataset(size: Size) -> list[str]:
    return [
        f"--dataset.repo_id={REPO_ID}",
        "--dataset.root=dataset",
        f"--dataset.eval_split={size.eval_split}",
    ]


def _environment(size: Size) -> list[str]:
    options = {
        "task": ",".join(size.tasks),
        "obs": size.obs,
        "image_size": size.image_size,
        "episode_length": size.episode_length,
    }
    return ["--env.type=metaworld_light", *(f"--env.{name}={value}" for name, value in options.items())]


def _measure(size: Size) -> list[str]:
    return [f"--measure.{name}={value}" for name, value in size.measure.items()]
