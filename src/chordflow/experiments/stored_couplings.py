"""What a store of couplings depends on, and whether a training may use it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import draccus
import numpy as np
from lerobot.utils.constants import OBS_PREFIX

from chordflow.checks import check_range
from chordflow.couplings import BufferConfig, CouplingBuffer, Split
from chordflow.couplings import store as stores
from chordflow.couplings.store import FOR_TRAINING, CouplingStore, Manifest, difference, read_manifest
from chordflow.errors import UserError
from chordflow.experiments.config import CoupleConfig, ReflowJobConfig
from chordflow.policies import FlowPolicy
from chordflow.refusing import look_up
from chordflow.rollouts.store import weights_hash


def made_with(
    config: CoupleConfig | ReflowJobConfig, teacher: FlowPolicy, split: Split, *, store_context: bool
) -> dict[str, Any]:
    """All that the blocks of a store depend on, as nested plain values.

    Args:
        config: of the store, or of a training that may use it.
        teacher: whose endpoints they hold.
        split: whose training observations they were made on.
        store_context: whether contexts are stored.
    """
    chunk, buffer = teacher.chunk, config.buffer
    blank = teacher.num_blank({teacher.own_name(key) for key in split.metadata.camera_keys})
    found = {
        "chunk": {"horizon": chunk.horizon, "padded_dim": chunk.padded_dim, "action_dim": chunk.action_dim},
        "teacher": {"family": teacher.family, "weights_and_processors": weights_hash(teacher)},
        "dataset": {"train_observations": len(split.train), "fingerprint": fingerprint(split)},
        "rename_map": config.rename_map,
        "coupling": draccus.encode(config.coupling),
        "buffer": {
            "noises_per_observation": buffer.noises_per_observation,
            "block_size": buffer.block_size,
            "adaptive_share": buffer.adaptive_share,
        },
        "seed": config.seed,
        # Endpoints depend on it in their last bits.
        "batch_size": config.batch_size,
        "store_context": store_context,
        **({stores.ENCODING: stores.ENCODING_VERSION} if store_context and blank else {}),
    }
    # As it will be read: tuples become lists.
    return json.loads(json.dumps(found))


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
    facts = {
        "fps": metadata.fps,
        "tasks": sorted((str(task), int(row["task_index"])) for task, row in metadata.tasks.iterrows()),
        "cameras": {key: (metadata.stats or {}).get(key) for key in sorted(metadata.camera_keys)},
    }
    digest.update(
        json.dumps(facts, sort_keys=True, default=lambda array: np.asarray(array).tolist()).encode()
    )
    return digest.hexdigest()


def training_settings(folder: Path, num_observations: int | None = None) -> dict[str, Any]:
    """The settings that a training with so many observations of a store takes from it, unless the user gives others."""
    manifest = read_manifest(folder)
    settings = manifest.about["settings"]
    used = min(manifest.num_observations, num_observations or manifest.num_observations)
    # Stores of an older chordflow have no tolerance.
    taken = {name: settings[name] for name in (*FOR_TRAINING, "tolerance_s") if name in settings}
    resident = min(used, BufferConfig.num_observations)
    return {**taken, "buffer": {**settings["buffer"], "num_observations": resident}}


def open_couplings(
    config: ReflowJobConfig, teacher: FlowPolicy, split: Split, *, with_context: bool
) -> CouplingStore | None:
    """The store that a training takes its couplings from; None where the teacher makes them.

    Args:
        config: of the training. How much of the store is used is written into it: the store of a resumed run may have
            been made anew, larger.
        teacher: the training's.
        split: the training's data.
        with_context: whether the student can use the teacher's contexts.

    Raises:
        UserError: if it was made with anything else, is unfinished, or is damaged.
    """
    if config.couplings.path is None:
        return None
    folder = Path(config.couplings.path)
    manifest = read_manifest(folder)
    reads = with_context and manifest.made_with["store_context"]
    # What may differ.
    names = ("seed", "batch_size", "store_context", *(() if reads else (stores.ENCODING,)))
    free = {name: manifest.made_with.get(name) for name in names}
    wanted = {**made_with(config, teacher, split, store_context=reads), **free}
    name = difference(wanted, manifest.made_with)
    if name is not None:
        raise UserError(_other(name, wanted, manifest, config))
    num_blocks = manifest.num_blocks
    if config.couplings.num_observations is not None:
        num_blocks = -(-config.couplings.num_observations // manifest.block_size)
        check_range(
            "couplings.num_observations",
            config.couplings.num_observations,
            at_most=manifest.num_observations,
            note=f", which the store in {folder} holds, or make a larger one in another folder",
        )
    config.couplings.num_observations = num_blocks * manifest.block_size
    store = CouplingStore(folder, manifest, num_blocks)
    store.check()
    if not reads:
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
            f"; {steps:,} steps would take {last * per_block:,}, so each block is used "
            f"{last / store.num_blocks:.1f} times and a coupling is drawn {uses:.0f} times on average"
        )
    return text


def _other(name: str, wanted: dict[str, Any], manifest: Manifest, config: ReflowJobConfig) -> str:
    """The sentence for a training that is not the store's."""
    folder, teacher = config.couplings.path, config.teacher.path
    if name.startswith("chunk."):
        theirs, ours = (
            "{horizon} actions of {padded_dim} dimensions ({action_dim} real)".format(**one["chunk"])
            for one in (manifest.made_with, wanted)
        )
        return (
            f"couplings.path={folder}: its chunks have {theirs}, but those of {teacher} have {ours}; give the teacher "
            "that it was made by, or make a new store."
        )
    if name.startswith("teacher."):
        return (
            f"teacher.path={teacher}: its weights or its processors' statistics are not those that the couplings in "
            f"{folder} were made with; give that teacher, or make a new store."
        )
    if name == stores.ENCODING:
        return f"couplings.path={folder}: {stores.OLDER_CONTEXTS}; make a new store."
    if name.startswith("dataset."):
        return (
            f"dataset.repo_id={config.dataset.repo_id}: its training observations are not those that the couplings in "
            f"{folder} were made on; give the same --dataset.episodes and --dataset.eval_split, or make a new store."
        )
    return (
        f"{name}={look_up(wanted, name)}: the couplings in {folder} were made with "
        f"{look_up(manifest.made_with, name)}; leave the option out, or make a new store."
    )
