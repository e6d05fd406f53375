"""Observations from a LeRobotDataset, for couplings and for measuring.

A coupling asks for what a policy sees, never for what a demonstrator did: actions are read only for the training
methods that declare that they need them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_PREFIX, OBS_STATE
from torch.utils.data import DataLoader, Dataset, default_collate

from chordflow import stopping
from chordflow.couplings.walk import Walk
from chordflow.errors import UserError, machine_refuses, ran_out_of_memory, reason
from chordflow.policies import FlowPolicy


@dataclass
class DatasetConfig:
    """Which observations; names as in LeRobot.

    Attributes:
        repo_id: LeRobot dataset, a Hub id or a name for a local one.
        root: local folder of the dataset; by default $HF_LEROBOT_HOME/repo_id, or the Hub's cache.
        revision: branch, tag or commit on the Hub.
        episodes: use these episodes only.
        eval_split: share of the episodes of every task that training leaves out and measures use, in (0, 1).
        video_backend: decoder for videos: pyav, the default, or torchcodec, which needs ffmpeg.
    """

    repo_id: str
    root: str | None = None
    revision: str | None = None
    episodes: list[int] | None = None
    eval_split: float = 0.1
    video_backend: str | None = None

    def __post_init__(self) -> None:
        if self.video_backend not in (None, "pyav", "torchcodec"):
            raise UserError(f"dataset.video_backend={self.video_backend}: choose pyav or torchcodec.")
        if not 0.0 < self.eval_split < 1.0:
            raise UserError(
                f"dataset.eval_split={self.eval_split}: give the share of episodes to measure on, "
                "above 0 and below 1."
            )


class Observations(Dataset[dict[str, Any]]):
    """The frames of some episodes.

    Args:
        dataset: a LeRobotDataset.
        frames: indices into it.
        actions: whether the demonstrated actions come along, as the dataset was opened to give them.
    """

    def __init__(self, dataset: LeRobotDataset, frames: Sequence[int], *, actions: bool = False) -> None:
        self.dataset = dataset
        self.frames = list(frames)
        self.actions = (ACTION, f"{ACTION}_is_pad") if actions else ()
        self._walk: Walk | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        frame = self.frames[index]
        try:
            item = self.dataset[frame]
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            raise UserError(
                f"dataset: frame {frame} of {self.dataset.repo_id} in {self.dataset.root} cannot be read "
                f"({reason(error)}); mend the file or drop its episode (--dataset.episodes)."
            ) from error
        kept = {
            key: value
            for key, value in item.items()
            if key.startswith(OBS_PREFIX) or key in ("task", "episode_index", "frame_index", *self.actions)
        }
        for key, value in kept.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all():
                raise _not_finite(key, kept["episode_index"], kept["frame_index"])
        return kept

    def of_block(self, number: int, size: int, seed: int) -> list[int]:
        """Which observations a block of couplings holds: a walk through reshuffled passes over all of them.

        Args:
            number: of the block, from 0.
            size: observations of each block.
            seed: of the order.
        """
        if self._walk is None or self._walk.names != (seed, "order"):
            self._walk = Walk(len(self), seed, "order")
        return [self._walk[position] for position in range(number * size, (number + 1) * size)]

    def check_states(self) -> None:
        """Looks through every frame's vectors at once, so that a run does not fail on its last frame.

        Images are looked at as they are read.

        Raises:
            UserError: naming the first value that is not finite.
        """
        table = self.dataset.hf_dataset.with_format("numpy")
        rows = np.asarray(self.frames)
        for key in table.column_names:
            looked_at = key.startswith(OBS_PREFIX) or key in self.actions
            if not looked_at or key in self.dataset.meta.camera_keys:
                continue
            values = np.asarray(table[key][:])
            if not np.issubdtype(values.dtype, np.floating):
                continue
            bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)[rows]
            if bad.any():
                row = int(rows[bad.argmax()])
                raise _not_finite(key, table["episode_index"][row], table["frame_index"][row])

    def batches(
        self, order: Sequence[int], batch_size: int, num_workers: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Collated batches in the given order.

        The workers only read: what they return, and in which order, does not depend on their number.

        Args:
            order: indices into these observations.
            batch_size: observations a batch; the last may be smaller.
            num_workers: processes that read ahead.

        Raises:
            UserError: where an observation cannot be read or is not finite, or a worker dies.
        """
        order = list(order)
        return self.stream(
            (order[start : start + batch_size] for start in range(0, len(order), batch_size)), num_workers
        )

    def stream(self, batches: Iterable[Sequence[int]], num_workers: int = 0) -> Iterator[dict[str, Any]]:
        """Collated batches of the given observations; which, may be decided as they are read.

        Args:
            batches: indices into these observations, a sequence a batch. Workers ask for two each ahead.
            num_workers: processes that read ahead.

        Raises:
            UserError: where an observation cannot be read or is not finite, or a worker dies.
        """
        loader = DataLoader(
            self,
            batch_sampler=batches,  # type: ignore[arg-type]  # any iterable will do
            num_workers=num_workers,
            collate_fn=default_collate,
            # Video decoders do not survive a fork; for images a spawned worker only costs its imports.
            multiprocessing_context="spawn" if num_workers and self.dataset.meta.video_keys else None,
            worker_init_fn=_quiet_worker if num_workers else None,
        )
        with stopping.starting_worker():
            iterator = iter(loader)
        try:
            yield from iterator
        except UserError as error:
            # A worker's exception arrives with its traceback in the message.
            lines = [line for line in str(error).splitlines() if "dataset: " in line]
            text = lines[-1] if lines else str(error)
            raise UserError(text[text.index("dataset: ") :] if "dataset: " in text else text) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"num_workers={num_workers}: a process that reads observations died ({reason(error)}), as it does "
                "where memory or /dev/shm runs out; lower num_workers, down to 0."
            ) from error
        finally:
            # Left to the garbage collector after an exception, torch waits five seconds for every worker.
            getattr(iterator, "_shutdown_workers", lambda: None)()


@dataclass(frozen=True)
class Split:
    """Observations to train on and to measure on, apart by episode."""

    train: Observations
    held_out: Observations
    held_out_episodes: list[int]
    metadata: LeRobotDatasetMetadata


def open_split(
    config: DatasetConfig,
    policy: FlowPolicy,
    rename_map: dict[str, str] | None = None,
    *,
    actions: bool = False,
) -> Split:
    """Opens a dataset, checks that it fits the policy, and holds episodes out as LeRobot does.

    Args:
        config: which dataset.
        policy: whose observations, and whose chunks of actions, are read.
        rename_map: observation keys of the dataset to keys of the policy.
        actions: whether the observations to train on bring the demonstrated actions along.

    Raises:
        UserError: if it cannot be found, is empty, or lacks what the policy looks at.
    """
    metadata = _metadata(config)
    check_fits(metadata, policy, rename_map or {})
    episodes = config.episodes if config.episodes is not None else list(range(metadata.total_episodes))
    unknown = [episode for episode in episodes if not 0 <= episode < metadata.total_episodes]
    if unknown:
        raise UserError(
            f"dataset.episodes holds {unknown[0]}, but {config.repo_id} has episodes 0 to "
            f"{metadata.total_episodes - 1}."
        )
    if len(set(episodes)) < len(episodes):
        twice = next(episode for episode in episodes if episodes.count(episode) > 1)
        raise UserError(f"dataset.episodes names {twice} twice; name every episode once.")
    if len(episodes) < 2:
        raise UserError(
            f"dataset.repo_id={config.repo_id}: {len(episodes)} episode(s) cannot be split into training and "
            "held-out ones; give at least 2."
        )
    train, held_out = split_episodes(metadata, episodes, config.eval_split)
    try:
        dataset = LeRobotDataset(
            config.repo_id,
            root=config.root,
            revision=config.revision,
            delta_timestamps=_timestamps(policy, metadata, actions=actions),
            video_backend=config.video_backend or ("pyav" if metadata.video_keys else None),
        )
    except Exception as error:
        if machine_refuses(error):
            raise
        raise UserError(
            f"dataset.repo_id={config.repo_id}: the frames in {metadata.root} are incomplete or broken, and the Hub "
            f"gives no others ({reason(error)}); copy or fetch the dataset again."
        ) from error
    if len(dataset.hf_dataset) != metadata.total_frames:
        raise UserError(
            f"dataset.repo_id={config.repo_id}: {metadata.root} holds {len(dataset.hf_dataset)} frames, but its meta "
            f"folder tells of {metadata.total_frames}; copy or fetch the dataset again."
        )
    starts = {int(row["episode_index"]): row for row in metadata.episodes}

    def frames(chosen: list[int]) -> list[int]:
        return [
            frame
            for episode in chosen
            for frame in range(starts[episode]["dataset_from_index"], starts[episode]["dataset_to_index"])
        ]

    split = Split(
        Observations(dataset, frames(train), actions=actions),
        Observations(dataset, frames(held_out)),
        held_out,
        metadata,
    )
    split.train.check_states()
    split.held_out.check_states()
    return split


def split_episodes(
    metadata: LeRobotDatasetMetadata, episodes: Sequence[int], eval_split: float
) -> tuple[list[int], list[int]]:
    """LeRobot's rule: of every task the last ceil(n * eval_split) episodes are held out.

    A task with a single episode keeps it for training here, and if that leaves nothing held out, the last
    episode is.
    """
    by_task: dict[str, list[int]] = {}
    tasks = metadata.episodes["tasks"]
    for episode in episodes:
        by_task.setdefault(tasks[episode][0] if tasks[episode] else "", []).append(episode)
    train: list[int] = []
    held_out: list[int] = []
    for chosen in by_task.values():
        count = min(math.ceil(len(chosen) * eval_split), len(chosen) - 1)
        train += chosen[: len(chosen) - count]
        held_out += chosen[len(chosen) - count :]
    if not held_out:
        held_out.append(train.pop())
    return train, held_out


def check_fits(metadata: LeRobotDatasetMetadata, policy: FlowPolicy, rename_map: dict[str, str]) -> None:
    """Makes sure that a dataset has what a checkpoint looks at.

    Raises:
        UserError: for missing cameras or another size of state or action.
    """
    repo_id, features = metadata.repo_id, metadata.features
    looked_at = list(policy.config.input_features or {})
    for key, target in rename_map.items():
        if target not in looked_at:
            raise UserError(
                f"rename_map={json.dumps(rename_map)}: the checkpoint has no {target!r}; it looks at "
                f"{', '.join(looked_at)}."
            )
        if target in features and target not in rename_map:
            raise UserError(
                f"rename_map={json.dumps(rename_map)}: {repo_id} has a {target!r} already; map that one elsewhere or "
                "drop the entry."
            )
        if key not in features:
            raise UserError(
                f"rename_map names {key!r}, which {repo_id} does not have; its observations are "
                f"{', '.join(name for name in features if name.startswith(OBS_PREFIX))}."
            )
    names = {rename_map.get(name, name): feature for name, feature in features.items()}
    missing = [key for key in policy.image_keys if key not in names]
    # A camera that the checkpoint does not know, where it lacks one: more likely another name than a blank.
    unknown = {rename_map.get(key, key) for key in metadata.camera_keys} - set(policy.image_keys)
    if missing and (
        len(missing) > policy.max_missing_cameras or unknown or len(missing) == len(policy.image_keys)
    ):
        cameras = list(metadata.camera_keys)
        raise UserError(
            f"dataset.repo_id={repo_id} lacks the checkpoint's camera(s) {', '.join(missing)}; it has "
            f"{', '.join(cameras) or 'none'}: map them with "
            f'--rename_map=\'{{"{cameras[0] if cameras else "observation.images.NAME"}": "{missing[0]}"}}\'.'
        )
    expected = {ACTION: policy.config.action_feature, OBS_STATE: policy.config.robot_state_feature}
    for key, feature in expected.items():
        if feature is None:
            continue
        if key not in names:
            raise UserError(f"dataset.repo_id={repo_id} has no {key}, which the checkpoint needs.")
        if tuple(names[key]["shape"]) != tuple(feature.shape):
            raise UserError(
                f"dataset.repo_id={repo_id}: {key} has shape {tuple(names[key]['shape'])}, but the checkpoint was "
                f"trained with {tuple(feature.shape)}; give the dataset that it was fine-tuned on."
            )


def _metadata(config: DatasetConfig) -> LeRobotDatasetMetadata:
    if config.root is not None and not Path(config.root).is_dir():
        raise UserError(f"dataset.root={config.root}: there is no such folder; give a LeRobot dataset's.")
    if config.root is not None and not (Path(config.root) / "meta" / "info.json").is_file():
        raise UserError(
            f"dataset.root={config.root}: this folder is not a LeRobot dataset (meta/info.json is missing); give the "
            "folder that holds meta, data and videos."
        )
    try:
        metadata = LeRobotDatasetMetadata(config.repo_id, root=config.root, revision=config.revision)
    except Exception as error:
        if machine_refuses(error):
            raise
        if config.root is not None:
            raise UserError(
                f"dataset.root={config.root}: its meta folder is incomplete or broken ({reason(error)}); copy or "
                "fetch the dataset again."
            ) from error
        raise UserError(
            f"dataset.repo_id={config.repo_id}: no local dataset of that name, and the Hub has none within reach "
            f"({type(error).__name__}); check the name, the network, or give --dataset.root."
        ) from error
    if metadata.total_episodes == 0 or metadata.total_frames == 0:
        raise UserError(f"dataset.repo_id={config.repo_id}: the dataset is empty; record episodes first.")
    return metadata


def _timestamps(
    policy: FlowPolicy, metadata: LeRobotDatasetMetadata, *, actions: bool
) -> dict[str, list[float]] | None:
    """Seconds from now, as LeRobot's own training asks for them, of what is looked at."""
    looked_at = {
        key: policy.observation_delta_indices for key in metadata.features if key.startswith(OBS_PREFIX)
    }
    if actions:
        looked_at[ACTION] = policy.config.action_delta_indices
    times = {
        key: [index / metadata.fps for index in indices]
        for key, indices in looked_at.items()
        if indices is not None
    }
    return times or None


def _not_finite(key: str, episode: int, frame: int) -> UserError:
    return UserError(
        f"dataset: {key} is NaN or infinite in episode {int(episode)}, frame {int(frame)}; mend or drop that episode "
        "(--dataset.episodes)."
    )


def _quiet_worker(_worker: int) -> None:
    from chordflow.quiet import silence_libraries

    stopping.leave_to_parent()
    silence_libraries()
    torch.set_num_threads(1)
