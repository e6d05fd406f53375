"""Episodes on disk: each is saved as it ends, so that a run that was interrupted resumes where it stood.

A store is a folder for one arm, that is one policy with its settings in one environment. The episodes that end
together are a parquet file, a row each; `compact` joins all to one file. Files appear whole or not at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from chordflow.disk import whole_file, write_json
from chordflow.errors import UserError, machine_refuses, reason
from chordflow.policies import FlowPolicy
from chordflow.policies.hashes import tensors_sha256
from chordflow.rollouts.acting import NOISE_KEY, Actor
from chordflow.rollouts.episodes import Episode, EpisodeKey, Timing

STORE_VERSION = 1
"""Version of the files' layout."""
JOINED = "episodes.parquet"
"""All episodes of a store that was compacted."""
TIMING = "timing.json"
"""Where the time of the runs went whose episodes are stored."""
INTERVAL_S = 0.25
"""Least seconds between two files: what a killed process may lose."""

_VERSION, _SETTINGS = b"chordflow_store_version", b"chordflow_settings"
_PART = "part-"

_TEXT, _COUNT, _NUMBER = pa.string(), pa.int64(), pa.float64()
_COLUMNS = {
    "task_group": _TEXT, "task_id": _COUNT, "seed": _COUNT, "task": _TEXT, "success": pa.bool_(), "length": _COUNT,
    "sum_reward": _NUMBER, "side": _TEXT, "chunks": _COUNT, "num_steps": _COUNT, "solver": _TEXT, "grid_power": _NUMBER,
    "mode": _TEXT, "delay": _COUNT, "jerk": _NUMBER, "jump": _NUMBER, "path_length": _NUMBER, "seconds": _NUMBER,
    # One list of A numbers for each executed action.
    "actions": pa.list_(pa.list_(pa.float32())),
    # uint8 in C order, with its shape; both null where no pictures were kept.
    "frames": pa.large_binary(), "frames_shape": pa.list_(_COUNT),
}  # fmt: skip
_MAY_LACK = ("side", "jerk", "jump", "frames", "frames_shape")
SCHEMA = pa.schema([pa.field(name, kind, name in _MAY_LACK) for name, kind in _COLUMNS.items()])


def arm_settings(actor: Actor) -> dict[str, Any]:
    """All that an episode depends on besides its task and seed, as plain values by name, weights by `weights_hash`."""
    how = actor.sampler
    return {
        "weights": weights_hash(actor.policy),
        "num_steps": how.num_steps,
        "solver": how.solver,
        # Stores of even steps were made before there were others.
        **({"grid_power": how.grid_power} if how.grid_power != 1 else {}),
        "n_action_steps": actor.executed,
        **asdict(actor.execution),
        "env": draccus.encode(actor.env_cfg),
        "noise_key": NOISE_KEY,
    }


def weights_hash(policy: FlowPolicy) -> str:
    """SHA-256 over all tensors of a policy and of its two processors."""
    tensors = dict(policy.module.state_dict())
    for which in ("preprocessor", "postprocessor"):
        for step, state in getattr(policy, which).state_dict().items():
            tensors |= {f"{which}.{step}.{name}": tensor for name, tensor in state.items()}
    return tensors_sha256(tensors)


class EpisodeStore:
    """The episodes of one arm in a folder, which is made if it is not there; one process at a time writes to it.

    `settings` are what every episode of it was made with, plain values by name (see `arm_settings`).

    Raises:
        UserError: if the folder holds episodes of other settings or of a newer layout, or a file that is cut
            or no parquet file of episodes. Nothing is changed then.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        # As it will be read: tuples become lists, numbers of numpy are refused.
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self._schema = SCHEMA.with_metadata(
            {_VERSION: str(STORE_VERSION), _SETTINGS: json.dumps(self.settings, sort_keys=True)}
        )
        self._episodes: dict[EpisodeKey, Episode] = {}
        self._pending: list[Episode] = []
        self._written = -INTERVAL_S
        self._next_part = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        # The joined file is the oldest, and parts are numbered: what was saved last stands.
        if (self.folder / JOINED).exists():
            self._read(self.folder / JOINED)
        for file in self._parts():
            self._read(file)
            self._next_part = int(file.stem.removeprefix(_PART)) + 1
        self.timing = _read_timing(self.folder / TIMING)
        for left in self.folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    def get(self, key: EpisodeKey) -> Episode | None:
        """The episode of a suite, task and seed, or None."""
        return self._episodes.get(key)

    def load(self) -> list[Episode]:
        """All episodes by suite, task and seed."""
        return [self._episodes[key] for key in sorted(self._episodes)]

    def save(self, episodes: Sequence[Episode]) -> None:
        """Adds episodes; those of the same suite, task and seed as before are replaced.

        They are written at once, or with the next ones where the last file is younger than `INTERVAL_S`: a file
        costs half a millisecond, which for a toy simulator is a tenth of an episode.
        """
        self._episodes |= {episode.key: episode for episode in episodes}
        self._pending += episodes
        if time.monotonic() - self._written >= INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Writes what `save` has kept back."""
        if self._pending:
            self._write(self.folder / f"{_PART}{self._next_part:06d}.parquet", self._pending)
            self._next_part += 1
            self._pending = []
        self._written = time.monotonic()

    def add_timing(self, timing: Timing) -> None:
        """Adds the time of a run whose episodes were saved, and writes what is left of them."""
        self.flush()
        # Without any all episodes were there already.
        if timing.network_s > 0.0:
            self.timing.add(timing)
            write_json(self.folder / TIMING, asdict(self.timing))

    def compact(self) -> Path:
        """Joins all episodes to one file, and removes the others once it stands."""
        self.flush()
        joined, parts = self.folder / JOINED, self._parts()
        if parts or not joined.exists():
            self._write(joined, self.load())
        for part in parts:
            part.unlink()
        return joined

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_PART}*.parquet"))

    def _write(self, path: Path, episodes: Sequence[Episode]) -> None:
        table = pa.Table.from_pylist([_to_row(episode) for episode in episodes], schema=self._schema)
        # All but pictures is small: compression, statistics and dictionaries cost more than they save.
        codec = "zstd" if any(episode.frames is not None for episode in episodes) else "none"
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression=codec, write_statistics=False, use_dictionary=False)
        # No fsync: a process that is killed loses nothing, and a power cut costs at most some last episodes,
        # which are then reported as cut.
        with whole_file(path, sync=False) as temporary:
            temporary.write_bytes(sink.getvalue())

    def _read(self, path: Path) -> None:
        try:
            # As plain bytes: one of the format's own readers would guess more from the path.
            table = pq.read_table(pa.BufferReader(path.read_bytes()))
            metadata = table.schema.metadata or {}
            version, settings = int(metadata[_VERSION]), json.loads(metadata[_SETTINGS])
            known = version <= STORE_VERSION and settings == self.settings
            episodes = [_from_row(row) for row in table.to_pylist()] if known else []
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            if machine_refuses(error):
                raise
            raise UserError(
                f"{path} is cut or no file of episodes ({reason(error)}); delete this file and start again: its "
                "episodes are run anew, all others are kept."
            ) from error
        if version > STORE_VERSION:
            raise UserError(
                f"{path} was written by a newer chordflow (layout {version}, this one reads {STORE_VERSION}); "
                "update chordflow, or choose another output folder."
            )
        if settings != self.settings:
            names = [*self.settings, *settings]
            name = next((one for one in names if settings.get(one) != self.settings.get(one)), "settings")
            theirs, ours = (_short(values.get(name)) for values in (settings, self.settings))
            raise UserError(
                f"{path} was run with {name}={theirs}, but now {name}={ours}; give the settings that it was run with, "
                "or another output folder."
            )
        self._episodes |= {episode.key: episode for episode in episodes}


def _read_timing(path: Path) -> Timing:
    try:
        return TypeAdapter(Timing).validate_json(path.read_bytes())
    except FileNotFoundError:
        return Timing()
    except ValueError as error:
        raise UserError(f"{path} is cut or broken; delete this file and start again.") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _to_row(episode: Episode) -> dict[str, Any]:
    row = episode.row() | {"actions": episode.actions.tolist()}
    if episode.frames is not None:
        row |= {"frames": episode.frames.tobytes(), "frames_shape": list(episode.frames.shape)}
    return row


def _from_row(row: dict[str, Any]) -> Episode:
    # What is younger than the file takes its default.
    given = {field.name: row[field.name] for field in fields(Episode) if field.init and field.name in row}
    given["actions"] = np.array(row["actions"], dtype=np.float32)
    if row["frames"] is not None:
        given["frames"] = np.frombuffer(row["frames"], dtype=np.uint8).reshape(row["frames_shape"])
    return Episode(**given)
