"""What of a dataset cannot be read, and what to do without it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import FrameTimestampError
from torch.utils.data import default_collate

from chordflow.errors import UserError, ran_out_of_memory, reason


def without_missing(metadata: LeRobotDatasetMetadata, episodes: Sequence[int]) -> str:
    """The advice to do without the episodes whose files are missing, where there are others."""
    keys = metadata.video_keys
    missing = [
        episode
        for episode in episodes
        if not all(
            (Path(metadata.root) / path).is_file()
            for path in (
                metadata.get_data_file_path(episode),
                *(metadata.get_video_file_path(episode, key) for key in keys),
            )
        )
    ]
    if not missing or len(missing) > len(episodes) - 2:
        return ""
    listed = ", ".join(str(episode) for episode in missing[:8]) + (", ..." if len(missing) > 8 else "")
    return f", or name the others without episode(s) {listed}, whose files are missing (--dataset.episodes)"


def not_read(dataset: LeRobotDataset, row: int, error: Exception) -> UserError:
    """The sentence for a frame that cannot be read, with the episode that may be dropped."""
    place = dataset.hf_dataset.select_columns(["episode_index", "frame_index"])[row]
    frame = (
        f"dataset: frame {int(place['frame_index'])} of episode {int(place['episode_index'])} of {dataset.repo_id} in "
        f"{dataset.root} cannot be read"
    )
    if isinstance(error, FrameTimestampError) and "tolerance" in str(error):
        off = re.search(r"tensor\(\[([^],]+)", str(error))
        nearest = f"{off[1]} s away" if off else "further away"
        return UserError(
            f"{frame}: the nearest frame of its video is {nearest}, and tolerance_s={dataset.tolerance_s:g}; raise "
            f"--tolerance_s if that is less than half a frame ({0.5 / dataset.fps:g} s), otherwise fetch the video "
            "again or drop the episode (--dataset.episodes)."
        )
    return UserError(f"{frame} ({reason(error)}); repair the file or drop its episode (--dataset.episodes).")


def collated(items: list[dict[str, Any]]) -> Any:
    """Observations as a batch.

    Raises:
        UserError: where their shapes differ.
    """
    try:
        return default_collate(items)
    except RuntimeError as error:
        if ran_out_of_memory(error):
            raise
        episodes = sorted({int(item["episode_index"]) for item in items if "episode_index" in item})
        raise UserError(
            f"dataset: frames of the episodes {episodes} cannot be put together ({reason(error)}); repair those of "
            "another size or drop their episode (--dataset.episodes)."
        ) from error
