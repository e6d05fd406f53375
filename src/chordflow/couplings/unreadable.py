"""What of a dataset cannot be read: its format, its videos' decoder, a frame; and what to do without it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import lerobot
from lerobot.datasets.dataset_metadata import CODEBASE_VERSION, LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import INFO_PATH, BackwardCompatibilityError, ForwardCompatibilityError
from lerobot.datasets.video_utils import FrameTimestampError
from lerobot.utils.constants import HF_LEROBOT_HOME
from torch.utils.data import default_collate

from chordflow.errors import UserError, machine_refuses, ran_out_of_memory, reason

_DROP = "drop the episode (--dataset.episodes)"


def without_missing(metadata: LeRobotDatasetMetadata, episodes: Sequence[int]) -> str:
    """The advice to do without the episodes whose files are missing, where there are others."""

    def is_there(episode: int) -> bool:
        files = [metadata.get_data_file_path(episode)]
        files += [metadata.get_video_file_path(episode, key) for key in metadata.video_keys]
        return all((Path(metadata.root) / file).is_file() for file in files)

    missing = [str(episode) for episode in episodes if not is_there(episode)]
    if not missing or len(missing) > len(episodes) - 2:
        return ""
    listed = ", ".join([*missing[:8], *["..."] * (len(missing) > 8)])
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
        return UserError(
            f"{frame}: the nearest frame of its video is {f'{off[1]} s' if off else 'further'} away, and "
            f"tolerance_s={dataset.tolerance_s:g}; raise --tolerance_s if that is less than half a frame "
            f"({0.5 / dataset.fps:g} s), otherwise fetch the video again or {_DROP}."
        )
    return UserError(f"{frame} ({reason(error)}); repair the file or {_DROP}.")


def collated(items: list[dict[str, Any]]) -> Any:
    """Observations as a batch; UserError where their shapes differ."""
    try:
        return default_collate(items)
    except RuntimeError as error:
        if ran_out_of_memory(error):
            raise
        episodes = sorted({int(item["episode_index"]) for item in items if "episode_index" in item})
        raise UserError(
            f"dataset: frames of the episodes {episodes} cannot be put together ({reason(error)}); repair those of "
            f"another size or {_DROP}."
        ) from error


def open_metadata(repo_id: str, root: str | None, revision: str | None) -> LeRobotDatasetMetadata:
    """A dataset's metadata.

    Raises:
        UserError: if there is no such dataset, it is empty, or in a format that LeRobot does not read.
    """
    if root is not None and not (Path(root) / INFO_PATH).is_file():
        what = (
            f"this folder is not a LeRobot dataset ({INFO_PATH} is missing); give the folder that holds meta, data "
            "and videos"
            if Path(root).is_dir()
            else "there is no such folder; give a LeRobot dataset's"
        )
        raise UserError(f"dataset.root={root}: {what}.")
    try:
        metadata = LeRobotDatasetMetadata(repo_id, root=root, revision=revision)
    except Exception as error:
        if machine_refuses(error):
            raise
        _check_format(repo_id, root, error)
        if root is not None:
            raise UserError(
                f"dataset.root={root}: its meta folder is incomplete or broken ({reason(error)}); copy or "
                "fetch the dataset again."
            ) from error
        raise UserError(
            f"dataset.repo_id={repo_id}: no local dataset of that name, and the Hub has none within reach "
            f"({type(error).__name__}); check the name, the network, or give --dataset.root."
        ) from error
    _check_format(repo_id, str(metadata.root))
    if metadata.total_episodes == 0 or metadata.total_frames == 0:
        raise UserError(f"dataset.repo_id={repo_id}: the dataset is empty; record episodes first.")
    if metadata.total_episodes != len(metadata.episodes):
        raise UserError(
            f"dataset.root={metadata.root}: {INFO_PATH} says total_episodes={metadata.total_episodes}, but "
            f"meta/episodes lists {len(metadata.episodes)}; correct that number, or copy or fetch the dataset again."
        )
    return metadata


def check_decoder(backend: str | None) -> None:
    """Raises UserError where torchcodec was asked for and is not installed, or finds no ffmpeg."""
    if backend != "torchcodec":
        return
    try:
        import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        what, remedy = "it cannot be loaded, as where ffmpeg is missing", "install ffmpeg"
        if isinstance(error, ModuleNotFoundError):
            what, remedy = f"it is not installed ({reason(error)})", "install it"
        raise UserError(
            f"dataset.video_backend=torchcodec: {what}; {remedy}, or leave the option out."
        ) from error


def _check_format(repo_id: str, root: str | None, error: Exception | None = None) -> None:
    """Raises UserError for a dataset of another major version, naming the converter where there is one.

    `error` is what LeRobot raised: nothing of a later format, which it takes for its own.
    """
    own, found = _version(CODEBASE_VERSION), _version_in(Path(root) if root else HF_LEROBOT_HOME / repo_id)
    assert own is not None
    if found is None or found[0] == own[0]:
        # It is not here: for one on the Hub, LeRobot's message is all there is.
        if isinstance(error, BackwardCompatibilityError | ForwardCompatibilityError):
            named = re.search(r"in (\S+) format", str(error))
            found = _version(named[1]) if named else None
        elif isinstance(error, NotImplementedError):
            found = (2, 0)
    if found is None or found[0] == own[0]:
        return
    where, place = (f"dataset.root={root}", f" --root={root}") if root else (f"dataset.repo_id={repo_id}", "")
    if found > own:
        remedy = "a newer LeRobot has made it: give a copy in this format."
    elif found >= (2, 1):
        converter = "python -m lerobot.scripts.convert_dataset_v21_to_v30"
        remedy = f"convert it with: {converter} --repo-id={repo_id}{place} --push-to-hub=false"
    else:
        remedy = "its converter begins at v2.1: bring the dataset there with an older LeRobot first."
    raise UserError(
        f"{where}: the dataset is in format v{found[0]}.{found[1]}, and LeRobot {lerobot.__version__} reads "
        f"{CODEBASE_VERSION}; {remedy}"
    )


def _version_in(root: Path) -> tuple[int, int] | None:
    """The format that a folder's info names; None where there is none or it is broken, which LeRobot finds as well.

    Raises:
        UserError: for a format that is none.
    """
    try:
        named = dict(json.loads((root / INFO_PATH).read_text(encoding="utf-8"))).get("codebase_version")
    except (OSError, ValueError, TypeError):
        return None
    if (found := _version(str(named))) is None:
        raise UserError(
            f"dataset.root={root}: {INFO_PATH} says codebase_version={json.dumps(named)}, which is no format such as "
            f'"{CODEBASE_VERSION}"; write the one that it was recorded in, or copy or fetch the dataset again.'
        )
    return found


def _version(text: str) -> tuple[int, int] | None:
    """Major and minor of v3.0 or 3.0."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None
