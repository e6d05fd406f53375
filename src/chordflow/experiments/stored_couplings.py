"""What a store of couplings depends on, and whether a training may use it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draccus
import numpy as np
from lerobot.utils.constants import OBS_PREFIX

from chordflow.checks import check_fields, check_range
from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig, Split
from chordflow.couplings.store import FOR_TRAINING, CouplingStore, Manifest, difference, read_manifest
from chordflow.errors import UserError
from chordflow.options import look_up
from chordflow.policies import FlowPolicy
from chordflow.rollouts.store import weights_hash


@dataclass
class CouplingsConfig:
    """A store of couplings to train from, in place of asking the teacher.

    Attributes:
        path: folder that `chordflow couple` has made; teacher, dataset and how couplings are made are then its
            own, and need not be given again.
        num_observations: how many of its observations are used, whole blocks of them; by default all.
    """

    path: str | None = None
    num_observations: int | None = None

    def __post_init__(self) -> None:
        if self.num_observations is not None and self.path is None:
            raise UserError(
                f"couplings.num_observations={self.num_observations}: it says how much of a store is used; give "
                "--couplings.path as well, or --buffer.num_observations instead."
            )
        check_fields(self, "couplings.", "num_observations", at_least=1)


def made_with(
    teacher: FlowPolicy,
    split: Split,
    rename_map: dict[str, str],
    coupling: CouplingConfig,
    buffer: BufferConfig,
    *,
    seed: int,
    batch_size: int,
    store_context: bool,
) -> dict[str, Any]:
    """All that the blocks of a store depend on, as nested plain values.

    Args:
        teacher: whose endpoints they hold.
        split: whose training observations they were made on.
        rename_map: of observations.
        coupling: how the teacher's ODE is solved.
        buffer: how observations are put together.
        seed: of order and noise.
        batch_size: couplings that are solved at once; endpoints depend on it in their last bits.
        store_context: whether contexts are stored.
    """
    chunk = teacher.chunk
    found = {
        "chunk": {"horizon": chunk.horizon, "padded_dim": chunk.padded_dim, "action_dim": chunk.action_dim},
        "teacher": {"family": teacher.family, "weights_and_processors": weights_hash(teacher)},
        "dataset": {"train_observations": len(split.train), "fingerprint": fingerprint(split)},
        "rename_map": rename_map,
        "coupling": draccus.encode(coupling),
        "buffer": {
            "noises_per_observation": buffer.noises_per_observation,
            "block_size": buffer.block_size,
            "adaptive_share": buffer.adaptive_share,
        },
        "seed": seed,
        "batch_size": batch_size,
        "store_context": store_context,
    }
    # As it will be read: tuples become lists.
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def fingerprint(split: Split) -> str:
    """SHA-256 over which frames are trained on, all of their observations but images, and the cameras' statistics.

    Images themselves would take as long to read as couplings to make; another recording differs in its states.
    """
    observations, metadata = split.train, split.metadata
    digest = hashlib.sha256()
    digest.update(np.asarray(observations.frames, dtype=np.int64).tobytes())
    table = observations.dataset.hf_dataset.with_format("numpy")
    for key in sorted(table.column_names):
        if key in metadata.camera_keys or not key.startswith((OBS_PREFIX, "task_index", "frame_index")):
            continue
        values = np.ascontiguousarray(np.asarray(table[key][:])[observations.rows])
        digest.update(f"{key}:{values.dtype}:{values.shape}".encode())
        digest.update(values.tobytes())
    told = {
        "fps": metadata.fps,
        "tasks": sorted((str(task), int(row["task_index"])) for task, row in metadata.tasks.iterrows()),
        "cameras": {key: (metadata.stats or {}).get(key) for key in sorted(metadata.camera_keys)},
    }
    digest.update(json.dumps(told, sort_keys=True, default=lambda array: np.asarray(array).tolist()).encode())
    return digest.hexdigest()


def training_settings(folder: Path, num_observations: int | None = None) -> dict[str, Any]:
    """The settings that a training takes from a store unless it is told otherwise, as nested plain values.

    Args:
        folder: the store's.
        num_observations: how many of its observations are used; by default all.

    Raises:
        UserError: if there is no store in `folder`.
    """
    manifest = read_manifest(folder)
    settings = manifest.about["settings"]
    used = min(manifest.num_observations, num_observations or manifest.num_observations)
    # Stores of an older chordflow have no tolerance.
    taken = {name: settings[name] for name in (*FOR_TRAINING, "tolerance_s") if name in settings}
    resident = min(used, BufferConfig.num_observations)
    return {**taken, "buffer": {**settings["buffer"], "num_observations": resident}}


def open_couplings(
    config: CouplingsConfig,
    wanted: dict[str, Any],
    teacher: FlowPolicy,
    split: Split,
    *,
    teacher_path: str,
    repo_id: str,
    with_context: bool,
) -> CouplingStore:
    """The store that a training is to use.

    Args:
        config: which, and how much of it.
        wanted: `made_with` of the training; its seed, batch size and whether contexts are stored do not matter.
        teacher: the training's.
        split: the training's data.
        teacher_path: for messages.
        repo_id: for messages.
        with_context: whether the student can use the teacher's contexts.

    Raises:
        UserError: if it was made with anything else, is unfinished, or is damaged.
    """
    assert config.path is not None
    folder = Path(config.path)
    manifest = read_manifest(folder)
    free = {name: manifest.made_with.get(name) for name in ("seed", "batch_size", "store_context")}
    name = difference({**wanted, **free}, manifest.made_with)
    if name is not None:
        raise UserError(_other(name, wanted, manifest, folder, teacher_path, repo_id))
    num_blocks = manifest.num_blocks
    if config.num_observations is not None:
        num_blocks = -(-config.num_observations // manifest.block_size)
        check_range(
            "couplings.num_observations",
            config.num_observations,
            at_most=manifest.num_observations,
            note=f", which the store in {folder} holds, or make a larger one in another folder",
        )
    store = CouplingStore(folder, manifest, num_blocks)
    store.check()
    if not (with_context and manifest.made_with["store_context"]):
        return store
    one = teacher.encode(teacher.preprocess(next(split.train.batches([0], 1))))
    return CouplingStore(folder, manifest, num_blocks, one.detach())


def described(store: CouplingStore, buffer: CouplingBuffer, steps: int) -> str:
    """What a training gets from a store, for the user."""
    per_block = buffer.block_size
    text = f"{store.folder}, {store.num_blocks * per_block:,} observations"
    if store.holds_context:
        text += " with their contexts"
    elif store.manifest.made_with["store_context"]:
        text += " (the student does not share the teacher's prefix, so their contexts are of no use)"
    last = buffer.made_blocks(steps - 1)
    if last > store.num_blocks:
        uses = steps * buffer.step_size / (store.num_blocks * buffer.per_block)
        text += (
            f"; {steps:,} steps would take {last * per_block:,}, so the store is gone through "
            f"{last / store.num_blocks:.1f} times and a coupling is used {uses:.0f} times on average"
        )
    return text


def _other(
    name: str, wanted: dict[str, Any], manifest: Manifest, folder: Path, teacher_path: str, repo_id: str
) -> str:
    """The sentence for a training that is not the store's."""
    ours, theirs = look_up(wanted, name), look_up(manifest.made_with, name)
    if name.startswith("chunk."):
        a, b = wanted["chunk"], manifest.made_with["chunk"]
        return (
            f"couplings.path={folder}: its chunks have {b['horizon']} actions of {b['padded_dim']} dimensions "
            f"({b['action_dim']} real), but those of {teacher_path} have {a['horizon']} of {a['padded_dim']} "
            f"({a['action_dim']} real); give the teacher that it was made by, or make a new store."
        )
    if name.startswith("teacher."):
        return (
            f"teacher.path={teacher_path}: its weights or its processors' statistics are not those that the couplings "
            f"in {folder} were made with; give that teacher, or make a new store."
        )
    if name.startswith("dataset."):
        return (
            f"dataset.repo_id={repo_id}: its training observations are not those that the couplings in {folder} were "
            "made on; give that dataset with the same --dataset.episodes and --dataset.eval_split, or make a new store."
        )
    return (
        f"{name}={ours}: the couplings in {folder} were made with {theirs}; leave the option out, or make a new "
        "store."
    )
