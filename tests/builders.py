"""Small real LeRobot checkpoints and datasets for tests: stock classes, random weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets.io_utils import write_info
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from chordflow.demo.tiny_vlm import TinyVLMSize, build_tiny_vlm
from chordflow.experiments.config import ReflowJobConfig
from chordflow.experiments.evaluate_config import EvaluateConfig
from chordflow.experiments.settings import evaluate_settings, reflow_settings
from chordflow.options import nest, read_options
from chordflow.quiet import quiet_stdout

TASKS = ("go left", "go right", "go any way round the obstacle")
SIZE = TinyVLMSize(
    image_size=32, patch_size=8, scale_factor=2, vision_width=16, vision_layers=1, text_width=32, text_layers=2,
    num_heads=2,
)  # fmt: skip
STATE_DIM, ACTION_DIM = 3, 2


def parse_reflow(arguments: list[str]) -> tuple[ReflowJobConfig, Path | None]:
    """The settings that options of `chordflow reflow` stand for, and the checkpoint to resume from."""
    return reflow_settings(nest(read_options(arguments)))


def parse_evaluate(arguments: list[str]) -> EvaluateConfig:
    """The settings that options of `chordflow evaluate` stand for."""
    return evaluate_settings(nest(read_options(arguments)))


def build_vlm(folder: Path, seed: int | None = None) -> Path:
    """A SmolVLM of a few thousand parameters, with random weights of its own where a seed is given."""
    build_tiny_vlm(folder, TASKS, SIZE)
    if seed is not None:
        torch.manual_seed(seed)
        SmolVLMForConditionalGeneration(SmolVLMConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def make_config(
    vlm: Path, cameras: tuple[str, ...] = ("top",), state_dim: int = STATE_DIM, action_dim: int = ACTION_DIM,
    **options: Any,
) -> SmolVLAConfig:  # fmt: skip
    """A stock config around `vlm`."""
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (state_dim,))}
    for camera in cameras:
        inputs[f"observation.images.{camera}"] = PolicyFeature(FeatureType.VISUAL, (3, 32, 32))
    defaults: dict[str, Any] = {
        "chunk_size": 8,
        "n_action_steps": 4,
        "max_action_dim": 6,
        "max_state_dim": 8,
        "resize_imgs_with_padding": (32, 32),
        "num_vlm_layers": 2,
        "vlm_model_name": str(vlm),
        "device": "cpu",
        "push_to_hub": False,
    }
    return SmolVLAConfig(
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action_dim,))},
        **{**defaults, **options},
    )


def stats(state_dim: int = STATE_DIM, action_dim: int = ACTION_DIM) -> dict[str, dict[str, torch.Tensor]]:
    """Normalisation statistics: not the identity at the tests' own sizes, the identity at others."""
    if (state_dim, action_dim) != (STATE_DIM, ACTION_DIM):
        sizes = {"observation.state": state_dim, "action": action_dim}
        return {key: {"mean": torch.zeros(size), "std": torch.ones(size)} for key, size in sizes.items()}
    return {
        "observation.state": {"mean": torch.tensor([0.5, -0.5, 0.0]), "std": torch.tensor([2.0, 1.0, 0.5])},
        "action": {"mean": torch.tensor([1.0, -2.0]), "std": torch.tensor([3.0, 0.5])},
    }


def build_checkpoint(folder: Path, vlm: Path, seed: int = 0, **options: Any) -> Path:
    """A stock SmolVLA checkpoint with random weights and its processors."""
    torch.manual_seed(seed)
    config = make_config(vlm, **options)
    with quiet_stdout():
        policy = SmolVLAPolicy(config)
    with torch.no_grad():
        # A network at its random initialisation has a field that hardly bends.
        for name, parameter in policy.named_parameters():
            if "lm_expert" in name or "action_" in name:
                parameter.mul_(2.0)
    policy.save_pretrained(folder)
    known = stats(config.robot_state_feature.shape[0], config.action_feature.shape[0])
    for pipeline in make_pre_post_processors(config, dataset_stats=known):
        pipeline.save_pretrained(folder)
    return folder


def observations(
    batch: int, cameras: tuple[str, ...] = ("top",), seed: int = 0, steps: int | None = None
) -> dict[str, Any]:
    """Raw observations as LeRobot's data loader hands them on, with prompts of unequal length.

    With `steps` they are of so many control steps, the present one last, and values are (batch, steps, ...).
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (batch,) if steps is None else (batch, steps)
    items: dict[str, Any] = {
        "observation.state": torch.randn(*shape, STATE_DIM, generator=generator),
        "task": [TASKS[i % len(TASKS)] for i in range(batch)],
    }
    for camera in cameras:
        items[f"observation.images.{camera}"] = torch.rand(*shape, 3, 32, 32, generator=generator)
    return items


def build_dataset(
    root: Path, episodes: int = 6, length: int = 5, cameras: tuple[str, ...] = ("top",), state_dim: int = STATE_DIM,
    action_dim: int = ACTION_DIM, tasks: Sequence[str] = TASKS, *, videos: bool = False, a_file_each: bool = False,
) -> Path:  # fmt: skip
    """A LeRobotDataset v3 with random frames; episodes are shorter than a chunk, and take turns with the tasks.

    With `a_file_each` every episode has files of its own, as the episodes of a large dataset do.
    """
    side = 64 if videos else 32
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": (state_dim,), "names": None},
        "action": {"dtype": "float32", "shape": (action_dim,), "names": None},
    }
    for camera in cameras:
        features[f"observation.images.{camera}"] = {
            "dtype": "video" if videos else "image", "shape": (side, side, 3), "names": ["height", "width", "channels"],
        }  # fmt: skip
    dataset = LeRobotDataset.create("test/tiny", fps=10, features=features, root=root, use_videos=videos)
    info = dataset.meta.info
    sizes = info.data_files_size_in_mb, info.video_files_size_in_mb
    if a_file_each:
        info.data_files_size_in_mb = info.video_files_size_in_mb = 0
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        for _ in range(length):
            frame: dict[str, Any] = {
                "observation.state": rng.normal(size=state_dim).astype(np.float32),
                "action": rng.normal(size=action_dim).astype(np.float32),
                "task": tasks[episode % len(tasks)],
            }
            for camera in cameras:
                frame[f"observation.images.{camera}"] = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    if a_file_each:
        # Nothing is no size that is read again.
        info.data_files_size_in_mb, info.video_files_size_in_mb = sizes
        write_info(info, root)
    return root


def edit_column(file: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Changes a column of a file of a dataset's frames; `change` takes and gives a list of its values."""
    table = pq.read_table(file)
    at = table.column_names.index(name)
    field = table.schema.field(at)
    values = change(table.column(at).to_pylist())
    pq.write_table(table.set_column(at, field, pa.array(values, type=field.type)), file)
