"""From an observation with LeRobot's item keys to what the graph takes.

Shapes: T observed control steps, S state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from chordflow_runtime.images import IDENTITY, Camera, Floats, Scale
from chordflow_runtime.language import Language
from chordflow_runtime.manifest import Manifest, RunnerError, listed

Step = dict[str, Floats]
"""What is seen at one control step, normalised, by LeRobot's key."""


class Observer:
    """Checks, renames, normalises and resizes what a policy sees.

    Attributes:
        deltas: the control steps that the policy looks at, relative to now, the oldest first.
        blank: an observation of one control step, all zeros.
    """

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.deltas = [*(manifest.get("observation_deltas") or range(1 - manifest["observation_steps"], 1))]
        self.blank: dict[str, Any] = {"task": "go"}
        self._inputs = manifest["inputs"]
        self._rename = manifest["rename"]
        self._readers: dict[str, Callable[[Any], Floats]] = {}
        for item in self._inputs:
            key, kind = item["key"], item["kind"]
            entry = manifest["normalise"].get(key, IDENTITY)
            if kind == "image":
                image = manifest["images"][key]
                self.blank[key] = np.zeros(image["shape"], dtype=np.float32)
                self._readers[key] = Camera(
                    key, tuple(image["shape"]), Scale(entry, (-1, 1, 1)), image["resize"]
                )
            elif kind == "state":
                self.blank[key] = np.zeros(item["shape"][-1], dtype=np.float32)
                self._readers[key] = partial(_vector, key, item["shape"][-1], Scale(entry))
        language = manifest["language"]
        self._language = language and Language(language, listed(manifest, folder, language["tokenizer"]))

    def step(self, observation: Mapping[str, Any]) -> Step:
        """What is seen at one control step."""
        return self._read(self._named(observation))

    def steps(self, observation: Mapping[str, Any]) -> list[Step]:
        """The steps of an observation that holds all that the policy looks at: with axis T in front where T > 1."""
        count = len(self.deltas)
        if count == 1:
            return [self.step(observation)]
        named = self._named(observation)
        for key, value in named.items():
            if np.ndim(value) == np.ndim(self.blank[key]):
                named[key] = [value] * count
            elif np.shape(value)[:1] != (count,):
                raise RunnerError(
                    f"{key} has shape {np.shape(value)}; the policy looks at {count} control steps, stacked in front."
                )
        return [self._read({key: value[index] for key, value in named.items()}) for index in range(count)]

    def feed(self, steps: Sequence[Step], observation: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of the graph, by their names; the instruction is that of `observation`."""
        values: dict[str, Any] = {}
        if self._language:
            if "task" not in observation:
                raise RunnerError("the observation has no task; give the instruction as a string.")
            values["tokens"], values["token_mask"] = self._language(observation["task"], steps[-1])
        fed = {}
        for item in self._inputs:
            kind, shape = item["kind"], [size if isinstance(size, int) else -1 for size in item["shape"]]
            value = values[kind] if kind in values else np.stack([step[item["key"]] for step in steps])
            try:
                fed[item["name"]] = value.astype(item["dtype"]).reshape(shape)
            except ValueError as error:
                raise RunnerError(
                    f"{item['key']} comes to shape {value.shape}, and the graph takes {shape}."
                ) from error
        return fed

    def _named(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The features that the policy looks at, by its own names."""
        if not isinstance(observation, Mapping):
            raise RunnerError(f"the observation is {observation!r}; give a dict by LeRobot's item keys.")
        named = {self._rename.get(key, key): value for key, value in observation.items()}
        for key in self._readers:
            if key not in named:
                there = ", ".join(map(str, observation)) or "nothing"
                raise RunnerError(
                    f"the observation has no {key}; it has {there}: give all that the policy sees."
                )
        return {key: named[key] for key in self._readers}

    def _read(self, named: Mapping[str, Any]) -> Step:
        return {key: read(named[key]) for key, read in self._readers.items()}


def _vector(key: str, size: int, scale: Scale, value: Any) -> Floats:
    """A state (S,), normalised."""
    try:
        vector = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise RunnerError(f"{key} is {value!r}; give {size} numbers.") from error
    if vector.shape != (size,) or not np.isfinite(vector).all():
        raise RunnerError(f"{key} is {vector} of shape {vector.shape}; give {size} finite numbers.")
    return scale.apply(vector)
