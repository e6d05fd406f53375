"""Observations from a LeRobotDataset, for couplings and for measuring.

A coupling needs what a policy sees, not what a demonstrator did: actions are read only for the training
methods that declare that they need them.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import INFO_PATH
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_PREFIX, OBS_STATE
from torch.utils.data import DataLoader, Dataset

from chordflow import stopping
from chordflow.checks import Checked, check_once, check_range, number
from chordflow.console import doing, say
from chordflow.couplings.unreadable import check_decoder, collated, not_read, open_metadata, without_missing
from chordflow.errors import UserError, explained, ran_out_of_memory, reason, worker_died
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, check_inputs, print_replaced_names

TOLERANCE_S = 1e-4
"""Seconds by which a video's frame may miss its timestamp: LeRobot's default."""


@dataclass
class DatasetConfig(Checked):
    """Which observations; names as in LeRobot.

    Attributes:
        repo_id: LeRobot dataset, a Hub id or a name for a local one.
        root: local folder of the dataset; by default $HF_LEROBOT_HOME/repo_id, or the Hub's cache.
        revision: branch, tag or commit on the Hub.
        episodes: use these episodes only; the files of others need not be there, and are not fetched.
        eval_split: share of the episodes of every task that training leaves out and measures use, in (0, 1). Of the
            tasks with a single episode, the same share is left out whole.
        video_backend: decoder for videos: pyav, the default, or torchcodec, which needs ffmpeg.
    """

    PREFIX = "dataset."

    repo_id: str
    root: str | None = None
    revision: str | None = None
    episodes: list[int] | None = None
    eval_split: float = number(0.1, above=0, below=1)
    video_backend: Literal["pyav", "torchcodec"] | None = None


def walk(positions: Iterable[int], count: int, *names: int | str) -> list[int]:
    """What lies at some positions of an endless walk through reshuffled passes over `count` things.

    The order is drawn from `names` (see `flow.seeds`).
    """
    places = (divmod(position, count) for position in positions)
    return [_pass(epoch, count, *names)[place] for epoch, place in places]


@functools.lru_cache(maxsize=4)
def _pass(epoch: int, count: int, *names: int | str) -> list[int]:
    return torch.randperm(count, generator=generator(*names, epoch)).tolist()


class Observations(Dataset[dict[str, Any]]):
    """Frames of a LeRobotDataset of all episodes or of some, by their indices among the frames of all.

    With `actions` the demonstrated ones come along, as the dataset was opened to give them. What no policy looks at is
    `unused`: it comes along, too, whatever numbers it holds.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        frames: Sequence[int],
        *,
        actions: bool = False,
        unused: Collection[str] = (),
    ) -> None:
        self.dataset, self.unused = dataset, unused
        self.frames = list(frames)
        rows = dataset.absolute_to_relative_idx
        self.rows = self.frames if rows is None else [rows[frame] for frame in self.frames]
        self.actions = (ACTION, f"{ACTION}_is_pad") if actions else ()

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        try:
            item = self.dataset[row]
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            raise not_read(self.dataset, row, error) from error
        kept = {
            key: value
            for key, value in item.items()
            if key.startswith(OBS_PREFIX) or key in ("task", "episode_index", "frame_index", *self.actions)
        }
        meta, place = self.dataset.meta, (kept["episode_index"], kept["frame_index"])
        restore_axes(kept, meta.features)
        for key in kept.keys() & set(meta.camera_keys):
            declared, found = meta.features[key]["shape"], kept[key].shape[-3]
            if found not in declared:
                raise UserError(
                    f"dataset: {key} has {found} channel(s) in episode {int(place[0])}, frame {int(place[1])}, but "
                    f"{INFO_PATH} says {tuple(declared)}; save its images as RGB, or drop those of another kind "
                    "(--dataset.episodes)."
                )
        for key, value in kept.items():
            if key in self.unused or not isinstance(value, torch.Tensor) or not value.is_floating_point():
                continue
            if not value.isfinite().all():
                raise _not_finite(key, *place)
        return kept

    def of_block(self, number: int, size: int, seed: int) -> list[int]:
        """The observations of block `number` of blocks of `size`: a walk through reshuffled passes over all of them."""
        return walk(range(number * size, (number + 1) * size), len(self), seed, "order")

    def check_states(self) -> None:
        """Looks through every frame's vectors at once, so that a run does not fail on its last frame.

        Raises:
            UserError: naming the first value that is not finite; images are looked at as they are read.
        """
        table = self.dataset.hf_dataset.with_format("numpy")
        rows = np.asarray(self.rows)
        for key in table.column_names:
            looked_at = key.startswith(OBS_PREFIX) or key in self.actions
            if not looked_at or key in self.dataset.meta.camera_keys or key in self.unused:
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
        """Collated batches in the given order, the last of which may be smaller; see `stream`."""
        chunks = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
        return self.stream(chunks, num_workers)

    def stream(self, batches: Iterable[Sequence[int]], num_workers: int = 0) -> Iterator[dict[str, Any]]:
        """Collated batches of the given observations; which, may be decided as they are read.

        What is returned, and in which order, does not depend on the number of workers; each asks for two batches ahead.

        Raises:
            UserError: where an observation cannot be read or is not finite, or a worker dies.
        """
        loader = DataLoader(
            self,
            batch_sampler=batches,  # type: ignore[arg-type]  # any iterable will do
            num_workers=num_workers,
            collate_fn=collated,
            # Video decoders do not survive a fork; for images a spawned worker only costs its imports.
            multiprocessing_context="spawn" if num_workers and self.dataset.meta.video_keys else None,
            worker_init_fn=_quiet_worker if num_workers else None,
        )
        iterator = None
        try:
            with stopping.starting_worker():
                iterator = iter(loader)
            yield from iterator
        except UserError as error:
            # A worker's exception arrives with its traceback in the message.
            sentences = re.findall("dataset: .*", str(error))
            raise UserError(sentences[-1] if sentences else str(error)) from None
        except RuntimeError as error:
            if sentence := worker_died(error):
                raise UserError(f"num_workers={num_workers}: {sentence}") from error
            raise
        finally:
            # Left to the garbage collector after an exception, torch waits five seconds for every worker. A signal
            # meanwhile is for whoever checks next: what is raised where a generator is closed gets lost.
            with contextlib.suppress(stopping.Stopped), stopping.held():
                getattr(iterator, "_shutdown_workers", lambda: None)()


@dataclass(frozen=True)
class Split:
    """Observations to train on and to measure on, apart by episode.

    Attributes:
        train: those to train on.
        held_out: those to measure on.
        held_out_episodes: the episodes of these.
        whole_tasks: how many of these are of a task of which training sees no episode.
        metadata: of the dataset.
        dataset: the settings that chose them.
        judged: those to decide on how many rounds are trained; None where that is not asked for.
        judged_episodes: the episodes of these.
    """

    train: Observations
    held_out: Observations
    held_out_episodes: list[int]
    whole_tasks: int
    metadata: LeRobotDatasetMetadata
    dataset: DatasetConfig
    judged: Observations | None = None
    judged_episodes: list[int] = field(default_factory=list)

    @property
    def caveats(self) -> str:
        """What measuring on these episodes cannot say, for the end of a line to the user."""
        found = ""
        if self.whole_tasks:
            found += f"; the tasks of {self.whole_tasks} of them have no other episode; the teacher may have seen them"
        if len(self.held_out_episodes) < 2:
            found += "; too few for intervals, which are over episodes (raise --dataset.eval_split)"
        return found


def split_episodes(
    tasks: Sequence[str], episodes: Sequence[int], eval_split: float, held_out: Collection[int] | None = None
) -> tuple[list[int], list[int]]:
    """LeRobot's rule: of every task the last ceil(n * eval_split) episodes are held out.

    Where every task has two episodes or more, one of each is left to train on. The tasks with a single episode are
    taken together as if they were one: of these, whole tasks are held out.

    Args:
        tasks: the task of every episode of the dataset.
        episodes: that are used, two or more.
        eval_split: share that is held out.
        held_out: episodes that are held out in place of those that the rule chooses.

    Returns:
        Episodes to train on and episodes held out.
    """
    counts = Counter(tasks[episode] for episode in episodes)
    groups: dict[str | None, list[int]] = {}
    for episode in episodes:
        task = tasks[episode]
        groups.setdefault(task if counts[task] > 1 else None, []).append(episode)
    train: list[int] = []
    measured: list[int] = []
    for chosen in groups.values():
        count = min(math.ceil(len(chosen) * eval_split), len(chosen) - 1)
        out = set(chosen[len(chosen) - count :] if held_out is None else held_out)
        train += [episode for episode in chosen if episode not in out]
        measured += [episode for episode in chosen if episode in out]
    return train, measured


@doing("Reading the dataset")
def open_split(
    config: DatasetConfig,
    policy: FlowPolicy,
    *,
    tolerance_s: float = TOLERANCE_S,
    actions: bool = False,
    held_out: Collection[int] | None = None,
    judged: Collection[int] | bool = False,
) -> Split:
    """Opens a dataset, checks that it fits the policy, and holds episodes out as LeRobot does.

    Args:
        config: which dataset.
        policy: whose observations, and whose chunks of actions, are read.
        tolerance_s: seconds by which a video's frame may miss its timestamp.
        actions: whether the observations to train on bring the demonstrated actions along.
        held_out: episodes that are held out, in place of those that the rule chooses: of a resumed run.
        judged: whether more episodes are held out, by the same rule, to decide on rounds; or which.

    Raises:
        UserError: if it cannot be found, is empty, or lacks what the policy looks at.
    """
    check_range("tolerance_s", tolerance_s, above=0)
    metadata = open_metadata(config.repo_id, config.root, config.revision)
    if metadata.video_keys:
        check_decoder(config.video_backend)
    print_replaced_names(policy)
    if absent := check_fits(metadata, policy):
        lacks = f"dataset.repo_id={config.repo_id} lacks {', '.join(absent)}"
        say(f"Warning: {lacks}; {policy.family} acts without, as it does in LeRobot.")
    episodes = config.episodes if config.episodes is not None else list(range(metadata.total_episodes))
    check_once("dataset.episodes", episodes, at_least=0, at_most=metadata.total_episodes - 1)
    if len(episodes) < 2:
        raise UserError(
            f"dataset.repo_id={config.repo_id}: {len(episodes)} episode(s) cannot be split into training and "
            "held-out ones; give at least 2."
        )
    # The first task counts, as for LeRobot.
    tasks = [str(named[0]) if named else "" for named in metadata.episodes["tasks"]]
    train, measured = split_episodes(tasks, episodes, config.eval_split, held_out)
    if not train or not measured:
        raise UserError(
            f"dataset.episodes={episodes}: none of these is left to {'measure' if train else 'train'} on, as the run "
            f"holds out {sorted(held_out or ())}; name one more of the episodes that it began with."
        )
    judged_on: list[int] = []
    if judged:
        chosen = None if isinstance(judged, bool) else judged
        train, judged_on = split_episodes(tasks, train, config.eval_split, chosen)
        if not (train and judged_on):
            raise UserError(
                f"dataset.episodes={episodes}: rounds=auto decides on episodes that are neither trained nor reported "
                "on, and of these none is left; name more, or give a number of rounds."
            )
    looked_at = resolve_delta_timestamps(policy.config, metadata) or {}
    if not actions:
        looked_at.pop(ACTION, None)
    with explained(
        lambda error: (
            f"dataset.repo_id={config.repo_id}: the frames in {metadata.root} are incomplete or broken, and the Hub "
            f"gives no others ({reason(error)}); copy or fetch the dataset again{without_missing(metadata, episodes)}."
        )
    ):
        dataset = LeRobotDataset(
            config.repo_id,
            root=config.root,
            revision=config.revision,
            episodes=config.episodes,
            delta_timestamps=looked_at or None,
            tolerance_s=tolerance_s,
            video_backend=config.video_backend or ("pyav" if metadata.video_keys else None),
        )
    starts = {int(row["episode_index"]): row for row in metadata.episodes}

    def frames(chosen: list[int]) -> list[int]:
        of_episodes = (
            range(starts[one]["dataset_from_index"], starts[one]["dataset_to_index"]) for one in chosen
        )
        return list(chain.from_iterable(of_episodes))

    known, stated, found = dataset.absolute_to_relative_idx, metadata.total_frames, len(dataset.hf_dataset)
    if known is not None:
        wanted = set(frames(episodes))
        stated, found = len(wanted), len(wanted & known.keys())
    if found != stated:
        of = " of dataset.episodes" if known is not None else ""
        raise UserError(
            f"dataset.repo_id={config.repo_id}: {metadata.root} holds {found} frames{of}, but its meta folder lists "
            f"{stated}; copy or fetch the dataset again."
        )
    trained = {tasks[episode] for episode in train}
    vectors = metadata.features.keys() - set(metadata.camera_keys)
    unused = {key for key in vectors if policy.own_name(key) not in (OBS_STATE, OBS_ENV_STATE, ACTION)}
    split = Split(
        Observations(dataset, frames(train), actions=actions, unused=unused),
        Observations(dataset, frames(measured), unused=unused),
        measured,
        sum(tasks[episode] not in trained for episode in measured),
        metadata,
        config,
        Observations(dataset, frames(judged_on), unused=unused) if judged_on else None,
        judged_on,
    )
    split.train.check_states()
    split.held_out.check_states()
    return split


def check_fits(metadata: LeRobotDatasetMetadata, policy: FlowPolicy) -> list[str]:
    """Refuses a dataset without the cameras that a checkpoint looks at, or with another size of state or action.

    Returns the cameras that the checkpoint was trained with and goes without.
    """
    where, features = f"dataset.repo_id={metadata.repo_id}", metadata.features
    absent = check_inputs(policy, {key: feature["shape"] for key, feature in features.items()}, where)
    if ACTION not in features:
        raise UserError(f"{where} has no {ACTION}, which the checkpoint needs.")
    shape, expected = tuple(features[ACTION]["shape"]), (policy.chunk.action_dim,)
    if shape != expected:
        raise UserError(
            f"{where}: {ACTION} has shape {shape}, but the checkpoint was trained with {expected}; give the dataset "
            "that it was fine-tuned on."
        )
    return absent


def restore_axes(item: dict[str, Any], features: Mapping[str, Any]) -> None:
    """Makes vectors of one number (..., 1) again of what LeRobot gives as numbers (...), of a dataset's `features`."""
    for key in item.keys() & features.keys():
        if key.startswith((OBS_PREFIX, ACTION)) and tuple(features[key]["shape"]) == (1,):
            item[key] = item[key][..., None]


def _not_finite(key: str, episode: int, frame: int) -> UserError:
    return UserError(
        f"dataset: {key} is NaN or infinite in episode {int(episode)}, frame {int(frame)}; repair or drop that episode "
        "(--dataset.episodes)."
    )


def _quiet_worker(_worker: int) -> None:
    from chordflow.quiet import silence_libraries

    stopping.leave_to_parent()
    silence_libraries()
    torch.set_num_threads(1)
